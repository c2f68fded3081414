"""The backend protocol: backends run assignments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Protocol

from spark_hpo.trial import Assignment, FailureKind, Part, RankUse, Report

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_LISTED_RANKS = 8  # of each kind: the journal stays small with any number of ranks


@dataclass(frozen=True, slots=True)
class RanksByRung:
    """Ranks of an assignment, which may grow with its rung.

    A slot has room for an assignment of the lowest rung; wider ones take several slots.

    A trace: RanksByRung.of({0: 1, 2: 4}): ranks(1) -> 1; ranks(2) -> 4; ranks(3) -> 4; slots(3) -> 4
    """

    steps: tuple[tuple[int, int], ...]
    """(lowest rung, ranks), both ascending, from rung 0. All are multiples of the first number of ranks."""

    @classmethod
    def of(cls, world_size: int | Mapping[int, int]) -> RanksByRung:
        by_rung = {0: world_size} if isinstance(world_size, int) else world_size
        return cls(tuple(sorted(by_rung.items())))

    @property
    def fewest(self) -> int:
        return self.steps[0][1]

    @property
    def most(self) -> int:
        return self.steps[-1][1]

    def ranks(self, rung: int) -> int:
        return max(ranks for lowest, ranks in self.steps if lowest <= rung)

    def slots(self, rung: int) -> int:
        """The slots that an assignment of this rung takes."""
        return self.ranks(rung) // self.fewest


ONE_RANK = RanksByRung.of(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedSlots:
    """Slots of a backend that other studies of this process may use too."""

    key: str  # equal for backends that share their slots
    size: Callable[[], Fraction]  # of one assignment, now, as a fraction of all slots
    wake: Callable[[], None]  # makes `wait` return early; any thread may call it


class Share(Protocol):
    """A study's part of the slots.

    Slots are those of assignments in the lowest rung; a wider assignment takes several.

    A trace, of 2 slots and another study: take(0) -> True; take(1) -> False; the other study's assignment
        ends; take(1) -> True; rest(2): there is nothing else to start
    """

    @property
    def num_studies(self) -> int:
        """The number of studies that share the slots, this one included."""
        ...

    def num_slots(self, fit: int) -> int:
        """The part of `fit` slots that the study has by its weight. It may fill more while others rest."""
        ...

    def take(self, running: int) -> bool:
        """Return whether the study may start an assignment now, beside the `running` slots that it uses.

        After False, free slots are kept for it when it is its turn.
        """
        ...

    def hold(self, running: int, slots: int) -> bool:
        """Return whether the assignment that was just taken may start, although it needs several slots.

        After False, all slots that become free are kept for it. Ask again until it is True.
        """
        ...

    def rest(self, running: int) -> None:
        """Leave free slots to other studies: this one has nothing to start now."""
        ...


class Unshared:
    """All slots belong to one study."""

    num_studies = 1

    def num_slots(self, fit: int) -> int:
        return fit

    def take(self, running: int) -> bool:
        return True

    def hold(self, running: int, slots: int) -> bool:
        return True

    def rest(self, running: int) -> None:
        pass


class Backend(Protocol):
    """Runs assignments. A failure is a report, never an exception.

    A trace: num_slots -> 2; submit(a); submit(b); wait(10) -> report of b; wait(10) -> None (10 s passed)
    """

    @property
    def num_slots(self) -> int:
        """The number of assignments that fit at once, now. Those in flight are not subtracted."""
        ...

    @property
    def shared_slots(self) -> SharedSlots | None:
        """The slots, if other studies of this process may use them too."""
        ...

    def submit(self, assignment: Assignment) -> None:
        """Start an assignment and return at once. The caller submits at most `num_slots` at a time."""
        ...

    def wait(self, timeout: float) -> Report | None:
        """The next report, or None after `timeout` seconds."""
        ...

    def cancel(self, trial_id: int, part: Part = None) -> None:
        """Stop the assignment of a trial, or of one of its folds, if it is in flight. It will not report."""
        ...

    def close(self) -> None:
        """Cancel all assignments in flight and release all resources. Idempotent."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BarrierContext:
    """Exchanges texts between the ranks of one Spark barrier job, when the driver serves no rendezvous store.

    Never leaves its task.
    """

    host: str  # of this rank, as its peers reach it
    gather: Callable[[str], Sequence[str]]  # waits for all ranks, and returns their texts by rank


class Frames(Protocol):
    """DataFrames that the trials of a study share."""

    def get(self, name: str, make: Callable[[], DataFrame]) -> DataFrame:
        """The DataFrame of this name, which is made and cached at the first call."""
        ...

    def fold(
        self, frame: DataFrame, number: int | None, count: int, *, seed: int
    ) -> tuple[DataFrame, DataFrame]:
        """The training and the held-out rows of a fold, 1 to `count`; None: all rows, twice."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverContext:
    """Spark, slots and shared frames for an assignment that runs in a thread of the driver. Never pickled."""

    spark: SparkSession
    num_slots: int  # task slots that are reserved for the assignment
    frames: Frames
    is_cancelled: Callable[[], bool]


class RankFunction(Protocol):
    """Runs one rank of an assignment, on any machine. Never raises."""

    def __call__(
        self,
        assignment: Assignment,
        *,
        rank: int,
        world_size: int,
        gpus: Sequence[int] = (),
        barrier: BarrierContext | None = None,
        driver: DriverContext | None = None,
    ) -> Report:
        """
        Args:
            gpus: N of each `cuda:N` assigned to this rank; empty: the rank uses the CPU.
            barrier: for the rendezvous of the ranks, when the driver serves no rendezvous store.
            driver: of a rank that runs in a thread of the driver; None: it has a process of its own.
        """
        ...


def merge_reports(by_rank: Iterable[Report], *, seconds: float) -> Report:
    """Merge the reports of an assignment's ranks, in the order of the ranks, into one.

    When a rank fails, its peers fail too, because their connection to it closes. So a failure of the trial's
    own code or of the table is the cause, on whichever rank it happened.
    """
    reports = list(by_rank)
    failed = [report for report in reports if report.failure is not None]
    causes = [r for r in failed if r.failure and r.failure.kind is not FailureKind.INFRASTRUCTURE]
    usage = merge_usage(use for report in reports for use in report.usage)
    return replace([*causes, *failed, *reports][0], seconds=seconds, usage=usage)


def merge_usage(ranks: Iterable[RankUse]) -> tuple[RankUse, ...]:
    """Return the use of the ranks, but at most of the 8 that waited most and of the 8 with most memory.

    Only the first of them keeps its samples.
    """
    waited = sorted(ranks, key=lambda use: -(use.wait_share or 0.0))
    largest = sorted(waited, key=lambda use: -(use.memory_bytes or 0))
    kept = [*waited[:_LISTED_RANKS], *(use for use in largest if use not in waited[:_LISTED_RANKS])]
    found = sorted(kept[: 2 * _LISTED_RANKS], key=lambda use: use.rank)
    return (*found[:1], *(replace(use, samples=()) for use in found[1:]))
