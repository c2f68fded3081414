"""Samplers: they propose parameters."""
