from collections.abc import Callable
from typing import Any

import plotly.graph_objects as go
import pytest

from spark_hpo.objective import Mode, Objective
from spark_hpo.report.pictures import curves as curves_module
from spark_hpo.report.pictures import history as history_module
from spark_hpo.report.pictures import parallel as parallel_module
from spark_hpo.report.pictures.curves import curves
from spark_hpo.report.pictures.front import front
from spark_hpo.report.pictures.history import history, history_by_resource
from spark_hpo.report.pictures.parallel import parallel
from spark_hpo.report.pictures.parameters import MAX_PARAMETERS, importance, parameters
from spark_hpo.report.pictures.rungs import rungs
from spark_hpo.report.pictures.slots import slots
from spark_hpo.report.pictures.theme import Picture, linear_ticks, log_ticks, thinned, tick_text, view
from spark_hpo.report.study_record import StudyRecord
from spark_hpo.trial import Failure, FailureKind, TrialState
from tests.benchmarks.replay.memory import MemoryStorage
from tests.support.virtual_studies import write_study
from tests.support.written_studies import TEST, StudyWriter

Draw = Callable[[StudyRecord], Picture]
EVERY: list[Draw] = [history, history_by_resource, rungs, curves, parallel, importance, slots]
BROKEN = Failure(kind=FailureKind.TRIAL, message="nan")


def trace(figure: go.Figure, name: str) -> Any:
    [found] = [trace for trace in figure.data if trace.name == name]
    return found


def study(*params: dict[str, Any], failed: int = 0) -> StudyRecord:
    """Trials with these parameters, each better than the one before; then some that fail."""
    pen = StudyWriter().slots(1)
    for i, some in enumerate(params):
        pen.at(i).start(i, params=some).at(i + 1).end(i, 1, 0.5 + i / 100)
    for i in range(len(params), len(params) + failed):
        pen.start(i).end(i, 0, None, failure=BROKEN)
    return pen.close().record()


@pytest.mark.parametrize("draw", EVERY)
@pytest.mark.parametrize(
    "record",
    [
        StudyWriter().record(),
        StudyWriter().slots(2).start(0).record(),
        study(failed=2),
        study({}),
        study({"lr": 0.1}),
        study({"lr": 0.1}, {"lr": 0.1}),
        study({"a": None, "b": "x", "c": {"d": True, "e": [1]}}, {"a": 3, "b": 2}, failed=1),
    ],
    ids=["empty", "begun", "all failed", "no parameters", "one", "one value", "odd values"],
)
def test_figures_of_every_kind_of_study(draw: Draw, record: StudyRecord) -> None:
    picture = draw(record)
    assert "<div" in picture.figure.to_html(include_plotlyjs=False)
    assert picture.title
    assert picture.text.endswith(".")
    assert len(parameters(record)) <= 4


def test_draw_without_points_shows_a_note() -> None:
    picture = history(StudyWriter().record())
    assert picture.figure.layout.annotations[0].text == "no measurements yet"
    assert picture.text == "No trial has been measured yet."


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (3e-4, 3e-2, "0.0005 0.001 0.002 0.005 0.01 0.02"),
        (1e-4, 0.09, "0.0001 0.0003 0.001 0.003 0.01 0.03"),
        (1.1e-5, 0.09, "0.0001 0.001 0.01"),
        (1e-9, 1.0, "1e-8 1e-6 0.0001 0.01 1"),
        (1e-12, 1e12, "1e-10 1e-5 1 100,000 1e10"),
        (16, 128, "20 50 100"),
        (0.0011, 0.0013, "0.0011 0.00115 0.0012 0.00125 0.0013"),
        (0.5, 0.5, "0.5"),
    ],
)
def test_log_ticks_are_round_and_more_than_one(low: float, high: float, expected: str) -> None:
    assert " ".join(map(tick_text, log_ticks(low, high))) == expected


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.0119, 0.589, "0.1 0.2 0.3 0.4 0.5"), (-3, 17, "0 5 10 15"), (0.42, 0.98, "0.5 0.6 0.7 0.8 0.9")],
)
def test_linear_ticks_are_round(low: float, high: float, expected: str) -> None:
    assert " ".join(map(tick_text, linear_ticks(low, high))) == expected


# History ------------------------------------------------------------------------------------------------


