"""The driver loop."""

from spark_hpo.study.study import Budget, Progress, Study

__all__ = ["Budget", "Progress", "Study"]
