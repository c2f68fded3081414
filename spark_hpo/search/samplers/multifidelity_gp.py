"""A Gaussian process that learns from the results at all rungs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np
from scipy.special import log_ndtr, ndtr

from spark_hpo.search.pareto import Losses
from spark_hpo.search.samplers.final_scores import FinalScores, final_scores
from spark_hpo.search.samplers.history import Ranking
from spark_hpo.search.samplers.multivariate_tpe import MultivariateTpeSampler
from spark_hpo.search.samplers.parzen import Bandwidth, ParzenEstimator
from spark_hpo.search.samplers.process import Observations, Process, embed, fit, one_thread
from spark_hpo.search.space.axis import Array
from spark_hpo.trial import Params

_MAX_TRIALS = 250  # that the process learns from: the best half, and the latest
_GROWTH = 1.15  # of the number of trials, until parameters are fitted again
_NUM_DRAWN, _NUM_NEAR = 200, 200  # candidates from the space, and around the best trials
_NUM_BEST = 5
_NEAR = 0.15  # deviation of a candidate from a good trial, as a share of the range
_REFINEMENTS = ((60, 0.05), (60, 0.015))  # candidates and their deviation, around the best candidates
_NUM_REFINED = 3
_MAX_EARLIER = 50  # trials of earlier studies
_TRIALS_PER_RESULT = 500  # new results are learned from in batches, of one result for each 500 trials
_MAX_IN_FLIGHT = 100  # trials that are believed to turn out as expected, the latest


@dataclass(frozen=True, slots=True, kw_only=True)
class _Belief:
    """What the sampler thinks until the next result."""

    process: Process
    posterior: dict[int, float]  # expected final score of these trials, with what is peculiar to them
    known: FinalScores  # of all trials
    best: Array  # rows of the trials with the best expected scores, [trials, axes]
    lowest: float  # expected score


@dataclass(eq=False)
class MultifidelityGpSampler(MultivariateTpeSampler):
    """Proposes the configuration with the largest expected improvement of the final score.

    A Gaussian process (`Process`) learns the scores that trials would have at the highest rung from their
    results at all rungs (`final_scores`): a result at a low rung is a noisy observation, and how noisy is
    learned from the trials that went on. MOBSTER (Klein et al. 2020, arXiv:2003.10865) and DyHPO (Wistuba et
    al. 2022, arXiv:2202.09774) have a process over configuration and resource instead, which needs more
    observations for its larger input.

    - **Scores** are ranks, so only the order of losses counts, and a loss may have any scale.
    - **Trials have peculiarities**, such as their seeds, that parameters do not explain. `expected`, by which
      a scheduler may promote, includes them: it moves a trial's own result towards what similar ones had.
    - **Several objectives:** proposals are those of `MultivariateTpeSampler`, and `expected` has no opinion.
      So have studies whose trials have too few results. Limits order the trials, as there.
    - **In flight**, the latest 100 trials are believed to turn out as expected.
    - **Misleading rungs.** If similar trials have similar noise, many results at a low rung say little more
      than one. How much of the noise they share is fitted (`Process`).
    - **Failed** trials tell the probability of success, which multiplies the improvement (`Feasibility`).
    - **Cost** divides it with `acquisition: ei_per_second`, and **defaults** are drawn, as there.
    - **Earlier studies** count as noisy observations.
    - **Bounded.** The process learns from 250 trials: the best, and the latest. Its parameters are fitted
      again when the number of trials has grown by 15 %. From 1,000 trials on, it learns from several results
      at a time.
    - **Explores.** A `random_fraction` of proposals is drawn from the space.
    """

    _: KW_ONLY
    num_startup_trials: int = 8
    enough: int = 10
    random_fraction: float = 0.05
    learns_from_paused: bool = True
    learns_from_failures: bool = True
    doubts_defaults: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._next_fit = self.num_startup_trials
        self._to_fit: Observations | None = None
        self._parameters: Array | None = None
        self._belief: _Belief | None = None
        self._rankings: list[Ranking] = []  # that the process learns from
        self._num_told = 0
        self._owners = embed(self._axes, np.empty((0, len(self._axes))))[1]

    def tell(
        self, trial_id: int, *, resource: int, loss: float, others: Losses = (), violation: float = 0.0
    ) -> None:
        super().tell(trial_id, resource=resource, loss=loss, others=others, violation=violation)
        if not self._is_ready:
            return
        self._num_told += 1
        num_reported = self._history.num_reported
        fits = num_reported >= self._next_fit
        # Whether and when somebody asks must not matter, so rankings are kept here and learned from later.
        if fits or self._num_told % max(1, num_reported // _TRIALS_PER_RESULT) == 0:
            self._rankings, self._belief = self._history.rankings(), None
        if fits:
            self._to_fit = self._observations(self._chosen(final_scores(self._rankings)))
            self._next_fit = math.ceil(_GROWTH * num_reported)

    def ask(self, trial_id: int) -> Params:
        if not self._is_ready:
            return super().ask(trial_id)
        rng = np.random.default_rng((self.seed, trial_id))
        if rng.random() < self.random_fraction:
            return self._sample_feasible(rng)
        with one_thread():
            rows, gains = self._candidates(self._believed(), rng)
        for i in np.argsort(-gains, kind="stable"):
            if rows[i].tobytes() not in self._tried:
                params = self._axes.params(rows[i])
                if self.space.allows(params):
                    return params
        return self._untried(rng)

    def expected(self, trial_ids: Sequence[int]) -> list[float] | None:
        if not self._is_ready:
            return None
        with one_thread():
            return self._expected(self._believed(), trial_ids)

    def _expected(self, belief: _Belief, trial_ids: Sequence[int]) -> list[float]:
        expected = {trial_id: belief.posterior.get(trial_id, math.inf) for trial_id in trial_ids}
        known = belief.known
        others = np.setdiff1d(np.intersect1d(trial_ids, known.trials), list(belief.posterior))
        if len(others):
            mean, deviation = belief.process.predict(embed(self._axes, self._rows_of(others))[0])
            variance = deviation**2 + belief.process.residual
            index = np.searchsorted(known.trials, others)
            value, noise = known.values[index], known.noise[index]
            # The mean of two independent estimates, each weighted by the variance of the other.
            both = (mean * noise + value * variance) / (noise + variance)
            expected.update(zip(others.tolist(), both.tolist(), strict=True))
        return list(expected.values())

    @property
    def _is_ready(self) -> bool:
        """True if there are enough results to learn from."""
        history = self._history
        return (
            len(self._axes) > 0
            and history.num_objectives == 1
            and history.num_reported >= self.num_startup_trials
            and bool(history.levels)
        )

    def _believed(self) -> _Belief:
        if self._belief is None:
            self._belief = self._learned()
        return self._belief

    def _learned(self) -> _Belief:
        known = final_scores(self._rankings)
        scores = self._chosen(known)
        observations = self._observations(scores)
        if self._to_fit is not None:
            self._parameters, self._to_fit = fit(self._to_fit, self._owners), None
        assert self._parameters is not None, "there is something to fit as soon as there are enough results"
        process = Process.of(observations, self._owners, self._parameters)
        count = len(scores.trials)
        mean = process.mean(observations.points[:count])
        best = np.argsort(mean, kind="stable")[:_NUM_BEST]
        return _Belief(
            process=process,
            posterior=dict(zip(scores.trials.tolist(), process.noiseless[:count].tolist(), strict=True)),
            known=known,
            best=self._rows_of(scores.trials[best]),
            lowest=float(mean.min()),
        )

    def _chosen(self, scores: FinalScores) -> FinalScores:
        """Return the best half of the trials that the process may have, and the latest ones."""
        if len(scores.trials) <= _MAX_TRIALS:
            return scores
        best = scores.best_first()[: _MAX_TRIALS // 2]
        latest = np.arange(len(scores.trials))[-_MAX_TRIALS // 2 :]
        return scores.of(np.union1d(best, latest))

    def _observations(self, scores: FinalScores) -> Observations:
        knowledge = self._knowledge
        rows = np.concatenate([knowledge.good, knowledge.rest])
        # They are ordered by their results, so every k-th one is like all of them.
        some = slice(None, None, 1 + len(rows) // _MAX_EARLIER)
        earlier = knowledge.scores[some]
        points = np.concatenate([self._rows_of(scores.trials), rows[some]])
        return Observations(
            points=embed(self._axes, points)[0],
            targets=np.concatenate([scores.values, earlier]),
            noise=np.concatenate([scores.noise, np.full(len(earlier), 1 / knowledge.discount - 1)]),
        )

    def _candidates(self, belief: _Belief, rng: np.random.Generator) -> tuple[Array, Array]:
        """Return candidates [candidates, axes], and the logarithm of what each of them promises."""
        in_flight = self._rows_of(self._history.in_flight[-_MAX_IN_FLIGHT:])
        process = belief.process.believing(embed(self._axes, in_flight)[0])
        weights = self._weights()

        def gain(rows: Array) -> Array:
            mean, deviation = process.predict(embed(self._axes, rows)[0])
            gains = log_expected_improvement(mean, deviation, belief.lowest)
            return np.asarray(sum((weight(rows) for weight in weights), start=gains))

        space = ParzenEstimator(self._axes, np.empty((0, len(self._axes))), _bandwidth(_NEAR))
        rows = np.concatenate(
            [space.sample(rng, _NUM_DRAWN), self._around(belief.best, _NEAR).sample(rng, _NUM_NEAR)]
        )
        gains = gain(rows)
        for count, width in _REFINEMENTS:
            top = np.argsort(-gains, kind="stable")[:_NUM_REFINED]
            near = self._around(rows[top], width).sample(rng, count)
            rows, gains = np.concatenate([rows[top], near]), np.concatenate([gains[top], gain(near)])
        return rows, gains

    def _around(self, rows: Array, width: float) -> ParzenEstimator:
        return ParzenEstimator(self._axes, rows, _bandwidth(width), prior_weight=0.0)


def log_expected_improvement(mean: Array, deviation: Array, best: float) -> Array:
    """Return the logarithm of the expected improvement of a normal distribution below `best`.

    As in Ament et al. 2023, arXiv:2310.20708: without the logarithm, all candidates that promise little would
    have the same value 0.
    """
    z = (best - mean) / deviation
    density = np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    near = np.log(np.maximum(density + z * ndtr(z), np.finfo(float).tiny))
    # Far below, ndtr(z) = density / -z (1 - 1 / z^2 + ...), so the two terms leave density / z^2.
    far = log_ndtr(z) - np.log(np.maximum(-z, 1.0))
    return np.asarray(np.log(deviation) + np.where(z > -6, near, far))


def _bandwidth(width: float) -> Bandwidth:
    return Bandwidth(scale=0.0, floor=width)
