"""Checks the guarantees of a study from its files, without the code that has written them.

`violations(study)` reads the lines of the journal, the database of MLflow and the names of files, and returns
one sentence per broken guarantee.
"""

from __future__ import annotations

import itertools
import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Record = Mapping[str, Any]  # one line of the journal
Key = tuple[
    int, int, str, int
]  # trial, rung, split, fold (0: none): one piece of work, whatever its attempts

# The files that a study may leave in its directory.
_NAMES = {
    *("journal", "epochs", "lease.json", "lease.lock", "study.json", "checkpoints", "fences"),
    *("report.html", "settings.json", "tracking.json", "forecast.json"),
}
_OVER = {"completed", "stopped"}


def violations(
    study: Path,
    *,
    mlflow: Path | None = None,
    rows: int | None = None,
    is_finished: bool = True,
) -> list[str]:
    """Return a sentence per broken guarantee.

    Args:
        mlflow: the SQLite file of MLflow, or None to skip it.
        rows: rows of the training split, which an epoch reads once each; None if they change.
        is_finished: whether the study has ended. Otherwise it may have open work and temporary files.
    """
    try:
        records = read_journal(study / "journal")
    except ValueError as exc:
        return [str(exc)]
    history = _History.of(records)
    found = [*history.broken, *_in_order(records), *_chains(history), *_curves(history, rows)]
    found += _settled(history, is_finished=is_finished)
    found += _checkpoints(history, study, is_finished=is_finished)
    if mlflow is not None and is_finished:
        found += _mlflow(history, mlflow, study)
    if is_finished:
        found += _leftovers(study)
    return found


def read_journal(folder: Path) -> list[dict[str, Any]]:
    """Return the valid records in order: of each log as many as the next driver has seen.

    Raises:
        ValueError: a record other than the last of a log cannot be read.
    """
    logs: dict[int, list[dict[str, Any]]] = {}
    for file in sorted(folder.glob("*.jsonl")):
        lines = file.read_bytes().splitlines(keepends=True)
        records = []
        for number, line in enumerate(lines, start=1):
            try:
                if not line.endswith(b"\n"):
                    raise ValueError("it has no end")
                records.append(json.loads(line))
            except ValueError as exc:
                if number < len(lines):
                    raise ValueError(f"{file.name}: line {number} cannot be read: {exc}") from exc
        if records:
            logs[int(file.stem)] = records
    if not logs:
        return []
    newest = max(logs)
    seen = {int(epoch): count for epoch, count in logs[newest][0]["after"].items()}
    return [record for epoch in sorted(seen) for record in logs[epoch][: seen[epoch]]] + logs[newest]


@dataclass
class _History:
    """The assignments and reports of the journal, and the rules that they break."""

    broken: list[str] = field(default_factory=list)
    assigned: dict[Key, list[Record]] = field(default_factory=lambda: defaultdict(list))
    lost: dict[Key, list[Record]] = field(default_factory=lambda: defaultdict(list))
    reported: dict[Key, Record] = field(default_factory=dict)
    state: dict[int, str] = field(default_factory=dict)  # the last state of each trial

    @classmethod
    def of(cls, records: Sequence[Record]) -> _History:
        history = cls()
        for record in records:
            match record["event"]:
                case "assigned":
                    history._on_assigned(record)
                case "lost":
                    history._on_result(record)
                    history.lost[_key(record)].append(record)
                case "reported" | "fold":
                    history._on_result(record)
                    history.reported[_key(record)] = record
                case "settled":
                    for trial in record["trials"]:
                        history.state[trial] = record["state"]
        return history

    def of_trial(self, trial_id: int) -> list[Record]:
        """Return the reports of a trial on the validation split, by rung; not those of single folds."""
        return [
            report
            for (trial, _, split, fold), report in sorted(self.reported.items())
            if trial == trial_id and split == "validation" and not fold
        ]

    @property
    def trials(self) -> list[int]:
        return sorted({trial for trial, *_ in self.assigned})

    def _on_assigned(self, record: Record) -> None:
        key = _key(record)
        before = self.assigned[key]
        if key in self.reported:
            self.broken.append(f"{_name(key)} was assigned again after it had been reported")
        if before and {**before[-1], **_CHANGING} != {**record, **_CHANGING}:
            self.broken.append(f"{_name(key)}: the next attempt has other work")
        if record["attempt"] != len(before) + 1:
            self.broken.append(f"{_name(key)}: attempt {record['attempt']} follows {len(before)} others")
        before.append(record)

    def _on_result(self, record: Record) -> None:
        key = _key(record)
        attempts = [assignment["attempt"] for assignment in self.assigned.get(key, ())]
        if key in self.reported:
            self.broken.append(f"{_name(key)} was reported twice")
        folds = [one for one in self.assigned if one[:3] == key[:3] and one[3]]
        if folds and not key[3]:
            missing = [_name(one) for one in folds if one not in self.reported]
            self.broken += [f"{_name(key)} was reported before {one}" for one in missing]
            return
        if record["attempt"] not in attempts[-1:]:
            open_one = attempts[-1] if attempts else "none"
            self.broken.append(
                f"{_name(key)}: a result of attempt {record['attempt']}, but {open_one} is open"
            )


