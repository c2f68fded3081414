"""Schedulers: they spend the budget."""
