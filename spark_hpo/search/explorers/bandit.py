"""Exploring by a model: PB2, which learns which parameters make the loss fall fastest now."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from spark_hpo.objective import NO_SCORE, Score
from spark_hpo.search.explorer import Explorer
from spark_hpo.search.explorers.gaussian_process import Points, TimeVaryingProcess
from spark_hpo.search.explorers.perturbation import PerturbationExplorer
from spark_hpo.search.scheduler import Slot
from spark_hpo.search.settings import require_integer
from spark_hpo.search.space import Space
from spark_hpo.search.space.axis import Array, Axes, Axis
from spark_hpo.search.space.parameter import Normal
from spark_hpo.trial import Params

_NUM_DRAWN = 512  # candidates from the whole space
_NUM_NEAR = 128  # candidates around one place
_WIDTHS = (0.1, 0.05, 0.02)  # around the parent's place, then twice around the best candidate
_TAIL = 0.01  # a normal number has no end: the quantiles beyond are not proposed
_INACTIVE = 0.5  # the place of a number that a configuration does not have
_TRIES = 200  # candidates, the best first, of which one must meet the constraints


_Improvement = tuple[float, float]  # of the violation, then of the loss, in each epoch


@dataclass(frozen=True, slots=True)
class _Segment:
    """A trial's way from one report to the next."""

    places: Array  # of its numbers
    resource_to: int
    before: Score  # at its start; NO_SCORE: not known


class BanditExplorer(Explorer):
    """Proposes the numbers of a child where a Gaussian process sees the loss fall fastest.

    PB2: Parker-Holder et al. 2020, "Provably Efficient Online Hyperparameter Optimization with
    Population-Based Bandits", arXiv:2002.02518. Every report of every member is an observation: with these
    parameters, at this time, the loss has fallen so much an epoch. The process forgets
    (`TimeVaryingProcess`), for what is good early need not be good late. Of many candidates the one with
    the largest mean + sqrt(beta) * deviation is taken, where slots in flight count as observed for the
    deviation: children that start together do not go to one place.

    - **Improvements** are ranked and spread as a normal distribution: one collapse does not hide
      all other differences, and late ones, which are small, count like early ones. A failure is the worst.
    - **Limits.** A segment that reduces the violation of the limits improves more than any that does not.
    - **Context.** How good a member was before is a column of the model too, as in the authors' own code:
      one that is behind improves easily, whatever its parameters are.
    - **Start.** Until there are `num_startup_segments` improvements, children are perturbed.
    - **Choices** that may change are drawn anew with `resample_probability`, as in perturbation.
    - **Valid.** A candidate that breaks a constraint is passed over; where all do, the child is perturbed.

    It is greedy: what pays only later, a low learning rate at the end of a schedule, is seen when it pays.

    Args:
        space: what is tuned.
        seed: of the study.
        parameters: names of those that may change, as `optimizer.momentum`; None: all continuous numbers.
        num_startup_segments: improvements to be known before the model is asked, 2 at least.
        max_segments: the latest ones, of which the model is made; a fit costs their cube.
        perturbation: step before that, in parts of the range, above 0 and at most 0.5.
        resample_probability: of drawing anew before that, and of choices, 0..1.
    """

    handles_limits = True

    def __init__(
        self,
        space: Space,
        seed: int,
        *,
        parameters: Sequence[str] | None = None,
        num_startup_segments: int = 8,
        max_segments: int = 300,
        perturbation: float = 0.1,
        resample_probability: float = 0.25,
    ) -> None:
        require_integer("num_startup_segments", num_startup_segments, 2)
        require_integer("max_segments", max_segments, num_startup_segments)
        self.space = space
        self.seed = seed
        self.num_startup_segments = num_startup_segments
        self._perturbation = PerturbationExplorer(
            space,
            seed,
            parameters=parameters,
            perturbation=perturbation,
            resample_probability=resample_probability,
        )
        self._axes = Axes(space)
        self._numbers = [
            axis
            for axis, mutable in zip(self._axes.axes, self._perturbation.mutable, strict=True)
            if mutable and not axis.options
        ]
        self._in_flight: dict[int, _Segment] = {}  # by trial
        self._scores: dict[int, Score] = {}  # by trial, of its last report
        self._known: deque[tuple[_Segment, _Improvement]] = deque(maxlen=max_segments)

    def explore(self, slot: Slot, parent: Params) -> Params:
        """The parameters of a child, to be started next. Never changes what has been learned."""
        perturbed = self._perturbation.explore(slot, parent)
        if not self._numbers or len(self._known) < self.num_startup_segments:
            return perturbed
        point = self.space.flatten(perturbed)
        has = [axis.dimension.key in point for axis in self._numbers]
        for places in self._best_first(slot, parent, has)[:_TRIES]:
            for axis, place in zip(self._numbers, places, strict=True):
                if axis.dimension.key in point:
                    point[axis.dimension.key] = axis.value(float(place))
            child = self.space.unflatten(point)
            if self.space.allows(child):
                return child
        return perturbed

    def start(self, slot: Slot, params: Params) -> None:
        """The slot runs with these parameters: it is in flight until told."""
        ahead = slot.trial_id if slot.parent is None else slot.parent
        self._in_flight[slot.trial_id] = _Segment(
            self._places(params), slot.resource_to, self._scores.get(ahead, NO_SCORE)
        )

    def tell(self, slot: Slot, loss: float, *, violation: float = 0.0) -> None:
        """Learn the loss at the end of a slot; infinite or NaN for a failure."""
        segment = self._in_flight.pop(slot.trial_id)
        score = self._scores[slot.trial_id] = Score.of(loss, violation)
        if not score.is_finite:
            self._known.append((segment, (-math.inf, -math.inf)))
        elif segment.before.is_finite:
            epochs = slot.resource_to - slot.resource_from
            less_violation, less_loss = (b - a for b, a in zip(segment.before, score, strict=True))
            self._known.append((segment, (less_violation / epochs, less_loss / epochs)))

    def _best_first(self, slot: Slot, parent: Params, has: Sequence[bool]) -> Array:
        """Candidates for the numbers that the child has, by what they promise: [candidates, numbers]."""
        rng = np.random.default_rng((self.seed, slot.trial_id, 1))
        bound = _Bound([*self._known], [*self._in_flight.values()])
        before = NO_SCORE if slot.parent is None else self._scores[slot.parent]
        drawn = self._proper(rng.random((_NUM_DRAWN, len(has))), has)
        candidates, values = drawn, bound.at(drawn, slot.resource_to, before)
        centre = self._places(parent)
        for width in _WIDTHS:
            near = self._proper(centre + width * rng.standard_normal((_NUM_NEAR, len(has))), has)
            candidates = np.concatenate([candidates, near])
            values = np.concatenate([values, bound.at(near, slot.resource_to, before)])
            centre = candidates[np.argmax(values)]
        return candidates[np.argsort(-values, kind="stable")]

    def _places(self, params: Params) -> Array:
        point = self.space.flatten(params)
        keys = [axis.dimension.key for axis in self._numbers]
        return np.array(
            [
                axis.place(point[key]) if key in point else _INACTIVE
                for axis, key in zip(self._numbers, keys, strict=True)
            ]
        )

    def _proper(self, places: Array, has: Sequence[bool]) -> Array:
        """Places as a configuration has them: within the ends, in the middle of a cell where it has cells."""
        columns = zip(self._numbers, has, places.T, strict=True)
        return np.stack(
            [
                _snapped(axis, one) if is_there else np.full_like(one, _INACTIVE)
                for axis, is_there, one in columns
            ],
            axis=1,
        )


