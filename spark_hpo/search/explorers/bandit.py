"""PB2: an explorer that models which parameters currently improve the loss most."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from spark_hpo.objective import NO_SCORE, Score
from spark_hpo.search.explorers.gaussian_process import Points, TimeVaryingProcess
from spark_hpo.search.explorers.perturbation import PerturbationExplorer
from spark_hpo.search.scheduler import Slot
from spark_hpo.search.settings import require_integer
from spark_hpo.search.space.axis import Array
from spark_hpo.search.space.parameter import Normal
from spark_hpo.trial import Params

_NUM_DRAWN = 512  # candidates from the whole space
_NUM_NEAR = 128  # candidates around one position, for each width
_WIDTHS = (0.1, 0.05, 0.02)  # around the parent's position, then twice around the best candidate
_TAIL = 0.01  # quantiles of a normal number beyond this are not proposed
_INACTIVE = 0.5  # position of an inactive number
_TRIES = 200  # best candidates that are checked against the constraints

_Improvement = tuple[float, float]  # per epoch: of the violation, of the loss


@dataclass(frozen=True, slots=True)
class _Segment:
    """The training of a trial between two reports."""

    positions: Array  # of its numbers
    resource_to: int
    before: Score  # at its start; NO_SCORE: unknown


@dataclass(eq=False, kw_only=True)
class BanditExplorer(PerturbationExplorer):
    """Chooses the numbers of a child by a Gaussian process of the improvement per epoch.

    PB2: Parker-Holder et al. 2020, "Provably Efficient Online Hyperparameter Optimization with
    Population-Based Bandits", arXiv:2002.02518. Every report of every member is an observation: the
    improvement per epoch with these parameters at this time. Older observations count less
    (`TimeVaryingProcess`), because what is good early need not be good late. Of many candidates, the one with
    the largest mean + sqrt(beta) * deviation is taken. Slots in flight reduce the deviation like
    observations, so that children that start at the same time differ.

    - **Improvements** are replaced by their ranks and mapped to a normal distribution, so that one divergence
      does not hide all other differences, and the small improvements of late epochs count as much as early
      ones. A failure is the worst improvement.
    - **Limits.** A segment that reduces the violation of the limits improves more than any that does not.
    - **Context.** The rank of the member before the segment is an input of the model, as in the authors'
      code, because bad members improve easily, whatever their parameters are.
    - **Start.** Until there are `num_startup_segments` improvements, children are perturbed.
    - **Choices** that may change are resampled with `resample_probability`, as in perturbation.
    - **Valid.** Candidates that violate a constraint are skipped; if all do, the child is perturbed.

    The method is greedy. It does not anticipate parameters that pay off only later, such as a low learning
    rate at the end of a schedule.
    """

    handles_limits = True

    num_startup_segments: int = 8  # improvements before the model is used, >= 2
    max_segments: int = 300  # latest improvements to use; the time of a fit grows with its cube

    def __post_init__(self) -> None:
        require_integer("num_startup_segments", self.num_startup_segments, 2)
        require_integer("max_segments", self.max_segments, self.num_startup_segments)
        super().__post_init__()
        axes = self._axes.axes
        self._columns = [i for i, axis in enumerate(axes) if self._mutable[i] and not axis.options]
        self._numbers = [axes[i] for i in self._columns]
        self._in_flight: dict[int, _Segment] = {}  # by trial
        self._scores: dict[int, Score] = {}  # by trial, of its last report
        self._known: deque[tuple[_Segment, _Improvement]] = deque(maxlen=self.max_segments)

    def explore(self, slot: Slot, parent: Params) -> Params:
        perturbed = super().explore(slot, parent)
        if not self._numbers or len(self._known) < self.num_startup_segments:
            return perturbed
        point = self.space.flatten(perturbed)
        active = [axis.dimension.key in point for axis in self._numbers]
        for positions in self._ranked_candidates(slot, parent, active)[:_TRIES]:
            for axis, position in zip(self._numbers, positions, strict=True):
                if axis.dimension.key in point:
                    point[axis.dimension.key] = axis.value(float(position))
            child = self.space.unflatten(point)
            if self.space.allows(child):
                return child
        return perturbed

    def start(self, slot: Slot, params: Params) -> None:
        source = slot.trial_id if slot.parent is None else slot.parent
        self._in_flight[slot.trial_id] = _Segment(
            self._positions(params), slot.resource_to, self._scores.get(source, NO_SCORE)
        )

    def tell(self, slot: Slot, loss: float, *, violation: float = 0.0) -> None:
        segment = self._in_flight.pop(slot.trial_id)
        score = self._scores[slot.trial_id] = Score.of(loss, violation)
        if not score.is_finite:
            self._known.append((segment, (-math.inf, -math.inf)))
        elif segment.before.is_finite:
            epochs = slot.resource_to - slot.resource_from
            less_violation, less_loss = (b - a for b, a in zip(segment.before, score, strict=True))
            self._known.append((segment, (less_violation / epochs, less_loss / epochs)))

    def _ranked_candidates(self, slot: Slot, parent: Params, active: Sequence[bool]) -> Array:
        """Return candidates for the numbers of a child, the most promising first, [candidates, numbers]."""
        rng = np.random.default_rng((self.seed, slot.trial_id, 1))
        bound = _Bound([*self._known], [*self._in_flight.values()])
        before = NO_SCORE if slot.parent is None else self._scores[slot.parent]
        drawn = self._snap(rng.random((_NUM_DRAWN, len(active))), active)
        candidates, values = drawn, bound.at(drawn, slot.resource_to, before)
        centre = self._positions(parent)
        for width in _WIDTHS:
            near = self._snap(centre + width * rng.standard_normal((_NUM_NEAR, len(active))), active)
            candidates = np.concatenate([candidates, near])
            values = np.concatenate([values, bound.at(near, slot.resource_to, before)])
            centre = candidates[np.argmax(values)]
        return candidates[np.argsort(-values, kind="stable")]

    def _positions(self, params: Params) -> Array:
        row = self._axes.row(params)[self._columns]
        return np.where(np.isnan(row), _INACTIVE, row)

    def _snap(self, positions: Array, active: Sequence[bool]) -> Array:
        """Move positions to valid ones: within the bounds, and to the middle of a cell if rounded."""
        snapped = np.full_like(positions, _INACTIVE)
        for i, axis in enumerate(self._numbers):
            if active[i]:
                end = _TAIL if isinstance(axis.parameter, Normal) else 0.0
                inside = np.clip(positions[:, i], end, 1 - end)
                snapped[:, i] = inside if axis.edges is None else axis.centres(inside)
        return snapped


class _Bound:
    """The upper confidence bound of the improvement, given the segments so far."""

    def __init__(self, known: Sequence[tuple[_Segment, _Improvement]], in_flight: Sequence[_Segment]) -> None:
        segments = [segment for segment, _ in known]
        times = np.array([segment.resource_to for segment in [*segments, *in_flight]], dtype=float)
        # Time is relative to the span of the observations, as in the authors' code.
        self._span = max(float(np.ptp(times)), 1.0)
        self._before = sorted(segment.before for segment in segments if segment.before.is_finite)
        from scipy.stats import rankdata  # takes half a second to import

        order = {improvement: i for i, improvement in enumerate(sorted({each for _, each in known}))}
        ranks = rankdata([order[improvement] for _, improvement in known], method="average")
        targets: Array = ndtri((ranks - 0.5) / len(ranks))
        targets = (targets - targets.mean()) / max(float(targets.std()), 1e-9)
        self._in_flight = self._points(in_flight) if in_flight else None
        num_numbers = len(segments[0].positions)
        self._process = TimeVaryingProcess(self._points(segments), targets, groups=(*[0] * num_numbers, 1))
        # beta grows with the logarithm of the number of observations, as in the authors' code.
        self._sqrt_beta = math.sqrt(max(0.2 * math.log(0.4 * len(segments)), 0.0))

    def at(self, positions: Array, resource_to: int, before: Score) -> Array:
        """Return the bound for a child, [candidates]."""
        points = self._points([_Segment(row, resource_to, before) for row in positions])
        mean, deviation = self._process.predict(points, self._in_flight)
        bound: Array = mean + self._sqrt_beta * deviation
        return bound

    def _points(self, segments: Sequence[_Segment]) -> Points:
        inputs = [[*segment.positions, self._quantile(segment.before)] for segment in segments]
        times = np.array([segment.resource_to for segment in segments], dtype=float) / self._span
        return Points(inputs=np.array(inputs), times=times)

    def _quantile(self, before: Score) -> float:
        """Return the share of known scores that are better; 0 for the best score."""
        if not (before.is_finite and self._before):
            return 0.5
        return bisect_left(self._before, before) / len(self._before)
