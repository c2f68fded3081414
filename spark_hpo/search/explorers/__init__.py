"""Explorers: they choose the parameters of children in population based training."""
