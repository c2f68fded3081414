"""Checks the requirements of a study: machine, cluster, storage, table and code, without training."""

from spark_hpo.doctor.checks import examine
from spark_hpo.doctor.finding import Finding, Status

__all__ = ["Finding", "Status", "examine"]
