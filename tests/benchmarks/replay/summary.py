"""Replays put together: medians over seeds, rows for a file, ranks over tasks and points in time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import pandas as pd

from tests.benchmarks.replay.run import Replay

POINTS = (0.1, 0.25, 0.5, 1.0)
"""Shares of the budget at which regret is read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One method on one task: medians over seeds."""

    task: str
    method: str
    slots: int
    seeds: int
    regret: Mapping[float, float]  # by share of the budget
    busy: float  # the lowest of the seeds
    proposals_per_s: float
    pool_low_at: float | None  # the earliest of the seeds, as a share of the budget; None: never

    def to_json(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "method": self.method,
            "slots": self.slots,
            "seeds": self.seeds,
            "regret": {f"{point:g}" if point < 1 else "1.0": regret for point, regret in self.regret.items()},
            "busy": self.busy,
            "proposals_per_s": self.proposals_per_s,
            "pool_low_at": self.pool_low_at,
        }


def summarise(replays: Iterable[Replay]) -> list[Row]:
    """One row for each task, method and number of slots, in the order of their first replays."""
    groups: dict[tuple[str, str, int], list[Replay]] = defaultdict(list)
    for one in replays:
        groups[one.task, one.method, one.slots].append(one)
    return [
        Row(
            task=task,
            method=method,
            slots=slots,
            seeds=len(group),
            regret={point: median(one.regret(point) for one in group) for point in POINTS},
            busy=min(one.busy for one in group),
            proposals_per_s=median(one.proposals_per_s for one in group),
            pool_low_at=min((o.pool_low_at for o in group if o.pool_low_at is not None), default=None),
        )
        for (task, method, slots), group in groups.items()
    ]


def average_ranks(rows: Sequence[Row]) -> dict[str, float]:
    """For each method its mean rank, 1 the best, over tasks, numbers of slots and points in time.

    Methods that tie share the mean of their ranks. Only methods that ran everywhere can be compared.
    """
    methods = list(dict.fromkeys(row.method for row in rows))
    problems = list(dict.fromkeys((row.task, row.slots) for row in rows))
    regrets = {(row.task, row.slots, row.method): row.regret for row in rows}
    everywhere = [m for m in methods if all((*problem, m) in regrets for problem in problems)]
    ranks: dict[str, list[float]] = {method: [] for method in everywhere}
    for task, slots in problems:
        for point in POINTS:
            values = [regrets[task, slots, method][point] for method in everywhere]
            for method, rank in zip(everywhere, pd.Series(values).rank(), strict=True):
                ranks[method].append(float(rank))
    means = {method: sum(r) / len(r) for method, r in ranks.items()}
    return dict(sorted(means.items(), key=lambda item: item[1]))


def to_markdown(rows: Sequence[Row]) -> str:
    """A table: for each method and problem the regret at the four points, slots busy, proposals a second."""
    lines = [
        "| task | slots | method | seeds | 10 % | 25 % | 50 % | 100 % | busy | proposals/s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        # A star where the finite pool had run low by then: the regret says little from there on.
        low = 2.0 if row.pool_low_at is None else row.pool_low_at
        points = [f"{row.regret[point]:.3f}{'*' if point >= low else ''}" for point in POINTS]
        cells = [row.task, str(row.slots), row.method, str(row.seeds), *points]
        cells += [f"{row.busy:.1%}", f"{row.proposals_per_s:,.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    if any(row.pool_low_at is not None for row in rows):
        lines += ["", "\\* half of the pool of configurations, or more, had been drawn by then."]
    return "\n".join(lines) + "\n"