class _Bound:
    """The upper confidence bound of the improvement, from what is known now."""

    def __init__(self, known: Sequence[tuple[_Segment, _Improvement]], in_flight: Sequence[_Segment]) -> None:
        segments = [segment for segment, _ in known]
        times = np.array([segment.resource_to for segment in [*segments, *in_flight]], dtype=float)
        # Time is counted in parts of what has been seen, as in the authors' code.
        self._span = max(float(np.ptp(times)), 1.0)
        self._before = sorted(segment.before for segment in segments if segment.before.is_finite)
        from scipy.stats import rankdata  # half a second, which no other method has to spend

        order = {improvement: i for i, improvement in enumerate(sorted({each for _, each in known}))}
        ranks = rankdata([order[improvement] for _, improvement in known], method="average")
        targets: Array = ndtri((ranks - 0.5) / len(ranks))
        targets = (targets - targets.mean()) / max(float(targets.std()), 1e-9)
        self._in_flight = self._points(in_flight) if in_flight else None
        num_numbers = len(segments[0].places)
        self._process = TimeVaryingProcess(self._points(segments), targets, groups=(*[0] * num_numbers, 1))
        # Of the authors' code: beta grows with the logarithm of what is known.
        self._sqrt_beta = math.sqrt(max(0.2 * math.log(0.4 * len(segments)), 0.0))

    def at(self, places: Array, resource_to: int, before: Score) -> Array:
        """The bound for a child: [candidates]."""
        points = self._points([_Segment(row, resource_to, before) for row in places])
        mean, deviation = self._process.predict(points, self._in_flight)
        bound: Array = mean + self._sqrt_beta * deviation
        return bound

    def _points(self, segments: Sequence[_Segment]) -> Points:
        inputs = [[*segment.places, self._standing(segment.before)] for segment in segments]
        times = np.array([segment.resource_to for segment in segments], dtype=float) / self._span
        return Points(inputs=np.array(inputs), times=times)

    def _standing(self, before: Score) -> float:
        """The share of known scores that are better: 0 for the best."""
        if not (before.is_finite and self._before):
            return 0.5
        return bisect_left(self._before, before) / len(self._before)


def _snapped(axis: Axis, places: Array) -> Array:
    end = _TAIL if isinstance(axis.parameter, Normal) else 0.0
    places = np.clip(places, end, 1 - end)
    return places if axis.edges is None else axis.centres(places)
