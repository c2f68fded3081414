"""The sampler protocol: samplers propose parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from spark_hpo.trial import FailureKind, HalvedBatches, Params, Report

if TYPE_CHECKING:
    from spark_hpo.search.pareto import Losses
    from spark_hpo.search.samplers.transfer import Knowledge


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a slot of a trial took, and how it ended. Samplers learn from it what a configuration costs."""

    units: int  # of the resource that were trained
    seconds: float  # from submission to report
    failure: FailureKind | None = None
    is_pruned: bool = False  # the training function gave the trial up
    num_halved: int = 0  # times that batches were halved because they did not fit a device
    memory_bytes: int | None = None  # most memory of a GPU or, without GPUs, of a rank; None: not measured
    memory_limit_bytes: int | None = None  # of the smallest of these GPUs, or a rank's share; None: unknown
    is_gpu_memory: bool = False  # the memory is that of a GPU

    @property
    def is_lost(self) -> bool:
        """True if the trial failed for a reason outside of its configuration, such as a lost executor."""
        return self.failure not in (None, FailureKind.TRIAL, FailureKind.MEMORY)

    @classmethod
    def of(cls, report: Report, *, resource_from: int) -> Outcome:
        """Return the outcome of the slot that a report ends."""
        halved = HalvedBatches.of(report.notes)
        of_gpus = [(use.gpu_memory_bytes, use.gpu_memory_total_bytes) for use in report.usage]
        of_ranks = [(use.memory_bytes, use.memory_limit_bytes) for use in report.usage]
        is_gpu_memory = any(used is not None for used, _ in of_gpus)
        memory = of_gpus if is_gpu_memory else of_ranks
        return cls(
            units=report.resource - resource_from,
            seconds=report.seconds,
            failure=None if report.failure is None else report.failure.kind,
            is_pruned=report.is_pruned,
            num_halved=0 if halved is None else halved.times,
            memory_bytes=max((used for used, _ in memory if used is not None), default=None),
            memory_limit_bytes=min((limit for _, limit in memory if limit is not None), default=None),
            is_gpu_memory=is_gpu_memory,
        )


@runtime_checkable
class Sampler(Protocol):
    """Proposes parameters for new trials and learns from the losses of earlier ones.

    A trace:
        ask(0) -> {"lr": 0.01}; start(0, {"lr": 0.01}); tell(0, resource=1, loss=0.7)
        ask(1) -> {"lr": 0.03}; start(1, {"lr": 0.03})            # 1 is in flight
        ask(2) -> ...                                             # has the loss of 0, and 1 in flight
        tell(0, resource=3, loss=0.5)                             # 0 was promoted

    A study that resumes replays `start` and `tell` from the journal and never calls `ask`; the sampler must
    then be in the same state as before. A proposal may therefore depend only on the seed, the trial id and
    what the sampler was told, not on a clock or a global random generator.

    `ask`, `start` and `tell` are enough. A class that supports more derives from this one and declares it in
    the attributes below; a class that does not derive gets their defaults.
    """

    supports_multiple_objectives: bool = False
    """Learns from all losses of a trial, or from none. Other samplers are refused with several objectives."""

    handles_constraints: bool = False
    """Proposes only configurations that meet the constraints of its space. The study repairs the proposals of
    other samplers."""

    handles_limits: bool = False
    """Uses `violation`. Other samplers are told that a trial that violates a limit has failed."""

    is_define_by_run: bool = False
    """Does not know the space: trials choose their parameters as they run. Implements `resolve_params`."""

    accepts_foreign: bool = False
    """`start` accepts configurations outside of the space, as after a change of its ranges, and learns from
    their other parameters. Other samplers get the nearest configuration of the space."""

    size: int | None = None
    """Number of trials after which there is nothing left to propose; None: no limit."""

    def ask(self, trial_id: int) -> Params:
        """Propose parameters for a new trial, to be started next. Must not change what was learned."""
        ...

    def start(self, trial_id: int, params: Params) -> None:
        """Note that a trial runs with these parameters, proposed or not. It is in flight until `tell`."""
        return

    def tell(
        self, trial_id: int, *, resource: int, loss: float, others: Losses = (), violation: float = 0.0
    ) -> None:
        """Learn the losses of a trial, all to be minimised.

        Args:
            resource: `Slot.resource_to`, the target of the slot, even if training stopped earlier on a
                plateau: losses are compared between trials of the same rung.
            loss: of the first objective; infinite or NaN for a failed trial.
            others: losses of the further objectives, always in the same order.
            violation: by how much the trial violates the study's limits; 0: not at all. Passed only if
                `handles_limits`.
        """
        return

    def note(self, trial_id: int, outcome: Outcome) -> None:
        """Learn how a slot of a trial went, beside its losses. Called before `tell`; ignored by default."""
        return

    def expected(self, trial_ids: Sequence[int]) -> Sequence[float] | None:
        """Return how trials that have reported would end, each as a number, lower is better.

        A scheduler that is guided promotes the trial with the lowest one. None: no opinion.
        """
        return None

    def learn_from(self, knowledge: Knowledge) -> None:
        """Take results of earlier studies as a prior. Called before the first trial; ignored by default."""
        return

    def resolve_params(self, trial_id: int, params: Params, notes: Mapping[str, Any]) -> None:
        """Learn which parameters a define-by-run trial used, and its notes. Called before `tell`.

        `ask` proposes values for parameters of earlier trials. A trial ignores those that it does not need
        and draws those that are missing.

        A trace:
            ask(0) -> {}; start(0, {}); resolve_params(0, {"lr": 0.01}, notes); tell(0, ...)
            ask(1) -> {"lr": 0.02}
        """
        return
