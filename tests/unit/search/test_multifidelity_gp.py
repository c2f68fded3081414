"""The Gaussian process over all rungs: scores, process, proposals and expectations."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from spark_hpo.search.sampler import Outcome
from spark_hpo.search.samplers.final_scores import final_scores
from spark_hpo.search.samplers.history import History
from spark_hpo.search.samplers.multifidelity_gp import MultifidelityGpSampler, log_expected_improvement
from spark_hpo.search.samplers.multivariate_tpe import MultivariateTpeSampler
from spark_hpo.search.samplers.process import Observations, Process, _Posterior, embed, fit
from spark_hpo.search.samplers.transfer import EarlierTrial, warm_start
from spark_hpo.search.space import Space
from spark_hpo.search.space.axis import Array, Axes
from spark_hpo.trial import FailureKind, Params
from tests.support.asked import best_of

UNIT = {"type": "uniform", "low": 0, "high": 1}
LINE = Space.from_config({"x": UNIT})
SPACE = Space.from_config({f"x{i}": UNIT for i in range(4)})
CONDITIONAL = Space.from_config(
    {"kind": {"type": "choice", "options": ["flat", {"name": "curved", "m": UNIT}]}, "x": UNIT}
)


def bowl(params: Params) -> float:
    return float(sum((x - 0.3) ** 2 for x in params.values()))


def history_of(*rungs: Sequence[float]) -> History:
    """Trial i has the i-th loss at each rung that has so many; resources are 1, 3, 9."""
    history = History()
    for trial_id in range(len(rungs[0])):
        history.start(trial_id)
    for rung, losses in enumerate(rungs):
        for trial_id, loss in enumerate(losses):
            if not math.isnan(loss):
                history.tell(trial_id, 3**rung, loss)
    return history


def test_scores_at_one_rung_are_quantiles_and_equal_losses_share_theirs() -> None:
    scores = final_scores(history_of([0.4, 0.1, 0.9, 0.4]).rankings())
    assert scores.trials.tolist() == [0, 1, 2, 3]
    assert scores.values.tolist() == pytest.approx([0, -1.1503, 1.1503, 0], abs=1e-3)
    assert not scores.noise.any()


def test_scores_do_not_depend_on_the_scale_of_losses() -> None:
    losses = np.random.default_rng(0).random((2, 20))
    losses[1, 8:] = math.nan
    scaled = final_scores(history_of(*(1e6 * losses - 5).tolist()).rankings())
    assert scaled.values == pytest.approx(final_scores(history_of(*losses.tolist()).rankings()).values)


def test_lone_trial_at_the_last_rung_is_not_taken_for_the_best() -> None:
    nan = math.nan
    scores = final_scores(history_of([0.5, 0.1, 0.2, 0.3, 0.9], [0.4, nan, nan, nan, nan]).rankings())
    assert scores.best_first().tolist().index(0) == 3  # where it was at the rung below
    assert scores.noise[0] == 0
    assert (scores.noise[1:] > 0).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_low_rung_counts_as_it_has_agreed_with_the_next(sign: int) -> None:
    rng = np.random.default_rng(0)
    low = rng.random(60)
    high = np.where(np.arange(60) < 30, sign * low, math.nan)
    scores = final_scores(history_of(low.tolist(), high.tolist()).rankings())
    waiting = slice(30, None)
    agreement = np.corrcoef(scores.values[waiting], low[waiting])[0, 1]
    assert agreement == pytest.approx(sign, abs=0.1)
    # Agreement is trusted, and contradiction is believed with caution.
    assert scores.noise[waiting].max() < (0.1 if sign > 0 else 10)


def test_process_gradient_matches_its_loss() -> None:
    rng = np.random.default_rng(0)
    axes = Axes(CONDITIONAL)
    rows = np.stack([axes.row(CONDITIONAL.sample(rng)) for _ in range(15)])
    points, owners = embed(axes, rows)
    objective = _Posterior(
        Observations(points=points, targets=rng.normal(size=15), noise=rng.random(15)), owners
    )
    for shift in (0.0, 0.3, -0.5):
        at = objective.mean + shift
        _, gradient = objective(at)
        for i, slope in enumerate(gradient):
            step = np.zeros_like(at)
            step[i] = 1e-5
            numeric = (objective(at + step)[0] - objective(at - step)[0]) / 2e-5
            assert slope == pytest.approx(numeric, rel=1e-3, abs=1e-4)


def learned(count: int = 60) -> tuple[Process, Array, Observations]:
    rng = np.random.default_rng(1)
    points, owners = embed(Axes(SPACE), rng.random((count, 4)))
    targets = np.sin(5 * points[:, 0]) + points[:, 1] - 0.5
    observations = Observations(points=points, targets=targets, noise=np.zeros(count))
    return Process.of(observations, owners, fit(observations, owners)), rng.random((100, 4)), observations


def test_process_learns_a_function_and_what_does_not_matter() -> None:
    process, points, _ = learned()
    mean, deviation = process.predict(points)
    assert np.corrcoef(mean, np.sin(5 * points[:, 0]) + points[:, 1])[0, 1] > 0.98
    assert deviation.mean() < 0.3
    assert process.lengths[0] < process.lengths[2]
    assert process.mean(points) == pytest.approx(mean)


def test_pending_points_reduce_the_deviation_and_keep_the_mean() -> None:
    process, points, _ = learned(20)
    believing = process.believing(points[:5])
    mean, deviation = process.predict(points)
    later_mean, later_deviation = believing.predict(points)
    assert later_mean == pytest.approx(mean)
    assert (later_deviation <= deviation + 1e-9).all()
    assert later_deviation[:5].max() < deviation[:5].max()


def noisy(*, is_shared: bool) -> tuple[Process, Array]:
    """A process of 100 noisy results, whose noise neighbours share or not, and of 20 exact ones."""
    rng = np.random.default_rng(3)
    points, owners = embed(Axes(SPACE), rng.random((120, 4)))
    noise = 1.4 * np.cos(6 * points[:, 1]) if is_shared else rng.normal(size=120)
    is_noisy = np.arange(120) < 100
    observations = Observations(
        points=points, targets=np.sin(5 * points[:, 0]) + noise * is_noisy, noise=1.0 * is_noisy
    )
    return Process.of(observations, owners, fit(observations, owners)), points[:100]


def test_results_whose_noise_neighbours_share_leave_their_region_uncertain() -> None:
    (shared, points), (independent, _) = noisy(is_shared=True), noisy(is_shared=False)
    assert shared.predict(points)[1].mean() > 1.3 * independent.predict(points)[1].mean()


def test_noiseless_targets_lie_between_the_process_and_the_results() -> None:
    process, points = noisy(is_shared=False)
    exact, _, observations = learned()
    assert exact.noiseless == pytest.approx(observations.targets)  # there is no noise to take away
    assert np.corrcoef(process.noiseless[:100], process.mean(points))[0, 1] > 0.9


def test_options_and_inactive_parameters_have_distances() -> None:
    axes = Axes(CONDITIONAL)
    flat, low, high = (
        axes.row(CONDITIONAL.validate({"kind": kind, "x": 0.5}))
        for kind in ("flat", {"name": "curved", "m": 0.0}, {"name": "curved", "m": 1.0})
    )
    points, owners = embed(axes, np.stack([flat, flat, low, high]))
    distances = ((points[:, None] - points) ** 2).sum(axis=2)
    assert distances[0, 1] == 0
    assert distances[2, 3] == pytest.approx(1)
    assert distances[0, 2] > 1
    assert len(owners) == points.shape[1]


def test_logarithm_of_the_expected_improvement_is_finite_far_away() -> None:
    means = np.array([-1.0, 0.0, 3.0, 30.0])
    logs = log_expected_improvement(means, np.ones(4), best=0.0)
    assert np.exp(logs[1]) == pytest.approx(1 / math.sqrt(2 * math.pi))
    assert np.isfinite(logs).all()
    assert (np.diff(logs) < 0).all()
    around = log_expected_improvement(np.array([5.999, 6.001]), np.ones(2), best=0.0)
    assert around[0] - around[1] < 0.05  # the two formulas meet


@pytest.mark.medium
def test_it_beats_tpe_on_a_smooth_function() -> None:
    seeds = range(3)
    here = statistics.median(best_of(MultifidelityGpSampler(SPACE, seed), bowl, 40) for seed in seeds)
    tpe = statistics.median(best_of(MultivariateTpeSampler(SPACE, seed), bowl, 40) for seed in seeds)
    assert here < tpe / 3


def taught(agrees: bool, count: int = 40) -> MultifidelityGpSampler:
    """A sampler that saw noise at the first rung, and half of the trials at the second one, or none."""
    sampler, rng = MultifidelityGpSampler(LINE, 0), np.random.default_rng(3)
    for trial_id in range(count):
        x = float(rng.random())
        sampler.start(trial_id, {"x": x})
        sampler.tell(trial_id, resource=1, loss=(x if agrees else -x) + 0.3 * float(rng.normal()))
    for trial_id in range(0, count, 2):
        sampler.tell(trial_id, resource=3, loss=float(sampler._rows[trial_id, 0]))
    return sampler


@pytest.mark.parametrize("agrees", [True, False])
def test_expected_scores_smooth_noise_and_see_through_misleading_rungs(agrees: bool) -> None:
    sampler = taught(agrees)
    waiting = list(range(1, 40, 2))
    expected = sampler.expected(waiting)
    assert expected is not None
    truth = sampler._rows[waiting, 0]
    first = [score.loss for t in waiting for score in sampler._history.scores(t).values()]
    assert np.corrcoef(expected, truth)[0, 1] > 0.9
    assert np.corrcoef(expected, truth)[0, 1] > np.corrcoef(first, truth)[0, 1] + 0.1


def test_result_at_the_last_rung_is_expected_as_it_is() -> None:
    sampler = taught(agrees=True)
    trained = list(range(0, 40, 2))
    expected = sampler.expected(trained)
    assert expected is not None
    assert np.argsort(expected).tolist() == np.argsort(sampler._rows[trained, 0]).tolist()


def test_it_has_no_opinion_before_there_are_results_or_with_two_objectives() -> None:
    sampler = MultifidelityGpSampler(LINE, 0)
    sampler.start(0, {"x": 0.5})
    sampler.tell(0, resource=1, loss=0.5)
    assert sampler.expected([0]) is None
    for trial_id in range(1, 20):
        sampler.start(trial_id, {"x": trial_id / 20})
        sampler.tell(trial_id, resource=1, loss=0.5, others=(1.0,))
    assert sampler.expected([0]) is None


def test_trials_outside_of_the_subset_have_expected_scores() -> None:
    sampler, rng = MultifidelityGpSampler(LINE, 0), np.random.default_rng(0)
    for trial_id in range(400):
        x = float(rng.random())
        sampler.start(trial_id, {"x": x})
        sampler.tell(trial_id, resource=1, loss=x)
    expected = sampler.expected(range(400))
    assert expected is not None
    assert np.corrcoef(expected, sampler._rows[:400, 0])[0, 1] > 0.9
    assert sampler.expected([5, 900]) == [expected[5], math.inf]


def test_expected_scores_do_not_depend_on_the_threads_of_blas() -> None:
    found = []
    for threads in (1, 2):
        sampler, rng = MultifidelityGpSampler(SPACE, 0), np.random.default_rng(0)
        for trial_id in range(400):
            params = SPACE.sample(rng)
            sampler.start(trial_id, params)
            sampler.tell(trial_id, resource=1, loss=bowl(params))
        with threadpool_limits(threads, user_api="blas"):
            found.append(sampler.expected(range(400)))
            pools = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
        assert {pool["num_threads"] for pool in pools} == {threads}  # as before
    assert found[0] == found[1]


def test_results_are_learned_in_batches_that_do_not_depend_on_who_asks_when(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("spark_hpo.search.samplers.multifidelity_gp._TRIALS_PER_RESULT", 10)
    asked, silent = (MultifidelityGpSampler(LINE, 0, random_fraction=0.0) for _ in range(2))
    proposals = []
    for trial_id in range(70):  # in batches of six results, at the end
        for sampler in (asked, silent):
            sampler.start(trial_id, {"x": trial_id * 0.37 % 1})
            sampler.tell(trial_id, resource=1, loss=abs(trial_id * 0.37 % 1 - 0.6))
        proposals.append(asked.ask(500))
    assert silent.ask(500) == proposals[-1]
    assert len({proposal["x"] for proposal in proposals[-10:]}) < 5


def test_process_believes_in_the_latest_of_many_trials_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = MultifidelityGpSampler(LINE, 0, random_fraction=0.0)
    for trial_id in range(300):
        sampler.start(trial_id, {"x": trial_id / 300})
    for trial_id in range(20):
        sampler.tell(trial_id, resource=1, loss=trial_id / 20)
    believed: list[Array] = []
    believing = Process.believing

    def seen(process: Process, pending: Array) -> Process:
        believed.append(pending)
        return believing(process, pending)

    monkeypatch.setattr(Process, "believing", seen)
    sampler.ask(1000)
    [pending] = believed
    assert pending[:, 0].tolist() == pytest.approx([trial_id / 300 for trial_id in range(200, 300)])


def test_proposals_avoid_a_region_that_fails() -> None:
    sampler, rng = MultifidelityGpSampler(LINE, 0, random_fraction=0.0), np.random.default_rng(0)
    for trial_id in range(30):
        x = float(rng.random())
        sampler.start(trial_id, {"x": x})
        # The best results are next to the region that fails.
        sampler.tell(trial_id, resource=1, loss=math.inf if x > 0.6 else -x)
    asked = [sampler.ask(trial_id)["x"] for trial_id in range(100, 120)]
    assert statistics.median(asked) > 0.5
    assert sum(x > 0.62 for x in asked) <= 4


def test_trials_lost_with_their_executor_say_nothing() -> None:
    def asked(lost: bool) -> list[Params]:
        sampler = MultifidelityGpSampler(LINE, 0)
        for trial_id in range(12):
            sampler.start(trial_id, {"x": trial_id / 12})
            if lost and trial_id > 9:
                sampler.note(trial_id, Outcome(units=0, seconds=1.0, failure=FailureKind.INFRASTRUCTURE))
                sampler.tell(trial_id, resource=1, loss=math.inf)
            elif trial_id <= 9:
                sampler.tell(trial_id, resource=1, loss=trial_id / 12)
        return [sampler.ask(trial_id) for trial_id in range(100, 104)]

    assert all(params["x"] < 0.5 for params in asked(lost=True))


def test_earlier_studies_are_noisy_observations() -> None:
    earlier = [EarlierTrial(params={"x": i / 40}, resource=9, loss=abs(i / 40 - 0.7)) for i in range(40)]
    with_earlier, without = (MultifidelityGpSampler(LINE, 0, random_fraction=0.0) for _ in range(2))
    with_earlier.learn_from(warm_start(LINE, [earlier]))
    for sampler in (with_earlier, without):
        for trial_id, x in enumerate((0.02, 0.1, 0.2, 0.3, 0.4, 0.45, 0.95, 1.0)):
            sampler.start(trial_id, {"x": x})
            sampler.tell(trial_id, resource=1, loss=abs(x - 0.45))  # the best place has moved
    far = [
        statistics.mean(abs(s.ask(i)["x"] - 0.7) for i in range(100, 109)) for s in (with_earlier, without)
    ]
    assert far[0] < far[1]
    assert far[0] > 0.02  # its own results count, too