def climbing() -> StudyRecord:
    pen = StudyWriter().slots(1)
    pen.at(0).start(0).at(60).end(0, 1, 0.5).start(1, 0, 3).at(120).end(1, 3, 0.3).start(2)
    pen.at(180).end(2, 1, None, failure=BROKEN).start(0, 1, 9, rung=1).at(600).end(0, 9, 0.8)
    return pen.start(0, 9, 9, **TEST).at(610).end(0, 9, 0.99, **TEST).close().record()


def test_history_best_so_far_never_gets_worse() -> None:
    best = trace(history(climbing()).figure, "best so far")
    assert list(best.x) == [1, 10, 10]  # minutes; the test is no part of the search
    assert list(best.y) == [0.5, 0.8, 0.8]
    assert best.line.shape == "hv"


def test_history_over_resource_counts_what_all_trials_were_trained() -> None:
    picture = history_by_resource(climbing())
    best = trace(picture.figure, "best so far")
    # 1 for trial 0, 3 for trial 1, 1 for the one that failed after it, 8 more for trial 0.
    assert list(best.x) == [1, 13, 13]
    assert list(trace(picture.figure, "rung 0").x) == [1, 4]
    assert picture.text == "accuracy began with 0.5 after 1 epoch and improved once, to 0.8 after 13 epochs."


def test_history_colours_points_by_rung() -> None:
    dots = [t for t in history(climbing()).figure.data if t.mode == "markers"]
    assert [t.name for t in dots] == ["rung 0", "rung 1"]
    assert len({t.marker.color for t in dots}) == 2


def test_history_keeps_the_sign_of_the_objective() -> None:
    pen = StudyWriter(Objective(metric="loss", mode=Mode.MIN))
    for i, loss in enumerate([0.9, 0.4, 0.6]):
        pen.start(i).end(i, 1, loss)
    assert list(trace(history(pen.close().record()).figure, "best so far").y) == [0.9, 0.4, 0.4]


def test_history_names_penalties_on_the_axis() -> None:
    pen = StudyWriter(Objective(metric="accuracy", mode=Mode.MAX, penalties=(("size", 0.1),)))
    pen.start(0).end(0, 1, 0.9, metrics={"accuracy": 0.9, "size": 2.0})
    picture = history(pen.close().record())
    assert list(trace(picture.figure, "best so far").y) == [0.9 - 0.2] * 2
    assert picture.figure.layout.yaxis.title.text == "accuracy with its penalties"


def test_history_thins_points_but_no_improvements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_module, "MAX_POINTS", 10)
    pen = StudyWriter()
    for i in range(100):
        pen.start(i).end(i, 1, 0.9 if i == 57 else 0.1)
    picture = history(pen.close().record())
    dots = trace(picture.figure, "rung 0")
    assert len(dots.x) == 10 + 2
    assert 0.9 in dots.y
    assert "88 other reports are not shown" in picture.text


def test_view_excludes_outliers() -> None:
    pen = StudyWriter(Objective(metric="loss", mode=Mode.MIN))
    for i in range(30):
        pen.start(i).end(i, 1, 1e6 if i == 3 else 1.0 + i / 30)
    picture = history(pen.close().record())
    low, high = picture.figure.layout.yaxis.range
    assert low < 1.0 < 2.0 < high < 10
    assert "1 outlier outside of the initial view." in picture.text


def test_view_is_none_without_outliers() -> None:
    assert view([i / 10 for i in range(20)]) == (None, 0)
    assert view([1.0, 1e9]) == (None, 0), "two values are no crowd"
    assert view([1.0] * 30) == (None, 0)


def test_thinned_keeps_both_ends() -> None:
    assert thinned(range(100), 4) == [0, 33, 66, 99]
    assert thinned(range(3), 4) == [0, 1, 2]


# Curves and rungs -----------------------------------------------------------------------------------------


def test_curves_fade_stopped_trials_and_draw_the_best_on_top(record: StudyRecord) -> None:
    figure = curves(record).figure
    assert figure.data[-1].name.startswith("best: trial")
    assert figure.data[-1].line.width > figure.data[0].line.width
    assert trace(figure, "stopped").opacity < trace(figure, "fully trained").opacity
    best = [value for value in figure.data[-1].y if value is not None]
    assert len(best) == 27, "each epoch was measured"
    assert best[-1] == pytest.approx(max(t.metrics.get("accuracy", 0) for t in record.trials.values()), 1e-4)
    assert figure.layout.xaxis.type == "log"
    assert list(figure.layout.xaxis.tickvals) == [1, 3, 9, 27]


