"""Prepares tables: train, validation and test as Parquet, with `schema.json` beside them."""

from spark_hpo.prepare.from_csv import csv
from spark_hpo.prepare.from_digits import digits
from spark_hpo.prepare.from_synthetic import synthetic
from spark_hpo.prepare.output import Prepared

__all__ = ["Prepared", "csv", "digits", "synthetic"]
