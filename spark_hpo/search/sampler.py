"""The seam of samplers: what proposes parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from spark_hpo.trial import Params


class Sampler(Protocol):
    """Proposes parameters, from what it has been told.

    A trace:
        ask(0) -> {"lr": 0.01}; start(0, {"lr": 0.01}); tell(0, resource=1, loss=0.7)
        ask(1) -> {"lr": 0.03}; start(1, {"lr": 0.03})            # 1 is in flight
        ask(2) -> ...                                             # knows of 0 and sees 1 in flight
        tell(0, resource=3, loss=0.5)                             # 0 was promoted

    A study that resumes calls `start` and `tell` as they are in the journal, and never `ask`: the sampler
    then stands where the first one stood. So a proposal depends on the seed, the trial's id and what was
    told alone: no clock, no global generator.
    """

    def ask(self, trial_id: int) -> Params:
        """Propose parameters for a new trial, to be started next. Never changes what has been learned."""
        ...

    def start(self, trial_id: int, params: Params) -> None:
        """The trial runs with these parameters, wherever they come from: it is in flight until told."""
        ...

    def tell(self, trial_id: int, *, resource: int, loss: float, others: tuple[float, ...] = ()) -> None:
        """Learn the losses of a trial at a resource; infinite for a failed trial.

        `others` are those of the further objectives of a study that has several, always in one order;
        `loss` is that of the first. All are to be minimised.

        `resource` is the target of the slot, `Slot.resource_to`, also where training stopped earlier on a
        plateau: losses are compared between trials of one rung.
        """
        ...


@runtime_checkable
class DefineByRunSampler(Sampler, Protocol):
    """A sampler of trials that choose parameters themselves, as they run.

    What `ask` gives is a proposal: a trial leaves out what it has no use for, and draws what it lacks.

    A trace: ask(0) -> {}; start(0, {}); found(0, {"lr": 0.01}, notes); tell(0, ...); ask(1) -> {"lr": 0.02}
    """

    def found(self, trial_id: int, params: Params, notes: Mapping[str, Any]) -> None:
        """The parameters that a trial has had, and what it has noted. Comes before `tell`; replayed too."""
        ...
