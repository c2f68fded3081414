"""`fmin` as programs for hyperopt call it, compared with hyperopt's own; trials run in this process."""

from __future__ import annotations

import functools
import importlib
import math
from pathlib import Path
from typing import Any

import hyperopt
import numpy as np
import pytest
from hyperopt import STATUS_FAIL, STATUS_OK, Trials, anneal, hp, rand, space_eval, tpe
from hyperopt.early_stop import no_progress_loss
from hyperopt.exceptions import AllTrialsFailed
from hyperopt.pyll import scope

import spark_hpo
from spark_hpo.errors import ConfigError, NoTrialSucceeded, SpaceError
from spark_hpo.objective import Mode, Objective
from spark_hpo.porting.hyperopt_objective import HyperoptObjective
from spark_hpo.porting.spark_trials import SparkTrials
from spark_hpo.study.callback import Callback
from spark_hpo.study_dir.journal import Journal
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train.reference import Code
from spark_hpo.user_code.source_file import SourceFile

SPACE = {"x": hp.uniform("x", -5, 5), "y": hp.quniform("y", -3, 3, 1)}


def parabola(point: dict[str, Any]) -> float:
    return float((point["x"] - 1) ** 2 + point["y"] ** 2)


def fmin(*arguments: Any, **named: Any) -> Any:
    named = {"rstate": np.random.default_rng(7), "show_progressbar": False, "backend": "inline", **named}
    return spark_hpo.fmin(*arguments, **named)


def test_fmin_returns_what_hyperopt_returns() -> None:
    ours, theirs = Trials(), Trials()
    best = fmin(parabola, SPACE, tpe.suggest, 30, trials=ours)
    beside = hyperopt.fmin(
        parabola,
        SPACE,
        tpe.suggest,
        30,
        trials=theirs,
        rstate=np.random.default_rng(7),
        show_progressbar=False,
    )
    assert best.keys() == beside.keys()
    assert parabola(space_eval(SPACE, best)) == min(ours.losses()) < 3
    assert ours.best_trial["misc"]["vals"].keys() == theirs.best_trial["misc"]["vals"].keys()
    assert ours.trials[0].keys() == theirs.trials[0].keys()
    assert ours.tids == theirs.tids
    assert set(ours.statuses()) == {STATUS_OK}
    assert ours.argmin == best


def test_fmin_searches_expressions_that_a_study_file_cannot_have() -> None:
    class Forest:
        depth = 3

    shared = hp.uniform("shared", 0, 1)
    space = {
        "sum": shared + 1,
        "again": shared,
        "layers": scope.int(hp.uniform("layers", 1, 4)),
        "model": hp.choice(
            "model", [Forest, ("svm", hp.lognormal("C", 0, 1)), {"deep": [hp.choice("deep", [1, 2]), None]}]
        ),
    }
    seen = []

    def objective(point: dict[str, Any]) -> float:
        assert point["sum"] == point["again"] + 1
        assert isinstance(point["layers"], int)
        seen.append(point["model"])
        return 0.0 if point["model"] is Forest else 1.0

    trials = Trials()
    best = fmin(objective, space, tpe.suggest, 15, trials=trials)
    assert best["model"] == 0
    assert "C" not in best
    assert space_eval(space, best)["model"] is Forest
    assert {type(model) for model in seen} == {type, tuple, dict}
    assert len(trials.trials[0]["misc"]["vals"]) == 5


@pytest.mark.parametrize(
    "algo", [rand.suggest, anneal.suggest, functools.partial(tpe.suggest, n_startup_jobs=5, gamma=0.3)]
)
def test_fmin_runs_every_hyperopt_algorithm(algo: Any) -> None:
    best = fmin(lambda x: (x - 1) ** 2, hp.uniform("x", -5, 5), algo, 15)
    assert abs(best["x"] - 1) < 1.5


def test_fmin_repeats_a_search_with_the_same_rstate() -> None:
    first, second, other = Trials(), Trials(), Trials()
    for trials, seed in ((first, 3), (second, 3), (other, 4)):
        fmin(parabola, SPACE, tpe.suggest, 24, trials=trials, rstate=seed, parallelism=1)
    assert first.vals == second.vals
    assert first.vals != other.vals


