"""The cost of any configuration, predicted from the trials of a study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spark_hpo.report.study_record import StudyRecord
from spark_hpo.search.sampler import Outcome
from spark_hpo.search.samplers.costs import CostPredictor, Costs
from spark_hpo.search.space.axis import Axes


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedCost:
    """The predicted cost of a configuration. A value is None until five trials have measured it."""

    seconds: float | None  # of full training, from submission to report
    memory_bytes: float | None  # most memory of a GPU or, without GPUs, of a rank


def expected_cost(record: StudyRecord, params: Mapping[str, Any]) -> ExpectedCost:
    """Predict what a configuration costs, from the trials so far.

    Raises:
        SpaceError: the configuration does not fit the space.
    """
    axes, costs = Axes(record.space), Costs()
    rows = axes.row(record.space.validate(params))[None]
    for attempt in record.reported:
        if attempt.report is not None:
            outcome = Outcome.of(attempt.report, resource_from=attempt.assignment.resource_from)
            costs.note(attempt.assignment.trial_id, outcome)
    trials = {trial_id: trial.params for trial_id, trial in record.trials.items()}
    predictor = CostPredictor(axes, costs, trials)
    pace, memory = predictor.seconds(rows), predictor.memory_bytes(rows)
    return ExpectedCost(
        seconds=None if pace is None else float(pace[0]) * record.search.max_resource,
        memory_bytes=None if memory is None else float(memory[0]),
    )
