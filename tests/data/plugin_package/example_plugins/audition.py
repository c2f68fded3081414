from itertools import repeat

from spark_hpo.search.schedulers.bracket import BracketScheduler
from spark_hpo.search.schedulers.rungs import Rung


class AuditionScheduler(BracketScheduler):
    """All trials get one epoch. The best of each group is trained to the end."""

    def __init__(self, max_resource: int, max_trials: int | None = None, *, group: int = 4) -> None:
        rungs = (Rung(group, 1), Rung(1, max_resource)) if max_resource > 1 else (Rung(group, 1),)
        super().__init__(
            repeat(rungs), max_resource=max_resource, reduction_factor=group, max_trials=max_trials
        )