def test_result_keeps_its_keys_and_a_failed_status_has_no_loss() -> None:
    def objective(x: float) -> dict[str, Any]:
        if x < 0:
            return {"status": STATUS_FAIL, "why": "negative"}
        return {"status": STATUS_OK, "loss": x, "array": np.arange(2), "nested": {"t": (1, math.inf)}}

    trials = Trials()
    best = fmin(objective, hp.uniform("x", -5, 5), rand.suggest, 10, trials=trials)
    failed = [result for result in trials.results if result["status"] == STATUS_FAIL]
    passed = [result for result in trials.results if result["status"] == STATUS_OK]
    assert len(failed) + len(passed) == 10
    assert failed[0] == {"status": STATUS_FAIL, "why": "negative"}
    assert passed[0]["array"] == [0, 1]
    assert passed[0]["nested"] == {"t": [1, "inf"]}
    assert best["x"] == min(result["loss"] for result in passed)


def test_spark_trials_counts_trials_that_raise_as_failed() -> None:
    def objective(x: float) -> float:
        if x < 0:
            raise ZeroDivisionError("negative")
        return x

    trials = SparkTrials(parallelism=1)
    best = fmin(objective, hp.uniform("x", -5, 5), rand.suggest, 10, trials=trials)
    assert best["x"] >= 0
    assert (
        trials.count_successful_trials() + trials.count_failed_trials() == trials.count_total_trials() == 10
    )
    assert 0 < len(trials) == trials.count_successful_trials() < 10  # those that raised are not listed
    errors = [d["misc"]["error"] for d in trials._dynamic_trials if d["state"] == hyperopt.JOB_STATE_ERROR]
    assert all(name == "ZeroDivisionError" and "negative" in text for name, text in errors)


def test_fmin_raises_hyperopt_errors_if_every_trial_fails() -> None:
    with pytest.raises(AllTrialsFailed):
        fmin(lambda x: {"status": STATUS_FAIL}, hp.uniform("x", 0, 1), rand.suggest, 3)

    def broken(x: float) -> float:
        raise ValueError

    with pytest.raises(NoTrialSucceeded, match="no evaluation tasks"):
        fmin(broken, hp.uniform("x", 0, 1), rand.suggest, 3)
    assert fmin(broken, hp.uniform("x", 0, 1), rand.suggest, 3, return_argmin=False) is None


def test_points_to_evaluate_run_first_beside_max_evals() -> None:
    trials = Trials()
    best = fmin(
        parabola,
        SPACE,
        rand.suggest,
        3,
        trials=trials,
        points_to_evaluate=[{"x": 1.0, "y": 0.0}, {"x": 0.0, "y": 1.0}],
    )
    assert best == {"x": 1.0, "y": 0.0}
    assert trials.vals["x"][:2] == [1.0, 0.0]
    assert len(trials) == 5
    with pytest.raises(SpaceError) as raised:
        fmin(parabola, SPACE, rand.suggest, 1, points_to_evaluate=[{"z": 1.0}])
    assert raised.value.key == "points_to_evaluate[0].z"


def test_fmin_returns_the_point_without_return_argmin() -> None:
    space = {"kind": hp.choice("kind", ["a", "b"])}
    point = fmin(lambda p: float(p["kind"] == "a"), space, rand.suggest, 6, return_argmin=False)
    assert point == {"kind": "b"}


def test_fmin_stops_at_loss_threshold_and_early_stop_fn() -> None:
    trials = Trials()
    fmin(parabola, SPACE, rand.suggest, 500, trials=trials, loss_threshold=10.0, parallelism=1)
    losses = trials.losses()
    assert losses[-1] < 10.0
    assert all(loss >= 10.0 for loss in losses[:-1])

    ours, theirs = Trials(), Trials()
    arguments: Any = (lambda p: 1.0, {"x": hp.uniform("x", 0, 1)}, rand.suggest, 500)
    fmin(*arguments, trials=ours, early_stop_fn=no_progress_loss(4))
    hyperopt.fmin(*arguments, trials=theirs, early_stop_fn=no_progress_loss(4), show_progressbar=False)
    assert len(ours) == len(theirs) < 10


def test_fmin_starts_no_trial_after_timeout() -> None:
    class Stopped(Callback):
        def on_study_end(self, study: Any) -> None:
            self.by = study.stopped_by

    stopped = Stopped()
    trials = Trials()
    fmin(parabola, SPACE, rand.suggest, timeout=0.2, trials=trials, callbacks=[stopped])
    assert stopped.by == "seconds"
    assert len(trials) >= 1


