import dataclasses
import math
from collections.abc import Callable

import plotly.graph_objects as go
import pytest

from spark_hpo.report.plots import MAX_PARAMETERS, history, page, parameters, pareto_front
from spark_hpo.trial import Mode, Objective, Trial, TrialState

ACCURACY = Objective(metric="accuracy", mode=Mode.MAX)
Draw = Callable[[list[Trial], Objective], go.Figure]


def trial(trial_id: int, loss: float = math.inf, rung: int = 0, **params: object) -> Trial:
    return Trial(
        trial_id=trial_id,
        params=params,
        state=TrialState.PAUSED if math.isfinite(loss) else TrialState.FAILED,
        bracket=0,
        rung=rung,
        resource=3**rung,
        loss=loss,
        started_at=1000.0,
        ended_at=1000.0 + 60 * (trial_id + 1),
    )


def axis(figure: go.Figure, name: str) -> go.layout.XAxis:
    [trace] = [trace for trace in figure.data if trace.name == name]
    return figure.layout["xaxis" + (trace.xaxis or "x")[1:]]


@pytest.mark.parametrize("draw", [history, parameters])
@pytest.mark.parametrize(
    "trials",
    [
        [],
        [trial(0)],
        [trial(0), trial(1)],
        [trial(0, -0.5)],
        [trial(0, -0.5, lr=0.1)],
        [trial(0, math.nan, lr=0.1)],
        [trial(0, -0.5, a=None, b="x", c={"d": True, "e": [1]}), trial(1, -0.4, a=3, b=2)],
    ],
    ids=["none", "one failed", "all failed", "no parameters", "one", "nan", "odd values"],
)
def test_every_study_can_be_drawn(draw: Draw, trials: list[Trial]) -> None:
    assert "<div" in draw(trials, ACCURACY).to_html(include_plotlyjs=False)


def test_an_empty_picture_says_why() -> None:
    assert history([], ACCURACY).layout.annotations[0].text == "no trial has been measured"


def test_the_best_so_far_never_gets_worse() -> None:
    figure = history([trial(0, -0.5), trial(1, -0.3), trial(2, -0.8, rung=1), trial(3)], ACCURACY)
    best = figure.data[-1]
    assert best.name == "best so far"
    assert list(best.y) == [0.5, 0.5, 0.8]
    assert list(best.x) == [1, 2, 3]
    assert best.line.shape == "hv"


def test_each_rung_has_its_colour() -> None:
    figure = history([trial(0, -0.5), trial(1, -0.3, rung=1), trial(2, -0.8, rung=3)], ACCURACY)
    assert [trace.name for trace in figure.data] == ["rung 0", "rung 1", "rung 3", "best so far"]
    assert len({trace.marker.color for trace in figure.data[:3]}) == 3


def test_failures_are_counted_in_the_title() -> None:
    assert "2 trials, 1 failed" in history([trial(0, -0.5), trial(1)], ACCURACY).layout.title.text


def test_a_parameter_over_decades_has_a_logarithmic_axis() -> None:
    figure = parameters([trial(0, -0.5, lr=1e-4, width=32), trial(1, -0.4, lr=0.1, width=64)], ACCURACY)
    assert axis(figure, "lr").type == "log"
    assert axis(figure, "width").type == "linear"


def test_words_are_categories_even_among_numbers() -> None:
    figure = parameters([trial(0, -0.5, depth="auto", on=True), trial(1, -0.4, depth=3, on=False)], ACCURACY)
    assert axis(figure, "depth").type == "category"
    assert axis(figure, "on").type == "category"


def test_a_conditional_parameter_shows_the_trials_that_have_it() -> None:
    figure = parameters(
        [trial(0, -0.5, opt={"name": "sgd", "momentum": 0.9}), trial(1, -0.4, opt={"name": "adam"})], ACCURACY
    )
    by_name = {trace.name: trace for trace in figure.data}
    assert list(by_name["opt.momentum"].x) == [0.9]
    assert list(by_name["opt.name"].x) == ["sgd", "adam"]


def offer(trial_id: int, accuracy: float, latency_ms: float, **changes: object) -> Trial:
    changes = {
        "state": TrialState.COMPLETED,
        "metrics": {"accuracy": accuracy, "latency_ms": latency_ms},
        **changes,
    }
    return dataclasses.replace(trial(trial_id, -accuracy), **changes)  # type: ignore[arg-type]


def test_the_front_is_a_line_through_its_trials() -> None:
    both = dataclasses.replace(ACCURACY, also=(("latency_ms", Mode.MIN),))
    trials = [
        offer(0, 0.9, 7.0),
        offer(1, 0.7, 3.0),
        offer(2, 0.6, 5.0),
        offer(3, 0.8, 1.0, state=TrialState.STOPPED),
        trial(4),
    ]
    figure = pareto_front(trials, both, {0, 1})
    others, front = figure.data
    assert (list(front.x), list(front.y)) == ([3.0, 7.0], [0.7, 0.9])
    assert (front.mode, front.line.shape) == ("lines+markers", "hv")
    assert (list(others.x), list(others.y)) == ([5.0], [0.6])
    assert figure.layout.title.text == "Pareto front: 2 of 3 trials trained to the end"
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == ("latency_ms", "accuracy")
    more = dataclasses.replace(ACCURACY, also=(("latency_ms", Mode.MAX),))
    assert pareto_front(trials, more, {0}).data[1].line.shape == "vh"


def test_of_three_objectives_the_front_is_no_line() -> None:
    three = dataclasses.replace(ACCURACY, also=(("latency_ms", Mode.MIN), ("size", Mode.MIN)))
    assert pareto_front([offer(0, 0.9, 7.0)], three, {0}).data[1].mode == "markers"


def test_a_study_without_a_front_says_so() -> None:
    both = dataclasses.replace(ACCURACY, also=(("latency_ms", Mode.MIN),))
    figure = pareto_front([trial(0), trial(1, -0.5)], both, ())
    assert figure.layout.annotations[0].text == "no trial has been measured"


def test_too_many_parameters_are_said_to_be_cut() -> None:
    figure = parameters([trial(0, -0.5, **{f"p{i:02}": i for i in range(30)})], ACCURACY)
    assert len(figure.data) == MAX_PARAMETERS
    assert "24 of 30" in figure.layout.title.text


def test_a_page_works_without_a_network_and_has_plotly_once() -> None:
    some = [trial(0, -0.5, lr=0.1)]
    text = page(
        {"history": history(some, ACCURACY), "parameters": parameters(some, ACCURACY)}, title="a <study>"
    )
    assert "<title>a &lt;study&gt;</title>" in text
    assert 'src="http' not in text
    assert 3e6 < len(text) < 8e6
    assert text.count('id="history"') == text.count('id="parameters"') == 1
