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
    """Draw the first two objectives of the fully trained trials, with the front in a colour.

    With two objectives the front is a line around the dominated area. With more it has no line, because in
    the first two objectives some of its points are dominated.
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
            # The line has its steps on the dominated side of each point.
            "line": {"shape": "hv" if x_mode is Mode.MIN else "vh"},
            "marker": {"color": colour, "size": 8},
            "text": [f"trial {trial.trial_id}" for trial in some],
            "hovertemplate": "%{text}<br>%{x:.4g}, %{y:.4g}<extra></extra>",
        }
        for name, some, colour in (("other trials", others, GREY), ("Pareto front", on_front, ACCENT))
    ]
    words = f"{len(on_front)} of {len(done)} fully trained trials are on the Pareto front"
    return draw(
        traces,
        "Pareto front",
        f"{words} of {', '.join(objective.metrics)}: no trial is better in all of them.",
        xaxis={"title": {"text": plain(x_name)}},
        yaxis={"title": {"text": plain(y_name)}},
    )
