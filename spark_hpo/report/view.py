"""A study in Python, read from its directory: the best trial, tables, figures, the report."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spark_hpo.errors import ConfigError, NoTrialSucceeded
from spark_hpo.report.answer import Answer, answer_of
from spark_hpo.report.expected_cost import ExpectedCost, expected_cost
from spark_hpo.report.leaderboard import leaderboard
from spark_hpo.report.notebook import first_show_in_cell, in_notebook
from spark_hpo.report.page import FILE, html_of
from spark_hpo.report.pictures import curves, front, history, parallel, parameters, rungs, slots, usage
from spark_hpo.report.steering import ask
from spark_hpo.report.study_record import StudyRecord
from spark_hpo.report.usage import usage_advice, usage_table
from spark_hpo.study_dir import requests
from spark_hpo.study_dir.storage import Storage
from spark_hpo.trial import Trial

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

_SHOWN_TRIALS = 10


def load_study(study_dir: str | Path) -> StudyView:
    """Read the study in a directory, running or ended. Nothing is changed.

    Raises:
        ConfigError: there is no study.
        JournalError: its files are damaged.
        StorageError: the directory cannot be read.
    """
    return StudyView(Storage(study_dir))


@dataclass(eq=False)
class Plots:
    """The figures of a study, made with plotly: `plots.history().show()`."""

    record: StudyRecord

    def history(self, *, over: str = "time") -> go.Figure:
        """Draw all values and the best so far, over time or over the resource (`over="resource"`)."""
        draw = {"time": history.history, "resource": history.history_by_resource}[over]
        return draw(self.record).figure

    def parallel(self) -> go.Figure:
        """Draw parallel coordinates: a line for each trial across its parameters."""
        return parallel.parallel(self.record).figure

    def importance(self) -> go.Figure:
        """Draw how much each parameter matters (PED-ANOVA)."""
        return parameters.importance(self.record).figure

    def rungs(self) -> go.Figure:
        """Draw how many trials reached each rung, and what happened to them."""
        return rungs.rungs(self.record).figure

    def curves(self) -> go.Figure:
        """Draw the learning curves of all trials."""
        return curves.curves(self.record).figure

    def slots(self) -> go.Figure:
        """Draw the use of slots over time, with the reasons why slots were idle."""
        return slots.slots(self.record).figure

    def usage(self) -> go.Figure:
        """Draw how long the steps of each assignment waited for data, and the use of the GPUs."""
        return usage.usage(self.record).figure

    def pareto_front(self) -> go.Figure:
        """Draw the Pareto front, for a study with several objectives."""
        return front.front(self.record).figure


class StudyFindings(ABC):
    """The results of a study, whether this process has run it or not."""

    @property
    @abstractmethod
    def storage(self) -> Storage:
        """The study directory."""

    @cached_property
    def record(self) -> StudyRecord:
        """The content of the study directory when it was first accessed."""
        return StudyRecord.read(self.storage)

    @property
    def best_trial(self) -> Trial:
        """The trial with the best value on the validation split, as it was reported.

        Raises:
            NoTrialSucceeded: there is none yet.
        """
        best = self._answer.best
        if best is None:
            raise NoTrialSucceeded(f"{self.storage.url}: no trial has succeeded yet")
        return best

    @property
    def best_params(self) -> dict[str, Any]:
        """The parameters of the best trial."""
        return dict(self.best_trial.params)

    @property
    def trials(self) -> pd.DataFrame:
        """One row per trial, as it was when it was best; the best trial first.

        Columns: trial, state, rung, resource, value, seconds, and the parameters by their dotted names; with
        folds also spread, the standard deviation of the value over the folds.
        """
        record = self.record
        front = {trial.trial_id for trial in self._answer.front}
        return leaderboard(record.at_best, record.objective, front, best=record.best_id)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings about using the best trial, of one or two sentences each; usually empty."""
        return self._answer.warnings

    @property
    def outlook(self) -> str | None:
        """A sentence that says if more trials would help; None: not known, or no budget ended the search."""
        return self._answer.outlook

    @property
    def usage(self) -> pd.DataFrame:
        """What the ranks used: one row per measured rank of an attempt, in the order of the attempts.

        Columns: trial, rung, fold, attempt, rank, seconds, wait_share (of the time of its steps, 0..1),
        cpu_cores (mean), memory_bytes (peak), memory_limit_bytes, read_bytes, disk_bytes, gpu (0..1),
        gpu_memory_bytes (peak), gpu_memory_total_bytes, gpu_power_w.
        """
        return usage_table(self.record)

    @property
    def usage_advice(self) -> tuple[str, ...]:
        """What to change so that ranks wait less for data and use their memory and GPUs; usually empty."""
        return usage_advice(self.record)

    def expected_cost(self, params: Mapping[str, Any]) -> ExpectedCost:
        """Predict how long a configuration trains and what memory it needs, tried or not, from the trials.

        Args:
            params: all parameters of the space, as in `best_params`.

        Returns:
            `seconds` of a full training, from submission to report, and `memory_bytes`, the most memory of a
            GPU or, without GPUs, of a rank. Each is None until five trials have measured it.

        Raises:
            SpaceError: the configuration does not fit the space.
        """
        return expected_cost(self.record, params)

    @property
    def plot(self) -> Plots:
        """The figures of the study."""
        return Plots(self.record)

    def report(self) -> str:
        """Write `report.html`, a page that needs no network, into the study directory and return its path.

        Raises:
            StorageError: the directory cannot be written.
        """
        self.storage.write(FILE, html_of(self.record).encode())
        return f"{self.storage.url}/{FILE}"

    @cached_property
    def _answer(self) -> Answer:
        return answer_of(self.record)

    def _headline(self) -> str:
        record, best = self.record, self._answer.best
        if best is None:
            return f"{record.name}: no trial has succeeded yet"
        metric = record.objective.metric
        line = f"{record.name}: trial {best.trial_id} is the best after {record.amount(best.resource)}, "
        spread = "" if self._answer.spread is None else f" ± {self._answer.spread:.2g}"
        line += f"{metric} {best.metrics[metric]:.4g}{spread} on validation"
        if (peak := self._answer.peak) is not None:
            line += f" (peak: {peak.value:.4g} after {record.amount(peak.resource)})"
        test = self._answer.test or {}
        return line + (f", {test[metric]:.4g} on test" if metric in test else "")

    @property
    def _notes(self) -> tuple[str, ...]:
        return (*self.warnings, *([self.outlook] if self.outlook else []))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._headline()}>"

    def _table(self) -> str:
        from html import escape

        table = self.trials
        shown = table.head(_SHOWN_TRIALS).to_html(
            index=False, border=0, na_rep="", float_format=lambda number: f"{number:.4g}"
        )
        hidden = len(table) - _SHOWN_TRIALS
        rest = f"<p>and {hidden} more in <code>.trials</code></p>" if hidden > 0 else ""
        notes = "".join(f"<p>{escape(warning)}</p>" for warning in self._notes)
        return f"<p><b>{escape(self._headline())}</b></p>{notes}{shown}{rest}"

    def _repr_html_(self) -> str:
        """Return a table and a figure. The browser loads the figure's script from the network."""
        picture: str = self.plot.history().to_html(full_html=False, include_plotlyjs="cdn")
        return self._table() + picture

    def show(self) -> None:
        """Show a table and a figure in a notebook, once per cell, because `tune` shows its result itself."""
        from IPython.display import HTML, display

        if first_show_in_cell(self):
            display(HTML(self._table()))  # type: ignore[no-untyped-call]
            self.plot.history().show()

    def _ipython_display_(self) -> None:
        """Called by IPython, in a terminal too."""
        if in_notebook():
            self.show()
        else:
            print(repr(self))