def test_trials_of_an_earlier_search_count_and_inform_tpe() -> None:
    trials = Trials()
    hyperopt.fmin(
        parabola,
        SPACE,
        rand.suggest,
        20,
        trials=trials,
        rstate=np.random.default_rng(1),
        show_progressbar=False,
    )
    before = trials.losses()
    fmin(parabola, SPACE, tpe.suggest, 30, trials=trials)
    assert trials.losses()[:20] == before
    assert len(trials) == 30
    assert trials.tids == list(range(30))
    alone, random = Trials(), Trials()
    fmin(parabola, SPACE, tpe.suggest, 10, trials=alone)
    fmin(parabola, SPACE, rand.suggest, 10, trials=random)
    assert alone.vals == random.vals  # nothing is known yet
    assert trials.vals["x"][20:] != random.vals["x"]


def test_fmin_resumes_a_study_in_its_storage(tmp_path: Path) -> None:
    calls = []

    def objective(x: float) -> float:
        calls.append(x)
        return x**2

    space = hp.uniform("x", -5, 5)
    first, again = Trials(), Trials()
    fmin(objective, space, tpe.suggest, 6, trials=first, storage=tmp_path / "mine", name="mine")
    best = fmin(
        objective, space, tpe.suggest, 9, trials=again, storage=tmp_path / "mine", name="mine", rstate=99
    )
    assert len(calls) == 9
    assert again.losses()[:6] == first.losses()
    assert len(again) == 9
    assert best == again.argmin
    fmin(objective, space, tpe.suggest, 9, trials=again, storage=tmp_path / "mine", name="mine")
    assert len(again) == len(calls) == 9
    with pytest.raises(ConfigError, match="space"):
        fmin(objective, hp.uniform("x", 0, 5), tpe.suggest, 9, storage=tmp_path / "mine", name="mine")


def test_fmin_reads_the_space_from_annotations() -> None:
    def objective(x, y):  # type: ignore[no-untyped-def]
        return abs(x) + y

    objective.__annotations__ = {"x": hp.uniform("x", -5, 5), "y": hp.choice("y", [0, 1]), "return": float}
    assert fmin(objective, "annotated", rand.suggest, 20)["y"] == 0


def test_hyperopt_fmin_runs_a_study_with_spark_trials() -> None:
    trials = SparkTrials(parallelism=2, timeout=100)
    trials.fmin = functools.partial(trials.fmin, backend="inline", name="theirs")  # type: ignore[method-assign]
    best = hyperopt.fmin(parabola, SPACE, tpe.suggest, 5, trials=trials, show_progressbar=False)
    assert len(trials) == 5
    assert best == trials.argmin
    (study,) = Path("studies").iterdir()
    journal = Journal(Storage(study), Objective(metric="loss", mode=Mode.MIN))
    assert [trial.metrics["loss"] for trial in journal.trials.values()] == trials.losses()


def test_fmin_shows_the_progress_bar_of_hyperopt(capsys: pytest.CaptureFixture[str]) -> None:
    fmin(parabola, SPACE, rand.suggest, 4, show_progressbar=True)
    shown = capsys.readouterr()
    assert "4/4" in shown.out + shown.err
    assert "best loss" in shown.out + shown.err


@pytest.mark.parametrize(
    ("argument", "key"),
    [
        ({"pass_expr_memo_ctrl": True}, "pass_expr_memo_ctrl"),
        ({"rstate": "42"}, "rstate"),
        ({"trials_save_file": "trials.pkl"}, "trials_save_file"),
        ({"parallelism": 2.5}, "parallelism"),
        ({"resources": {"gpus": 1}}, "resources.gpus"),
    ],
)
def test_fmin_names_a_wrong_argument(argument: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as raised:
        fmin(parabola, SPACE, rand.suggest, 1, **argument)
    assert f"fmin: {key} " in str(raised.value)


def test_objective_is_sent_with_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "objective_in_a_file.py"
    file.write_text("def parabola(point):\n    return point['x'] ** 2\n\nconstant = lambda point: 0.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module(file.stem)
    code = Code.of(HyperoptObjective(module.parabola, SPACE))
    assert code.by_value
    assert code.source == SourceFile(file, file.stem)
    assert Code.of(HyperoptObjective(module.constant, SPACE)).source == code.source
    assert Code.of(HyperoptObjective(np.sum, SPACE)).source is None  # of a package
