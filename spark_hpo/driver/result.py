"""The result of a study, and its JSON summary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from spark_hpo.config import StudyConfig
from spark_hpo.ranking import pareto_front
from spark_hpo.report.confirmation import confirmation_of
from spark_hpo.report.reserve import reserve_of
from spark_hpo.report.view import StudyFindings
from spark_hpo.study import Study
from spark_hpo.study_dir.journal import Journal
from spark_hpo.study_dir.storage import Storage
from spark_hpo.tracking.model_registry import RegisteredModel
from spark_hpo.trial import Trial


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Result(StudyFindings):
    """The result of a study that ran in this process."""

    config: StudyConfig
    study: Study
    journal: Journal
    best: Trial
    test: dict[str, float]  # metrics of the best trial on the test split; empty if it was not tested
    stopped_by: str
    wall_s: float  # wall time of this driver
    tracking: dict[str, Any]
    model: RegisteredModel | None  # None: a training function saved none, or MLflow did not respond
    is_tracked: bool  # False if MLflow lacks data, which `sync_study` writes
    test_error: str | None = None  # why the best trial could not be evaluated on the test split
    load_model: Callable[[], Any]  # loads the model of the best trial

    @property
    def storage(self) -> Storage:
        return Storage(self.config.study_dir)

    @property
    def best_trial(self) -> Trial:
        """The trial with the best value on the validation split, as it was reported."""
        return self.best

    def best_model(self) -> Any:
        """Load the model of the best trial from its checkpoint, without MLflow.

        Returns:
            For a task, a `Predictor` with `predict(DataFrame)` and the torch module `model`, in evaluation
            mode on the CPU. For a training function, the checkpoint that it passed to `ctx.report`; of a
            folder, the Path of a temporary copy, which the caller deletes.

        Raises:
            CheckpointError: there is no checkpoint, or it cannot be read.
        """
        return self.load_model()

    @property
    def pareto_front(self) -> list[Trial]:
        """The fully trained trials that no other trial dominates, ordered by id. Empty with one objective."""
        return pareto_front(self.journal.trials.values(), self.config.objective.build())

    def summary(self) -> dict[str, Any]:
        """Return the JSON summary that `spark-hpo run` prints at the end."""
        progress, objective = self.study.progress, self.config.objective.build()
        states = Counter(str(trial.state) for trial in self.journal.trials.values())
        return {
            "study": self.config.name,
            "study_dir": self.config.study_dir,
            "metric": objective.metric,
            "mode": str(objective.mode),
            "best": {
                "trial": self.best.trial_id,
                "params": dict(self.best.params),
                "value": self.best.metrics[objective.metric],
                **({"spread": self.best.spread.get(objective.metric)} if self.best.has_folds else {}),
                "resource": self.best.resource,
            },
            **({"pareto_front": self._front_records()} if objective.extra_objectives else {}),
            "test": self.test,
            **({} if self.test_error is None else {"test_error": self.test_error}),
            **({"warnings": list(self.warnings)} if self.warnings else {}),
            **({} if self.outlook is None else {"outlook": self.outlook}),
            "trials": dict(sorted(states.items())),
            "segments": {"run": progress.run, "replayed": progress.replayed, "failed": progress.failed},
            "resource_spent": progress.resource_spent,
            **(
                {"confirmation": [each.to_json() for each in finals]}
                if (finals := confirmation_of(self.record))
                else {}
            ),
            **({"reserve": reserve.to_json()["used"]} if (reserve := reserve_of(self.record)).trials else {}),
            **({"files_left_out": list(left_out)} if (left_out := self.study.excluded_files) else {}),
            "slot_utilization": round(progress.busy_seconds / progress.slot_seconds, 4)
            if progress.slot_seconds
            else None,
            "wall_s": round(self.wall_s, 1),
            "stopped_by": self.stopped_by,
            "mlflow": {**self.tracking, "complete": self.is_tracked},
            "model": self.model and self.model.summary(),
        }

    def _front_records(self) -> list[dict[str, Any]]:
        metrics = self.config.objective.build().metrics
        return [
            {
                "trial": trial.trial_id,
                "params": dict(trial.params),
                "metrics": {name: trial.metrics[name] for name in metrics},
            }
            for trial in self.pareto_front
        ]