def test_curves_are_separated_by_gaps(record: StudyRecord) -> None:
    stopped = trace(curves(record).figure, "stopped")
    states = (TrialState.STOPPED, TrialState.PAUSED)
    measured = [t for t in record.trials.values() if t.state in states and t.metrics]
    assert list(stopped.x).count(None) == len(measured)


def test_curves_are_thinned_but_not_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves_module, "MAX_CURVES", 20)
    pen = StudyWriter()
    for i in range(100):
        pen.start(i).end(i, 1, i / 100)
    pen.settle(TrialState.STOPPED, *range(100))
    picture = curves(pen.close().record())
    stopped = trace(picture.figure, "stopped")
    assert list(stopped.x).count(None) == 20
    assert {0.99, 0.98} <= set(stopped.y)
    assert "80 of them are not shown" in picture.text


def test_rungs_are_stacked_by_the_fate_of_their_trials(record: StudyRecord) -> None:
    picture = rungs(record)
    assert picture.figure.layout.barmode == "stack"
    labels = list(picture.figure.data[0].y)
    assert labels[:2] == ["bracket 0: 1 epoch", "bracket 0: 3 epochs"]
    sums = [sum(column) for column in zip(*(t.x for t in picture.figure.data), strict=True)]
    assert sums == [27, 9, 3, 1, 9, 3, 1, 4, 1]
    assert "9 rungs in 3 brackets: 18 promotions" in picture.text


def test_rungs_without_early_stopping_have_no_promotions() -> None:
    record = study({"x": 0.1}, {"x": 0.2})
    assert rungs(record).text == "There are no rungs: all 2 trials train for 1 epoch."


# Parameters -----------------------------------------------------------------------------------------------


def named(record: StudyRecord) -> dict[str, Picture]:
    return {picture.title: picture for picture in parameters(record)}


def test_parameter_over_decades_has_a_logarithmic_axis() -> None:
    found = named(study({"lr": 1e-4, "width": 32}, {"lr": 0.1, "width": 64}))
    assert found["lr"].figure.layout.xaxis.type == "log"
    assert found["width"].figure.layout.xaxis.type == "linear"


def test_parameter_with_a_uniform_distribution_has_a_linear_axis(record: StudyRecord) -> None:
    assert named(study({"x": 1e-4}, {"x": 0.9}))["x"].figure.layout.xaxis.type == "linear"
    assert named(record)["learning_rate"].figure.layout.xaxis.type == "log"


def test_parameter_with_words_among_numbers_has_categories() -> None:
    axis = named(study({"depth": "auto"}, {"depth": 10}, {"depth": 9}))["depth"].figure.layout.xaxis
    assert axis.type == "category"
    assert list(axis.categoryarray) == ["9", "10", "auto"]


def names_of(figure: go.Figure) -> list[str]:
    """The names of the axes of parallel coordinates, from top to bottom."""
    names = [note for note in figure.layout.annotations if note.yanchor == "bottom"]
    return [note.text.removeprefix("<b>").removesuffix("</b>") for note in sorted(names, key=lambda n: -n.y)]


def test_parameter_with_a_condition_shows_the_trials_that_have_it() -> None:
    record = study({"opt": {"name": "sgd", "momentum": 0.9}}, {"opt": {"name": "adam"}})
    found = named(record)
    assert list(found["opt.momentum"].figure.data[0].x) == [0.9]
    assert list(found["opt.name"].figure.data[0].x) == ["adam", "sgd"]
    figure = parallel(record).figure
    assert "not set" in [note.text for note in figure.layout.annotations]
    assert figure.data[-1].x[names_of(figure).index("opt.momentum")] < 0


def test_parallel_shows_the_most_important_parameters() -> None:
    record = study(*({f"p{i:02}": i + j for i in range(30)} for j in range(3)))
    assert len(parameters(record)) == MAX_PARAMETERS
    assert "20 parameters that matter less are not shown" in parallel(record).text


