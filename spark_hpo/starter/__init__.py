"""Writes a first study file for a table, with choices that fit the table."""

from spark_hpo.starter.draft import Start, start_study

__all__ = ["Start", "start_study"]
