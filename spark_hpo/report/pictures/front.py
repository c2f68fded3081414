"""The Pareto front of a study with several objectives."""

from __future__ import annotations

import math

from spark_hpo.objective import Mode
from spark_hpo.ranking import pareto_front
from spark_hpo.report.pictures.theme import ACCENT, GREY, Picture, draw, plain, thinned
from spark_hpo.report.study_record import StudyRecord
from spark_hpo.trial import TrialState

MAX_POINTS = 3000


def front(record: StudyRecord) -> Picture:
    """The first two objectives of the trials that were trained to the end, those on the front in a colour.

    Of two objectives the front is a line: what it encloses is dominated. Of more it has no line, because
    some of its points lie behind others in the first two.
    """
    objective = record.objective
    (x_name, x_mode), y_name = objective.extra_objectives[0], objective.metric
    done = [
        trial
        for trial in record.trials.values()
        if trial.state is TrialState.COMPLETED
        and math.isfinite(trial.loss)
        and {x_name, y_name} <= trial.metrics.keys()
    ]
    members = {trial.trial_id for trial in pareto_front(record.trials.values(), objective)}
    on_front = sorted((t for t in done if t.trial_id in members), key=lambda trial: trial.metrics[x_name])
    others = thinned([trial for trial in done if trial.trial_id not in members], MAX_POINTS)
    traces = [
        {
            "x": [trial.metrics[x_name] for trial in some],
            "y": [trial.metrics[y_name] for trial in some],
            "mode": "lines+markers"
            if name == "Pareto front" and len(objective.extra_objectives) == 1
            else "markers",
            "name": name,
            # Where less is better along x, what a point has in y can be had from there on: first across.
            "line": {"shape": "hv" if x_mode is Mode.MIN else "vh"},
            "marker": {"color": colour, "size": 8},
            "text": [f"trial {trial.trial_id}" for trial in some],
            "hovertemplate": "%{text}<br>%{x:.5g}, %{y:.5g}<extra></extra>",
        }
        for name, some, colour in (("other trials", others, GREY), ("Pareto front", on_front, ACCENT))
    ]
    words = f"{len(on_front)} of {len(done)} trials trained to the end are on the Pareto front"
    return draw(
        traces,
        "Pareto front",
        f"{words} of {', '.join(objective.metrics)}: no other one is better in all.",
        xaxis={"title": {"text": plain(x_name)}},
        yaxis={"title": {"text": plain(y_name)}},
    )
