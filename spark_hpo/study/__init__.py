"""The driver loop."""

from spark_hpo.study.callback import RunningStudy
from spark_hpo.study.progress import Budget, Progress
from spark_hpo.study.search import Confirm, Search
from spark_hpo.study.study import Study

__all__ = ["Budget", "Confirm", "Progress", "RunningStudy", "Search", "Study"]
