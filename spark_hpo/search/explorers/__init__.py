"""Explorers: they derive a child's parameters in population based training."""