def test_parallel_has_no_axis_for_constants() -> None:
    assert list(named(study({"x": 0.1, "task": "digits"}, {"x": 0.2, "task": "digits"}))) == ["x"]


def test_parallel_line_ends_at_its_value(record: StudyRecord) -> None:
    figure = parallel(record).figure
    assert names_of(figure)[-1] == "accuracy"
    assert names_of(figure)[0] == importance(record).figure.data[0].y[0]
    best = figure.data[-1]
    assert best.x[-2] == 1.0, "the best value is the end of its axis"
    drawn = sum(list(t.x).count(None) for t in figure.data[:-1])
    assert drawn == len(record.ranking)


def test_parameters_show_each_trial_at_its_best() -> None:
    pen = StudyWriter().start(0, params={"x": 0.25}).end(0, 1, 0.9).start(1, params={"x": 0.5}).end(1, 1, 0.8)
    record = pen.start(0, 1, 3, rung=1, params={"x": 0.25}).end(0, 3, 0.7).close().record()
    assert [(t.trial_id, t.resource, t.loss) for t in record.ranking] == [(0, 1, -0.9), (1, 1, -0.8)]
    [x] = parameters(record)
    assert list(x.figure.data[0].y) == [0.9, 0.8]
    assert parallel(record).figure.data[-1].name == "best: trial 0"


def test_parallel_thins_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel_module, "MAX_LINES", 9)
    picture = parallel(study(*({"x": i / 40} for i in range(40))))
    assert sum(list(t.x).count(None) for t in picture.figure.data[:-1]) == 9
    assert "31 trials are not shown" in picture.text


def test_importance_names_the_trials_behind_it(record: StudyRecord) -> None:
    picture = importance(record)
    first = next(iter(picture.figure.data[0].y))
    assert picture.figure.data[0].x[0] == max(picture.figure.data[0].x)
    assert sum(picture.figure.data[0].x) == pytest.approx(1)
    assert f"{first} matters most" in picture.text
    assert "rough estimate" in picture.text
    few = importance(study({"x": 0.1}))
    assert few.text == "Importance is unknown: at least 10 trials with equal training are needed."


# Several objectives ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def of_two() -> StudyRecord:
    pen = StudyWriter(
        Objective(metric="accuracy", mode=Mode.MAX, extra_objectives=(("latency_ms", Mode.MIN),))
    )
    offers = [(0.9, 7.0), (0.7, 3.0), (0.6, 5.0), (0.8, 1.0)]
    for i, (accuracy, latency) in enumerate(offers):
        pen.start(i, 0, 9).end(i, 9, accuracy, metrics={"accuracy": accuracy, "latency_ms": latency})
    pen.settle(TrialState.COMPLETED, 0, 1, 2).settle(TrialState.STOPPED, 3)
    pen.start(4).end(4, 0, None, failure=BROKEN)
    return pen.close().record()


def test_front_is_a_line_through_its_trials(of_two: StudyRecord) -> None:
    picture = front(of_two)
    others, line = picture.figure.data
    assert (list(line.x), list(line.y)) == ([3.0, 7.0], [0.7, 0.9])
    assert (line.mode, line.line.shape) == ("lines+markers", "hv")
    assert (list(others.x), list(others.y)) == ([5.0], [0.6])
    assert picture.text.startswith("2 of 3 fully trained trials are on the Pareto front")
    layout = picture.figure.layout
    assert (layout.xaxis.title.text, layout.yaxis.title.text) == ("latency_ms", "accuracy")


def test_front_of_three_objectives_has_no_line() -> None:
    pen = StudyWriter(
        Objective(metric="a", mode=Mode.MAX, extra_objectives=(("b", Mode.MIN), ("c", Mode.MIN)))
    )
    pen.start(0, 0, 9).end(0, 9, 0.9, metrics={"a": 0.9, "b": 1.0, "c": 1.0}).settle(TrialState.COMPLETED, 0)
    record = pen.close().record()
    assert front(record).figure.data[1].mode == "markers"


def test_history_by_resource_counts_rows_in_parts() -> None:
    storage = write_study(
        MemoryStorage(),
        trials=4,
        search={"max_resource": 9, "resource": "rows", "epochs": 3},
    )
    assert "after 12 parts" in history_by_resource(StudyRecord.read(storage)).text
