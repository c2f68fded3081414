"""ASHA whose promotions are chosen by the sampler's model."""

from __future__ import annotations

from dataclasses import dataclass

from spark_hpo.search.scheduler import Choose
from spark_hpo.search.schedulers.pioneer_asha import PioneerAshaScheduler


@dataclass(eq=False, kw_only=True)
class GuidedAshaScheduler(PioneerAshaScheduler):
    """`PioneerAshaScheduler` that asks the sampler's model which trial to promote.

    When a rung may promote a trial, it promotes the one with the best expected end. The sampler predicts it
    from the trial's results and those of similar trials (`Sampler.expected`), so noise at a low rung is
    smoothed, and if low rungs rank in the opposite order, their worst trials may go on. A sampler without
    such a model leaves the choice to the losses.
    """

    extra_pioneers: bool = False
    least_agreement: float = -1.0

    def guide(self, choose: Choose) -> None:
        self.bracket.choose = choose