# Attempts of the same work may differ in these keys only.
_CHANGING = {"attempt": 0, "without": (), "sequence": 0, "time": 0.0}


def _key(record: Record) -> Key:
    return record["trial_id"], record["rung"], record["split"], record.get("fold") or 0


def _name(key: Key) -> str:
    fold = f", fold {key[3]}" if key[3] else ""
    return f"trial {key[0]}, rung {key[1]}{fold}" + ("" if key[2] == "validation" else f" on {key[2]}")


def _in_order(records: Sequence[Record]) -> Iterator[str]:
    numbers = [record["sequence"] for record in records]
    for before, after in itertools.pairwise(numbers):
        if after <= before:
            yield f"the journal's event {after} comes after event {before}"


def _chains(history: _History) -> Iterator[str]:
    """Each rung starts from the resource and the checkpoint at which the rung below has ended."""
    for key, attempts in sorted(history.assigned.items()):
        trial, rung, split, fold = key
        first = attempts[0]
        if split != "validation" or fold:  # each fold is trained from scratch
            continue
        below = history.reported.get((trial, rung - 1, split, 0))
        if below is None:
            if first["resource_from"] != 0:
                yield f"{_name(key)} starts at {first['resource_from']}, but nothing was reported below"
            continue
        reached = history.assigned[(trial, rung - 1, split, 0)][-1]["resource_to"]
        if below["sequence"] > first["sequence"]:
            yield f"{_name(key)} was assigned before the rung below was reported"
        if below["failure"] is not None:
            yield f"{_name(key)} was assigned although the trial had failed"
        if (first["resource_from"], first["checkpoint"]) != (reached, below["checkpoint"]):
            yield (
                f"{_name(key)} starts at {first['resource_from']} from {first['checkpoint']}; "
                f"the rung below ended at {reached} with {below['checkpoint']}"
            )
    for key, report in sorted(history.reported.items()):
        last = history.assigned[key][-1] if history.assigned.get(key) else None
        if last and report["failure"] is None and report["resource"] != last["resource_to"]:
            yield f"{_name(key)} reached {report['resource']}, not {last['resource_to']}"


def _curves(history: _History, rows: int | None) -> Iterator[str]:
    """Each resource is measured once, in order, with every row read."""
    for trial in history.trials:
        reports = history.of_trial(trial)
        measured = [point for report in reports for point in report["curve"]]
        resources = [point["resource"] for point in measured]
        if resources != list(range(1, len(resources) + 1)):
            yield f"trial {trial} was measured at {resources}, not at each resource once and in order"
        done = [report["resource"] for report in reports if report["failure"] is None]
        if done and len(resources) < done[-1]:
            yield f"trial {trial} has {len(resources)} measurements for {done[-1]} epochs"
        for point in measured:
            if rows is not None and point["rows"] != rows:
                yield f"trial {trial}, epoch {point['resource']}: {point['rows']} rows were read, not {rows}"


def _settled(history: _History, *, is_finished: bool) -> Iterator[str]:
    for key in history.assigned:
        if is_finished and key not in history.reported:
            yield f"{_name(key)} was assigned and never reported"
    for trial in history.trials:
        has_failed = any(report["failure"] for report in history.of_trial(trial))
        if has_failed and history.state.get(trial) == "completed":
            yield f"trial {trial} has failed, and counts as completed"


