"""Weights & Biases: a run for each trial and one for the study, in one group."""

from __future__ import annotations

import importlib.util
import logging
import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from spark_hpo.callbacks._wandb_runs import StudyRun, TrialRun, WandbRuns
from spark_hpo.errors import ConfigError
from spark_hpo.ranking import pareto_front
from spark_hpo.redact import one_line
from spark_hpo.report.leaderboard import flat_params, leaderboard
from spark_hpo.study.callback import Callback
from spark_hpo.tracking.outbox import Outbox
from spark_hpo.trial import Assignment, Report, Trial

if TYPE_CHECKING:
    from spark_hpo.study.callback import RunningStudy

logger = logging.getLogger(__name__)

_STUDY = -1  # key of the study's own run; trials have keys from 0
_CLOSE_S = 60.0  # that the end of a study waits for the last runs


class WeightsAndBiases(Callback):
    """Writes a study to Weights & Biases, in a group with the name of the study.

    - **A run for each trial**: its parameters as the config, its learning curve by the resource, and its
      state, rung and failure in the summary. The best trial has the tag `best`, those of the Pareto front
      have the tag `pareto`.
    - **A run for the study**, of the job type `study`: the settings as the config, the best trial and its
      parameters in the summary, and the leaderboard.

    A thread writes the runs, so training never waits for the network. After an outage the thread writes what
    is missing, and what is missing at the end is written when the study is resumed. A resumed study continues
    its runs, and does not write a measurement twice. Only the driver talks to the service.

    The API key is read by wandb itself, from `WANDB_API_KEY` or the file that `wandb login` has written.

    Args:
        project: in W&B.
        entity: user or team; None: the default of the account.
        group: of the runs; None: the name of the study.
        mode: "offline" writes folders that `wandb sync` uploads; None: `WANDB_MODE`, or online.
        dir: the folder for the files of wandb, in `wandb/`; None: `WANDB_DIR`, or the working directory.

    Raises:
        ConfigError: wandb is not installed, or has no API key.
    """

    def __init__(
        self,
        project: str,
        *,
        entity: str | None = None,
        group: str | None = None,
        mode: Literal["online", "offline"] | None = None,
        dir: str | Path | None = None,
    ) -> None:
        if importlib.util.find_spec("wandb") is None:
            raise ConfigError(
                "WeightsAndBiases(project): wandb is not installed",
                cure='Run: pip install "spark_hpo[wandb]"',
            )
        self._mode = mode or os.environ.get("WANDB_MODE", "online")
        if self._mode not in ("online", "offline"):
            raise ConfigError("must be online or offline", key="mode", value=self._mode)
        if self._mode == "online" and not _has_key():
            raise ConfigError(
                "WeightsAndBiases(project): wandb has no API key",
                cure='Set WANDB_API_KEY, run `wandb login`, or pass mode="offline"',
            )
        self._project, self._entity, self._group = project, entity, group
        self._folder = Path(dir or os.environ.get("WANDB_DIR") or ".")
        self._runs: WandbRuns | None = None
        self._outbox: Outbox[int, TrialRun | StudyRun] | None = None
        self._name = ""
        self._is_complete = True

    def on_study_start(self, study: RunningStudy) -> None:
        self._open(study)
        self._put_study(_study_run(study))
        self._put_changed(study)

    def _open(self, study: RunningStudy) -> None:
        """Start the thread that writes."""
        self._name = str(study.definition.config.get("name", "study"))
        (self._folder / "wandb").mkdir(parents=True, exist_ok=True)
        self._runs = WandbRuns(
            project=self._project,
            study_id=study.definition.study_id,
            name=self._name,
            config=study.definition.config,
            mode=self._mode,
            folder=self._folder,
            entity=self._entity,
            group=self._group,
        )
        self._outbox = Outbox("spark_hpo-wandb", self._write, on_outage=self._warn, at_end=self._runs.close)

    def on_assigned(self, study: RunningStudy, assignment: Assignment) -> None:
        self._put(_trial_run(study, study.trials[assignment.trial_id]))

    def on_report(self, study: RunningStudy, trial: Trial, report: Report) -> None:
        self._put(_trial_run(study, trial))
        if study.best is not None and study.best.trial_id == trial.trial_id:
            self._put_study(_study_run(study))

    def on_trial_end(self, study: RunningStudy, trial: Trial) -> None:
        self._put(_trial_run(study, trial))

    def on_study_end(self, study: RunningStudy) -> None:
        if self._outbox is not None:
            self._put_changed(study)
            self._put_study(_study_run(study, has_ended=True))
            self._close()

    def on_tested(self, study: RunningStudy, trial: Trial, metrics: Mapping[str, float]) -> None:
        if not self._is_complete:
            return  # an outage; the next call writes this, too
        ended = _study_run(study, has_ended=True)
        tested = {f"test.{name}": value for name, value in metrics.items()}
        self._open(study)
        self._put_study(replace(ended, summary={**ended.summary, **tested}))
        self._close()

    def _close(self) -> None:
        """Wait for what is not written yet, and end the thread."""
        assert self._outbox is not None
        missing = self._outbox.close(_CLOSE_S)
        self._outbox = None
        self._is_complete = not missing
        if missing:
            logger.warning(
                "Weights & Biases lacks %d runs of study %r. The journal has them: run the same command "
                "again when the service is back",
                missing,
                self._name,
            )

    def _put_study(self, run: StudyRun) -> None:
        if self._outbox is not None:
            self._outbox.put(_STUDY, run)

    def _put_changed(self, study: RunningStudy) -> None:
        """Take over the trials that are not there in their present state, with their tags."""
        tags: dict[int, tuple[str, ...]] = {}
        if study.objective.extra_objectives:
            front = pareto_front(study.trials.values(), study.objective)
            tags |= dict.fromkeys((trial.trial_id for trial in front), ("pareto",))
        if study.best is not None:
            tags[study.best.trial_id] = ("best", *tags.get(study.best.trial_id, ()))
        for trial in study.trials.values():
            self._put(_trial_run(study, trial, tags.get(trial.trial_id, ())))

    def _put(self, run: TrialRun) -> None:
        if self._runs is not None and self._outbox is not None and self._runs.lacks(run):
            self._outbox.put(run.trial.trial_id, run)

    def _write(self, key: int, content: TrialRun | StudyRun) -> None:
        assert self._runs is not None
        if isinstance(content, StudyRun):
            self._runs.write_study(content)
        else:
            self._runs.write_trial(content)

    def _warn(self, error: Exception) -> None:
        logger.warning(
            "Weights & Biases does not answer; the study continues, and missing runs are written later: %s",
            one_line(error),
        )


