"""Finds what spoils the result of a study before it runs, from a bounded sample of the table."""

from spark_hpo.pitfalls.find import find_pitfalls, find_pitfalls_of_rows
from spark_hpo.pitfalls.pitfall import Pitfall

__all__ = ["Pitfall", "find_pitfalls", "find_pitfalls_of_rows"]