def _checkpoints(history: _History, study: Path, *, is_finished: bool) -> Iterator[str]:
    """The checkpoints on disk are those of trials that can be resumed, and of the best trial.

    The best trial is the one with the lowest loss at the end of its training, with its best checkpoint, which
    may be an earlier one. For this the best checkpoint of each trial that can be resumed is kept too.
    """
    needed = set()
    losses: list[tuple[float, int, int, str | None]] = []
    ends: list[tuple[float, int, int, str | None]] = []  # of trained trials, with their best checkpoints
    definition = study / "study.json"  # a driver that dies at its first write has none
    config = json.loads(definition.read_text()).get("config", {}) if definition.exists() else {}
    is_any = config.get("search", {}).get("best", "any") == "any"
    for trial in history.trials:
        reports = [report for report in history.of_trial(trial) if report["failure"] is None]
        has_failed = any(report["failure"] for report in history.of_trial(trial))
        found = [(r["metrics"]["loss"], -r["resource"], trial, r["checkpoint"]) for r in reports]
        if found and not has_failed and history.state.get(trial) not in _OVER:
            needed |= {found[-1][3], *([] if is_any else [min(found)[3]])}
        if found and history.state.get(trial) == "completed" and not is_any:
            ends.append((*found[-1][:3], min(found)[3]))
        losses += found
    if losses:
        needed.add(min(ends or losses)[3])
    # Of a cross-validation, only the final model is kept.
    needed |= {
        report["checkpoint"] for (_, _, split, _), report in history.reported.items() if split == "train"
    }
    needed.discard(None)
    folder = study / "checkpoints"
    there = {str(file.relative_to(study)) for file in folder.rglob("*") if file.is_file()}
    for name in sorted(needed - there):
        yield f"{name} is needed, but missing"
    if is_finished:
        for name in sorted(there - needed):
            yield f"{name} is not needed, but exists"


def _mlflow(history: _History, database: Path, study: Path) -> Iterator[str]:
    """MLflow has each trial once, with each point of its journal once."""
    study_id = json.loads((study / "study.json").read_text())["study_id"]
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        tags: dict[str, dict[str, str]] = defaultdict(dict)
        for run, key, value in connection.execute("SELECT run_uuid, key, value FROM tags"):
            tags[run][key] = value
        status = dict(
            connection.execute("SELECT run_uuid, status FROM runs WHERE lifecycle_stage = 'active'")
        )
        points: dict[str, list[tuple[str, int, float]]] = defaultdict(list)
        for run, key, step, value in connection.execute("SELECT run_uuid, key, step, value FROM metrics"):
            points[run].append((key, step, value))
    ours = {run: t for run, t in tags.items() if run in status and t.get("spark_hpo.study_id") == study_id}
    by_kind = Counter(t.get("spark_hpo.kind") for t in ours.values())
    if by_kind["study"] != 1:
        yield f"MLflow has {by_kind['study']} runs for the study"
    runs = defaultdict(list)
    for run, values in ours.items():
        if values.get("spark_hpo.kind") == "trial":
            runs[int(values["spark_hpo.trial_id"])].append(run)
        if status[run] == "RUNNING":
            yield f"MLflow's run of {values.get('mlflow.runName', run)} is still running"
    for trial in sorted(set(history.trials) | set(runs)):
        if len(runs[trial]) != 1 or trial not in history.trials:
            yield f"MLflow has {len(runs[trial])} runs of trial {trial}"
            continue
        wanted = sorted(
            (name, point["resource"], value)
            for report in history.of_trial(trial)
            for point in report["curve"]
            for name, value in point["metrics"].items()
        )
        names = {name for name, _, _ in wanted}
        there = sorted(point for point in points[runs[trial][0]] if point[0] in names)
        if there != wanted:
            differing = sorted(set(there) ^ set(wanted))[:3] or "duplicates"
            yield f"MLflow's points of trial {trial} differ from the journal's: {differing}"


def _leftovers(study: Path) -> Iterator[str]:
    for path in sorted(study.rglob("*")):
        if path.name.startswith(".tmp-"):
            yield f"{path.relative_to(study)} was left by an interrupted writer"
    for path in sorted(study.iterdir()):
        is_empty = path.is_dir() and not any(path.iterdir())
        if path.name not in _NAMES and not path.name.startswith(".tmp-") and not is_empty:
            yield f"{path.name} is left in the study directory"
    lease = json.loads((study / "lease.json").read_text())
    if not lease["released"]:
        yield "the lease was not released"
