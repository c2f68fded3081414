"""Searches replayed on a virtual clock: learning curves in, regret over time out."""
