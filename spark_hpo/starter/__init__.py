"""A study file for a table that nobody has searched yet: what the table is tells what to try."""

from spark_hpo.starter.draft import Start, start_study

__all__ = ["Start", "start_study"]
