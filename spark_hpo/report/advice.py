"""Advice for the next study: parameters whose range is too narrow, and whether more trials would help."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import median

from spark_hpo.errors import SpaceError, number
from spark_hpo.report.study_record import StudyRecord
from spark_hpo.search.space.axis import Axes, Axis
from spark_hpo.search.space.parameter import Uniform
from spark_hpo.search.stopping import RegretBound
from spark_hpo.trial import Trial

_TOP = 5  # trials that must agree about an edge
_MIN_TRIALS = 20
_AT_EDGE = 0.05  # of the range, for the best trial
_NEAR_EDGE = 0.15  # for the others
_FACTOR = 10**0.5  # by which to widen a logarithmic range
_MORE_WOULD_END = ("trials", "resource", "seconds", "cost")  # endings by a budget
_MIN_LOSSES = 10
_GAIN = 0.05  # of the distance from the best to the median trial


def narrow_ranges(record: StudyRecord) -> Iterator[str]:
    """Yield a sentence for each parameter that is at an edge of its range in all of the best trials."""
    top = record.ranking[:_TOP]
    if len(record.ranking) < _MIN_TRIALS or record.is_running:
        return
    try:
        axes = Axes(record.space)
        rows = [axes.row(trial.params) for trial in top]
    except SpaceError:
        return
    for i, axis in enumerate(axes.axes):
        positions = [float(row[i]) for row in rows]
        if not isinstance(axis.parameter, Uniform) or any(math.isnan(p) for p in positions):
            continue
        for is_upper in (False, True):
            if _are_at_edge(axis, [1 - p for p in positions] if is_upper else positions):
                yield from _widening(axis, top, is_upper=is_upper)


def edges_of(record: StudyRecord, best: Trial) -> dict[str, str]:
    """Return by parameter which end of its range the best trial has reached, in words."""
    try:
        axes = Axes(record.space)
        row = axes.row(best.params)
    except SpaceError:
        return {}
    found = {}
    for i, axis in enumerate(axes.axes):
        if not isinstance(axis.parameter, Uniform) or math.isnan(row[i]):
            continue
        low, high = axis.parameter.bounds()
        name = ".".join(map(str, axis.dimension.path))
        if _are_at_edge(axis, [1 - float(row[i])]):
            found[name] = f"at the upper end of its range, {number(high)}"
        elif low != 0 and _are_at_edge(axis, [float(row[i])]):  # 0 is probably the natural end
            found[name] = f"at the lower end of its range, {number(low)}"
    return found


def _are_at_edge(axis: Axis, distances: list[float]) -> bool:
    """Return True if all trials are at the edge.

    Args:
        distances: from the edge, as a share of the range; of the best trial first.
    """
    # Rounded numbers are in the middle of their cells.
    cell = 0.0 if axis.edges is None else 0.5 / (len(axis.edges) - 1)
    if cell > _AT_EDGE:
        return all(distance < 1.5 * cell for distance in distances)
    return distances[0] <= _AT_EDGE + cell and all(distance <= _NEAR_EDGE for distance in distances)


def _widening(axis: Axis, top: tuple[Trial, ...], *, is_upper: bool) -> Iterator[str]:
    parameter = axis.parameter
    assert isinstance(parameter, Uniform)
    name = ".".join(map(str, axis.dimension.path))
    low, high = parameter.bounds()
    if not is_upper and low == 0:
        return  # probably the natural end, such as no dropout
    if parameter.log:
        wider = high * _FACTOR if is_upper else low / _FACTOR
    else:
        wider = high + (high - low) / 2 if is_upper else low - (high - low) / 2
        wider = wider if is_upper or low < 0 else max(wider, 0.0)
    wider = round(wider) if parameter.integer else float(f"{wider:.1g}")
    end, bound, edge = ("upper", high, "high") if is_upper else ("lower", low, "low")
    yield (
        f"The {len(top)} best trials have {name} at the {end} end of its range, {bound:g}: better values may "
        f"be beyond it. In the next study, set space.{name}.{edge} to {wider:g}, for example."
    )


def outlook(record: StudyRecord) -> str | None:
    """Say whether more trials would help; None: a budget has not ended the search, or it was too short.

    Two figures decide: how much the second half of the trials has improved the best loss, and how much
    twice as many are expected to improve it (`RegretBound`). Both are compared with the distance from the
    best to the median trial.
    """
    if record.is_running or record.ending not in _MORE_WOULD_END or record.objective.extra_objectives:
        return None
    trials = [trial for trial in record.ranking if math.isfinite(trial.loss) and not trial.violation]
    if len(trials) < _MIN_LOSSES:
        return None
    metric = record.objective.metric
    earlier = sorted(trials, key=lambda trial: trial.trial_id)[: len(trials) // 2]
    best, before = trials[0], min(earlier, key=lambda trial: trial.score)
    spread = median(trial.loss for trial in trials) - best.loss
    if spread <= 0:
        return None
    rule = RegretBound(record.search.max_resource, 1.0, _MIN_LOSSES)
    for trial in trials:
        rule.observe(resource=trial.resource, loss=trial.loss, seconds=0.0)
    expected = rule.expected_gain if math.isfinite(rule.expected_gain) else 0.0
    improved = before.loss - best.loss
    did = "improved" if improved > 0 else "did not improve"
    values = f"from {before.metrics[metric]:.4g} to {best.metrics[metric]:.4g}" if improved > 0 else ""
    past = f"the second half of the {len(trials)} trials {did} {metric} {values}".rstrip()
    future = f", and twice as many are expected to gain about {expected:.2g}" if expected else ""
    helps = max(improved, expected) >= _GAIN * spread
    verdict = "More trials would probably help" if helps else "More trials would help little"
    return f"{verdict}: {past}{future}."
