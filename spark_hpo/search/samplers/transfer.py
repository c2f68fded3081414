"""Transfer: what earlier studies have found, for a study that begins."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spark_hpo.errors import SpaceError
from spark_hpo.search.settings import require_number
from spark_hpo.search.space import Space
from spark_hpo.search.space.axis import Array, Axes
from spark_hpo.trial import Params

_GOOD = 0.15  # share of an earlier study's trials that are good
_MAX_GOOD = 10  # of each study
_MAX_REST = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierTrial:
    """A trial of an earlier study. A failed one has an infinite loss."""

    params: Params
    resource: int
    loss: float
    violation: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Knowledge:
    """Where earlier studies found good configurations, and where the others lay.

    Rows of places on the axes of the new space, NaN where the earlier study had no such parameter: there
    a kernel has the prior.
    """

    good: Array
    rest: Array
    first: tuple[Params, ...]  # the best configurations, complete and valid in the new space, best first
    discount: float  # weight of an earlier trial, where one of the study itself has 1

    @classmethod
    def none(cls, num_axes: int) -> Knowledge:
        """Nothing is known."""
        empty = np.empty((0, num_axes))
        return cls(good=empty, rest=empty, first=(), discount=1.0)


def warm_start(
    space: Space,
    studies: Sequence[Sequence[EarlierTrial]],
    *,
    num_first: int = 3,
    discount: float = 0.3,
) -> Knowledge:
    """What earlier studies say about a space. Losses are compared within a study only.

    Parameters are matched by name: a value counts where the new space would accept it, and is as good as
    absent where it would not. So ranges may have moved, and parameters may have come or gone. A study's
    trials are ranked at the highest resource that a third of them have reached, or at the highest of all
    where there is none; the best 15 % are good.

    Args:
        space: of the new study.
        studies: the trials of each, in any order; the last study's best configuration comes first.
        num_first: how many configurations to start with, in turn from each study, the best ones first.
        discount: weight of an earlier trial, above 0 and at most 1.

    Raises:
        ConfigError: the discount is out of range.
    """
    require_number("transfer.discount", discount, above=0, high=1)
    axes = Axes(space)
    good: list[Array] = []
    rest: list[Array] = []
    queues: list[list[Params]] = []
    for trials in reversed(studies):
        ranked = _ranked(trials)
        num_finished = sum(math.isfinite(trial.loss) for trial in ranked)
        num_good = min(math.ceil(_GOOD * num_finished), _MAX_GOOD)
        rows = [_row(axes, trial.params) for trial in ranked]
        good += [row for row in rows[:num_good] if not np.isnan(row).all()]
        rest += [row for row in rows[num_good:][:_MAX_REST] if not np.isnan(row).all()]
        queues.append([p for trial in ranked[:num_good] if (p := _complete(space, trial.params)) is not None])
    first: list[Params] = []
    for place in range(max(map(len, queues), default=0)):
        for queue in queues:
            if place < len(queue) and queue[place] not in first:
                first.append(queue[place])
    return Knowledge(
        good=_stack(good, len(axes)),
        rest=_stack(rest, len(axes)),
        first=tuple(first[:num_first]),
        discount=discount,
    )


def _ranked(trials: Sequence[EarlierTrial]) -> list[EarlierTrial]:
    """The trials at the highest resource that many have reached, the best first; failures last."""
    finished = [trial for trial in trials if math.isfinite(trial.loss)]
    failed = [trial for trial in trials if not math.isfinite(trial.loss)]
    if not finished:
        return failed
    resources = sorted({trial.resource for trial in finished}, reverse=True)
    # A trial stopped at a lower rung has lost to those that went on: it ranks behind them.
    level = next(
        (r for r in resources if 3 * sum(t.resource >= r for t in finished) >= len(finished)), resources[0]
    )
    finished.sort(key=lambda trial: (trial.resource < level, trial.violation, trial.loss))
    return finished + failed


def _row(axes: Axes, params: Mapping[str, Any]) -> Array:
    row = np.full(len(axes), math.nan)
    for i, axis in enumerate(axes.axes):
        if not all(row[choice] == option for choice, option in axes.conditions[i]):
            continue
        value: Any = params
        for part in axis.dimension.path:
            value = value.get(part) if isinstance(value, Mapping) else None
        place = axis.match(value)
        if place is not None:
            row[i] = place
    return row


def _complete(space: Space, params: Params) -> Params | None:
    """The configuration in the new space, if it is one there."""
    try:
        valid = space.validate(params)
    except SpaceError:
        return None
    return valid if space.allows(valid) else None


def _stack(rows: list[Array], num_axes: int) -> Array:
    return np.stack(rows) if rows else np.empty((0, num_axes))