class StudyView(StudyFindings):
    """The results of a study, from its directory alone, and requests to its driver."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.record  # noqa: B018 - raises now if the directory is not readable

    @property
    def storage(self) -> Storage:
        return self._storage

    def pause(self) -> requests.Answer:
        """Save the running trials, and leave the slots to others. The driver waits for `resume`.

        Like the other methods that steer a study, it sends a request to the driver, wherever that runs, and
        waits up to 30 s for the answer.

        Raises:
            ConfigError: the driver refuses, or there is none; the message says why.
            StorageError: the directory cannot be written.
        """
        return self._request(requests.Verb.PAUSE, {})

    def resume(self) -> requests.Answer:
        """Undo `pause` and `stop`, while a driver works on the study. To start a driver, run the study again.

        Raises:
            ConfigError, StorageError: as for `pause`.
        """
        return self._request(requests.Verb.RESUME, {})

    def stop(self, *, now: bool = False) -> requests.Answer:
        """End the search, and evaluate and register the best model.

        Args:
            now: cancel running trials, instead of letting them finish the rung that they are in.

        Raises:
            ConfigError, StorageError: as for `pause`.
        """
        return self._request(requests.Verb.STOP, {"now": now})

    def add(self, params: Mapping[str, Any], *, like: int | None = None) -> requests.Answer:
        """Add a trial. Without a driver, the next one takes the request, as with `drop`, `extend`, `narrow`.

        Args:
            params: values by name; the names of nested parameters may be dotted.
            like: the trial that has the other values; None: the best one so far, if any are missing.

        Raises:
            ConfigError, StorageError: as for `pause`.
        """
        return self._request(requests.Verb.ADD, {"params": dict(params), "like": like})

    def drop(self, trial: int) -> requests.Answer:
        """Train a trial no further. What it has reported before stays.

        Raises:
            ConfigError, StorageError: as for `pause`.
        """
        return self._request(requests.Verb.DROP, {"trial": trial})

    def extend(self, limits: Mapping[str, str | float]) -> requests.Answer:
        """Raise limits of the budget.

        Args:
            limits: such as `{"budget.trials": "+50"}`, or a number as the new limit.

        Raises:
            ConfigError, StorageError: as for `pause`.
        """
        return self._request(requests.Verb.EXTEND, {"budget": dict(limits)})

    def narrow(self, ranges: Mapping[str, Sequence[Any]]) -> requests.Answer:
        """Change the ranges of parameters for new trials.

        Args:
            ranges: `[low, high]` of a number, narrower or wider, or the options that a choice keeps, by name.

        Raises:
            ConfigError, StorageError: as for `pause`.
        """
        return self._request(requests.Verb.NARROW, {"space": {key: list(ranges[key]) for key in ranges}})

    def _request(self, verb: requests.Verb, arguments: Mapping[str, Any]) -> requests.Answer:
        answer = ask(self.storage, verb, arguments)
        if answer.reply is requests.Reply.REFUSED:
            raise ConfigError(f"{verb}: refused: {answer.message}")
        return answer
