"""The runs of one study in Weights & Biases: found by their ids, so that writes can be repeated."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spark_hpo.redact import redact, redact_all
from spark_hpo.tracking.system_metrics import system_metrics
from spark_hpo.trial import Trial, TrialState

_FINISH_S = 30.0  # that an upload may take at the end of a run


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRun:
    """The content of a trial's run."""

    trial: Trial
    value: float  # of the objective, in the user's direction; NaN: none
    tags: tuple[str, ...] = ()  # best, pareto

    @property
    def version(self) -> list[Any]:
        """Changes with the content."""
        return [self.trial.changed_at, *self.tags]


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyRun:
    """The content of the study's own run."""

    summary: Mapping[str, Any]
    leaderboard: tuple[list[str], list[list[Any]]] | None = None  # columns and rows; None: the study runs
    notes: str = ""


@dataclass(eq=False)
class WandbRuns:
    """Writes runs. Not thread-safe: one thread at a time.

    The run of a trial is open while the trial is running. Online, the server says what it has of a run that
    is opened again. Offline, a run is written anew and the folder of the earlier one is deleted, because the
    files of a run that has ended cannot be continued.

    A file beside the runs has the version in which each trial was written, so that a study which resumes does
    not open the runs of trials that have not changed.
    """

    project: str
    study_id: str
    name: str  # of the study
    config: Mapping[str, Any]  # of the study
    mode: str  # online or offline
    folder: Path  # that has or gets the folder `wandb`
    entity: str | None = None
    group: str | None = None
    _open: dict[str, Any] = field(default_factory=dict)  # by run id

    def __post_init__(self) -> None:
        import wandb

        self._wandb: Any = wandb  # an extra: without its types
        self._written: dict[int, list[Any]] = {}
        with suppress(FileNotFoundError), self._index.open() as lines:
            for line in lines:
                with suppress(ValueError):  # the driver was killed while it wrote the last line
                    entry = json.loads(line)
                    self._written[entry["trial"]] = entry["version"]

    def lacks(self, run: TrialRun) -> bool:
        """Return whether a trial was not written in this version."""
        return self._written.get(run.trial.trial_id) != run.version

    def write_trial(self, content: TrialRun) -> None:
        """Write what the run of a trial lacks."""
        trial = content.trial
        run_id = f"{self.study_id}-{trial.trial_id}"
        with _dropped_on_error(self._open, run_id):
            run = self._run(run_id, f"trial {trial.trial_id}", "trial")
            run.config.update(redact_all(dict(trial.params)), allow_val_change=True)
            for measured in trial.curve:
                if measured.resource >= run.step:
                    metrics = {"seconds": measured.seconds, "rows": measured.rows, **measured.metrics}
                    run.log({**metrics, "_timestamp": measured.time}, step=measured.resource, commit=True)
            run.summary.update(_summary(content))
            run.tags = content.tags
            if trial.failure is not None and trial.failure.traceback:
                file = Path(run.dir) / "traceback.txt"
                file.write_text(redact(trial.failure.traceback))
                run.save(str(file), base_path=run.dir, policy="now")
            if trial.state is not TrialState.RUNNING:
                self._finish(run_id, 1 if trial.state is TrialState.FAILED else 0)
                self._note(trial.trial_id, content.version)

    def write_study(self, content: StudyRun) -> None:
        """Write the summary of the study and, at its end, the leaderboard."""
        with _dropped_on_error(self._open, self.study_id):
            run = self._run(self.study_id, self.name, "study")
            run.config.update(redact_all(dict(self.config)), allow_val_change=True)
            run.summary.update(dict(content.summary))
            if content.notes:
                run.notes = content.notes
            if content.leaderboard is not None:
                columns, rows = content.leaderboard
                run.log(
                    {"leaderboard": self._wandb.Table(columns=columns, data=rows, allow_mixed_types=True)}
                )
                self._finish(self.study_id, 0)

    def close(self) -> None:
        """End the runs that are open: of the study, and of trials that were interrupted."""
        for run_id in list(self._open):
            with suppress(Exception):
                self._finish(run_id, 1)

    def _run(self, run_id: str, name: str, job_type: str) -> Any:
        if run_id not in self._open:
            if self.mode == "online" and not self._wandb.login(prompt=False):  # init would ask a person
                raise RuntimeError("wandb has no API key")
            settings = self._wandb.Settings(
                console="off",
                disable_code=True,
                disable_git=True,
                finish_timeout=_FINISH_S,
                finish_timeout_raises=True,
                silent=True,
                x_disable_machine_info=True,  # of the driver; trials run elsewhere
                x_disable_meta=True,
                x_disable_stats=True,
                x_save_requirements=False,
            )
            self._open[run_id] = self._wandb.init(
                project=self.project,
                entity=self.entity,
                id=run_id,
                name=name,
                group=self.group or self.name,
                job_type=job_type,
                dir=str(self.folder),
                mode=self.mode,
                reinit="create_new",
                resume="allow" if self.mode == "online" else None,
                settings=settings,
            )
        return self._open[run_id]

    def _finish(self, run_id: str, exit_code: int) -> None:
        run = self._open.pop(run_id)
        own = Path(run.dir).resolve().parent
        run.finish(exit_code=exit_code)
        if self.mode == "offline":
            for file in own.parent.glob(f"offline-run-*/run-{run_id}.wandb"):
                if file.parent != own:
                    shutil.rmtree(file.parent)

    def _note(self, trial_id: int, version: Sequence[Any]) -> None:
        self._written[trial_id] = list(version)
        with self._index.open("a") as file:
            file.write(json.dumps({"trial": trial_id, "version": version}) + "\n")

    @property
    def _index(self) -> Path:
        place = "-".join(filter(None, (self.entity, self.project, self.study_id, self.mode)))
        return self.folder / "wandb" / f"spark_hpo-{place}.jsonl"


class _dropped_on_error:
    """Closes a run after an error, so that the next attempt opens it again."""

    def __init__(self, runs: dict[str, Any], run_id: str) -> None:
        self._runs, self._run_id = runs, run_id

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and (run := self._runs.pop(self._run_id, None)) is not None:
            with suppress(Exception):
                run.finish(exit_code=1)


def _summary(content: TrialRun) -> dict[str, Any]:
    trial = content.trial
    failure = trial.failure
    facts = {
        "state": str(trial.state),
        "resource": trial.resource,
        "rung": trial.rung,
        "bracket": trial.bracket,
        "trial": trial.trial_id,
        "trial_seconds": round(trial.seconds, 3),
        **({"value": content.value} if content.value == content.value else {}),
        **{f"{name}_std": value for name, value in trial.spread.items()},
        **({"violation": trial.violation} if trial.violation else {}),
        **({"notes": dict(trial.notes)} if trial.notes else {}),
        **({"parent_trial": trial.parent} if trial.parent is not None else {}),
        **({"checkpoint": trial.checkpoint} if trial.checkpoint else {}),
        **system_metrics(trial.usage),
        **({"failure": failure.message, "failure_kind": str(failure.kind)} if failure else {}),
    }
    summary: dict[str, Any] = redact_all({**facts, **trial.metrics})
    return summary
