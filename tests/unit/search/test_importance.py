import subprocess
import sys
import warnings

import numpy as np
import pytest

from spark_hpo.errors import SpaceError
from spark_hpo.objective import NO_SCORE, Score
from spark_hpo.search.importance import MIN_RESULTS, importance
from spark_hpo.search.samplers.optuna_samplers import parameters_of
from spark_hpo.search.space import Space
from spark_hpo.search.space.axis import Axes

SPACE = Space.from_config(
    {
        "matters": {"type": "loguniform", "low": 1e-4, "high": 1.0},
        "little": {"type": "uniform", "low": 0.0, "high": 1.0},
        "never": {"type": "int", "low": 1, "high": 9},
    }
)
CONDITIONAL = Space.from_config(
    {
        "x": {"type": "uniform", "low": 0.0, "high": 1.0},
        "optimizer": {
            "type": "choice",
            "options": [
                {"name": "adam", "rate": {"type": "uniform", "low": 0.0, "high": 1.0}},
                {"name": "sgd", "momentum": {"type": "uniform", "low": 0.0, "high": 1.0}},
            ],
        },
    }
)


def test_importance_finds_the_parameter_that_matters() -> None:
    drawn = [SPACE.sample(np.random.default_rng(i)) for i in range(200)]
    results = [(p, Score.of(abs(np.log10(p["matters"]) + 2) + 0.1 * p["little"])) for p in drawn]
    shares = importance(SPACE, results)
    assert list(shares) == sorted(shares, key=lambda name: -shares[name])
    assert shares["matters"] > 0.8
    assert sum(shares.values()) == pytest.approx(1)
    assert importance(SPACE, results) == shares


def test_importance_of_a_conditional_parameter_counts_where_active() -> None:
    drawn = [CONDITIONAL.sample(np.random.default_rng(i)) for i in range(200)]
    results = [
        (p, Score.of((p["optimizer"]["momentum"] - 0.9) ** 2 if "momentum" in p["optimizer"] else 0.5))
        for p in drawn
    ]
    shares = importance(CONDITIONAL, results)
    assert set(shares) == {"x", "optimizer", "optimizer.rate", "optimizer.momentum"}
    assert shares["optimizer.momentum"] > shares["x"]
    assert shares["optimizer.momentum"] > shares["optimizer.rate"]


def test_importance_needs_enough_finite_results() -> None:
    drawn = [SPACE.sample(np.random.default_rng(i)) for i in range(MIN_RESULTS)]
    results = [(p, Score.of(float(i))) for i, p in enumerate(drawn)]
    assert importance(SPACE, results)
    assert importance(SPACE, results[1:]) == {}
    assert importance(SPACE, [*results[1:], (drawn[0], NO_SCORE)]) == {}
    assert importance(Space.from_config({"x": 3}), [({"x": 3}, Score.of(0.1))] * MIN_RESULTS) == {}


@pytest.mark.parametrize("num_results", [10, 20, 300])
@pytest.mark.parametrize("space", [SPACE, CONDITIONAL])
def test_importance_agrees_with_optuna(space: Space, num_results: int) -> None:
    optuna = pytest.importorskip("optuna", "5", reason="conditional PED-ANOVA came with Optuna 5")
    drawn = [space.sample(np.random.default_rng(i)) for i in range(num_results)]
    results = [(params, Score.of(abs(next(iter(params.values())) - 0.3))) for params in drawn]
    axes, study = Axes(space), optuna.create_study()
    for params, score in results:
        distributions, values = parameters_of(optuna, axes, axes.row(params))
        trial = optuna.trial.create_trial(params=values, distributions=distributions, value=score.loss)
        study.add_trial(trial)
    share = max(0.1, min(0.5, 5 / num_results))
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=share)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is experimental
        theirs = optuna.importance.get_param_importances(study, evaluator=evaluator)
    paths = [".".join(map(str, axis.dimension.path)) for axis in axes.axes]
    expected = {paths[int(number)]: share for number, share in theirs.items()}
    assert importance(space, results) == pytest.approx(expected, abs=1e-6)


def test_importance_accepts_equal_losses() -> None:
    drawn = [SPACE.sample(np.random.default_rng(i)) for i in range(20)]
    assert sum(importance(SPACE, [(p, Score.of(1.0)) for p in drawn]).values()) == pytest.approx(1)


def test_parameters_of_another_space_are_refused() -> None:
    with pytest.raises(SpaceError):
        importance(SPACE, [({"other": 1}, Score.of(1.0))] * MIN_RESULTS)


def test_importance_needs_neither_optuna_nor_sklearn() -> None:
    program = (
        "import sys; sys.modules['sklearn'] = sys.modules['optuna'] = None\n"
        "from spark_hpo.search.importance import importance\n"
        "from spark_hpo.objective import Score\n"
        "from spark_hpo.search.space import Space\n"
        "space = Space.from_config({'x': {'type': 'uniform', 'low': 0, 'high': 1}})\n"
        "assert importance(space, [({'x': i / 20}, Score.of(float(i))) for i in range(20)]) == {'x': 1.0}\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_importance_ranks_results_that_break_a_limit_below_all_others() -> None:
    drawn = [SPACE.sample(np.random.default_rng(i)) for i in range(200)]
    # The loss says nothing; one parameter decides whether the limit is kept.
    results = [(p, Score.of(0.5, violation=max(0.0, p["little"] - 0.2))) for p in drawn]
    assert next(iter(importance(SPACE, results))) == "little"
