"""Transfer: results of earlier studies as a start for a new one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from spark_hpo.errors import SpaceError
from spark_hpo.search.settings import require_number
from spark_hpo.search.space import Space
from spark_hpo.search.space.axis import Array, Axes
from spark_hpo.trial import Params

_GOOD = 0.15  # share of an earlier study's trials
_MAX_GOOD = 10  # per study
_MAX_REST = 100  # per study


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierTrial:
    """A trial of an earlier study. A failed trial has an infinite loss."""

    params: Params
    resource: int
    loss: float
    violation: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Knowledge:
    """Good and other configurations of earlier studies.

    Both are rows of positions on the axes of the new space. A parameter that the earlier study did not have
    is NaN; kernels use the prior there.
    """

    good: Array
    rest: Array
    scores: Array  # normal quantiles of the ranks in their studies, of the good ones, then of the rest
    best: tuple[Params, ...]  # the best configurations that are valid in the new space, best first
    discount: float  # weight of an earlier trial; a trial of the new study has 1

    @classmethod
    def none(cls, num_axes: int) -> Knowledge:
        """Return the knowledge of no studies."""
        empty = np.empty((0, num_axes))
        return cls(good=empty, rest=empty, scores=np.empty(0), best=(), discount=1.0)


def warm_start(
    space: Space,
    studies: Sequence[Sequence[EarlierTrial]],
    *,
    num_first: int = 3,
    discount: float = 0.3,
) -> Knowledge:
    """Collect what earlier studies know about a space. Losses are compared only within a study.

    Parameters are matched by name, and a value counts if the new space accepts it. Ranges may therefore have
    changed, and parameters may have been added or removed. The trials of a study are ranked at the highest
    resource that a third of them have reached, or at the highest of all; the best 15 % are good.

    Args:
        space: of the new study.
        studies: the trials of each study, in any order. The best configuration of the last study is
            proposed first.
        num_first: how many configurations to propose first, taken from the studies in turn, the best first.
        discount: weight of an earlier trial, > 0 and <= 1.

    Raises:
        ConfigError: the discount is out of range.
    """
    require_number("transfer.discount", discount, above=0, high=1)
    axes = Axes(space)
    good: list[tuple[Array, float]] = []  # rows and scores
    rest: list[tuple[Array, float]] = []
    queues: list[list[Params]] = []
    for trials in reversed(studies):
        ranked = _ranked(trials)
        num_finished = sum(math.isfinite(trial.loss) for trial in ranked)
        num_good = min(math.ceil(_GOOD * num_finished), _MAX_GOOD)
        scores = ndtri((np.arange(len(ranked)) + 0.5) / max(len(ranked), 1)).tolist()
        rows = list(zip((axes.known_row(trial.params) for trial in ranked), scores, strict=True))
        good += [known for known in rows[:num_good] if not np.isnan(known[0]).all()]
        rest += [known for known in rows[num_good:][:_MAX_REST] if not np.isnan(known[0]).all()]
        queues.append([p for trial in ranked[:num_good] if (p := _complete(space, trial.params)) is not None])
    best: list[Params] = []
    for i in range(max(map(len, queues), default=0)):
        for queue in queues:
            if i < len(queue) and queue[i] not in best:
                best.append(queue[i])
    return Knowledge(
        good=_stack([row for row, _ in good], len(axes)),
        rest=_stack([row for row, _ in rest], len(axes)),
        scores=np.array([score for _, score in [*good, *rest]]),
        best=tuple(best[:num_first]),
        discount=discount,
    )


def _ranked(trials: Sequence[EarlierTrial]) -> list[EarlierTrial]:
    """Rank the trials at the highest resource that a third of them have reached; failed ones last."""
    finished = [trial for trial in trials if math.isfinite(trial.loss)]
    failed = [trial for trial in trials if not math.isfinite(trial.loss)]
    if not finished:
        return failed
    resources = sorted({trial.resource for trial in finished}, reverse=True)
    # A trial that was stopped at a lower rung lost to the promoted ones, so it ranks behind them.
    level = next(
        (r for r in resources if 3 * sum(t.resource >= r for t in finished) >= len(finished)), resources[0]
    )
    finished.sort(key=lambda trial: (trial.resource < level, trial.violation, trial.loss))
    return finished + failed


def _complete(space: Space, params: Params) -> Params | None:
    """Return the configuration if it is valid in the new space."""
    try:
        valid = space.validate(params)
    except SpaceError:
        return None
    return valid if space.allows(valid) else None


def _stack(rows: list[Array], num_axes: int) -> Array:
    return np.stack(rows) if rows else np.empty((0, num_axes))
