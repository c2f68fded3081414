"""Whether a study would run: checks of machine, cluster, places and table, without training."""

from spark_hpo.doctor.checks import examine
from spark_hpo.doctor.finding import Finding, Status

__all__ = ["Finding", "Status", "examine"]