def _has_key() -> bool:
    """Return whether wandb may find an API key. The service itself says whether it is valid."""
    files = (os.environ.get("NETRC", ""), "~/.netrc", "~/_netrc")
    return bool(
        os.environ.get("WANDB_API_KEY")
        or os.environ.get("WANDB_IDENTITY_TOKEN_FILE")
        or any(file and Path(file).expanduser().is_file() for file in files)
    )


def _trial_run(study: RunningStudy, trial: Trial, tags: tuple[str, ...] = ()) -> TrialRun:
    return TrialRun(trial=trial, value=study.objective.value(trial.loss), tags=tags)


def _study_run(study: RunningStudy, *, has_ended: bool = False) -> StudyRun:
    best, objective = study.best, study.objective
    summary: dict[str, Any] = {
        "trials": len(study.trials),
        **{f"trials_{state}": count for state, count in study.states.items()},
        **({"stopped_by": study.stopped_by} if study.stopped_by else {}),
    }
    notes = ""
    if best is not None:
        params = flat_params(best.params)
        summary |= {"best.trial": best.trial_id, "best.resource": best.resource}
        summary |= {f"best.{name}": value for name, value in best.metrics.items()}
        summary |= {f"best.params.{name}": value for name, value in params.items()}
        notes = f"Best: trial {best.trial_id}, {objective.metric} {best.metrics[objective.metric]:.4g}."
    if not has_ended:
        return StudyRun(summary=summary, notes=notes)
    front = {trial.trial_id for trial in pareto_front(study.trials.values(), objective)}
    table = leaderboard(study.trials.values(), objective, front, best=None if best is None else best.trial_id)
    return StudyRun(
        summary=summary,
        notes=notes,
        leaderboard=(list(map(str, table)), [list(map(_cell, row)) for row in table.itertuples(index=False)]),
    )


def _cell(value: Any) -> Any:
    """Return a value as a table of W&B takes it."""
    if hasattr(value, "item"):  # numpy's scalars
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
