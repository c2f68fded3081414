"""Whole studies: `python -m tests.benchmarks.bench_study [--seconds 300] [--trials 1000] [--output FILE]`.

First how much of the slots' time training fills: real Spark, 4 slots, ASHA, assignments that sleep for 5 s.
Then where the driver's time goes with 1,000 simulated trials: the real journal on the local disk, the real
MLflow on SQLite. Writes docs/benchmarks/study.md; the last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import json
import logging
import os
import pstats
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spark_hpo.study_dir.journal import Journal
from spark_hpo.study_dir.storage import Storage
from spark_hpo.tracking.mlflow import MlflowTracker
from spark_hpo.tracking.study_runs import StudyCard
from tests.benchmarks.bench_driver import FUNCTION, simulate
from tests.benchmarks.page import FOLDER, Page, machine

ROOT = Path(__file__).parents[2]
PACKAGE = str(ROOT / "spark_hpo") + os.sep
BENCHMARKS = str(Path(__file__).parent) + os.sep
SLOTS = 4
SLEEP_S = 5.0
METHOD = "tpe+asha"
LIMIT_S = 600.0  # for the start and the end of a study
TOP = 12  # functions of the profile
WAITING = "<method 'acquire' of '_thread.lock' objects>"
STUDY = f"""
name: sleep
study_dir: study
task: sleep_task.py:train
objective: {{metric: loss, mode: min}}
space: {{x: {{type: uniform, low: 0.0, high: 1.0}}}}
search: {{sampler: tpe, scheduler: asha, max_resource: 27}}
budget: {{seconds: 300}}
spark: {{spark.master: "local[{SLOTS}]", spark.ui.enabled: "false"}}
mlflow: {{tracking_uri: "sqlite:///mlflow.db"}}
"""
TASK = f"""
import time


def train(ctx):
    if not ctx.is_evaluation:
        time.sleep({SLEEP_S})
        ctx.report({{"loss": abs(ctx.params["x"] - 0.3) + 1 / ctx.resource.stop}}, resource=ctx.resource.stop)
"""
INTRODUCTION = f"""# Slot utilization and driver time

How busy does a study keep its slots, and where does the time of the driver go? In the first table,
trials on a real Spark sleep for {SLEEP_S:g} s, as long as a short rung trains, and need no core. The
share of slot time that they do not sleep is the overhead of the study. The other tables measure the
driver alone, with simulated training. `make bench-study` writes this page.

"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What a study on Spark has made of its slots."""

    assignments: int
    wall_s: float  # from the first assignment to the last report
    steady_assignments: int  # started after the first report, ended before the last start
    steady_share: float  # of slot time slept, in between

    @property
    def slot_utilization(self) -> float:
        return self.assignments * SLEEP_S / (SLOTS * self.wall_s)


def search_on_spark(seconds: float) -> Search:
    """A study as its users run it, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "study.yaml").write_text(STUDY)
        (Path(folder) / "sleep_task.py").write_text(TASK)
        done = subprocess.run(
            [sys.executable, ROOT / "jobs/tune.py", "--config", "study.yaml", f"budget.seconds={seconds}"],
            cwd=folder,
            env={**os.environ, "PYSPARK_PYTHON": sys.executable},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds + LIMIT_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-4000:]
        [log] = (Path(folder) / "study/journal").glob("*.jsonl")
        events = [json.loads(line) for line in log.read_text().splitlines()]
    return read_search([e for e in events if e.get("split") == "validation"])


def read_search(events: list[dict[str, Any]]) -> Search:
    starts = [event["time"] for event in events if event["event"] == "assigned"]
    ends = [event["time"] for event in events if event["event"] == "reported"]
    assert 2 * len(starts) == 2 * len(ends) == len(events), "no assignment was lost"
    # Between them every slot has had a trial before and gets one after.
    warm, last = ends[SLOTS - 1], starts[-SLOTS]
    whole = [end for end in ends[SLOTS:] if end <= last]
    return Search(
        assignments=len(ends),
        wall_s=ends[-1] - starts[0],
        steady_assignments=len(whole),
        steady_share=len(whole) * SLEEP_S / (SLOTS * (last - warm)) if last > warm else 0.0,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Drive:
    """What a driver has spent on simulated trials."""

    events: int  # of the journal
    loop_s: float  # the search, MLflow's thread beside it
    flush_s: float  # what MLflow's thread still had to write after it


def drive(trials: int, profile: cProfile.Profile | None = None) -> Drive:
    """Search with the real journal and the real projection, and wait for both.

    Args:
        profile: of the search; None: without one.
    """
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage(f"{folder}/study")
        card = StudyCard(study_id="bench", name="bench", objective=FUNCTION.objective)
        tracker = MlflowTracker(f"sqlite:///{folder}/mlflow.db", "bench", card)
        journal = Journal.open(storage, FUNCTION.objective)
        study = simulate(METHOD, journal, storage, tracker, trials=trials, slots=SLOTS).study
        began = time.perf_counter()
        with profile or contextlib.nullcontext():
            study.run()
        searched = time.perf_counter()
        assert tracker.flush(LIMIT_S), "MLflow has every trial"
        flushed = time.perf_counter()
        tracker.close(1.0)
        journal.close()
        return Drive(events=journal.sequence, loop_s=searched - began, flush_s=flushed - searched)


@contextlib.contextmanager
def profiled_threads() -> Iterator[list[cProfile.Profile]]:
    """Inside the block every thread that starts has a profile of its own."""
    profiles: list[cProfile.Profile] = []

    def profile_thread(*_: object) -> None:
        profiles.append(cProfile.Profile())
        profiles[-1].enable()  # in place of this function, for the rest of the thread

    threading.setprofile(profile_thread)
    try:
        yield profiles
    finally:
        threading.setprofile(None)  # type: ignore[arg-type] # its documentation says so


def package_of(file: str) -> str | None:
    """The package or top-level module of a source file; None for code outside of spark_hpo."""
    if file.startswith(BENCHMARKS):
        return "the benchmark"
    if not file.startswith(PACKAGE):
        return None
    return file.removeprefix(PACKAGE).split(os.sep)[0].removesuffix(".py")


def by_package(profile: cProfile.Profile) -> dict[str, float]:
    """Seconds per package, including its calls to other libraries, without those to our other packages."""
    seconds: dict[str, float] = defaultdict(float)
    for (file, _, _), (_, _, _, total, callers) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        mine = package_of(file)
        if mine is None:
            continue
        if not callers:  # where the profile begins
            seconds[mine] += total
        for (caller, _, _), (_, _, _, cumulative) in callers.items():
            theirs = package_of(caller)
            if mine != theirs:
                seconds[mine] += cumulative
                if theirs is not None:
                    seconds[theirs] -= cumulative
    return dict(sorted(seconds.items(), key=lambda one: -one[1]))


def by_function(profile: cProfile.Profile) -> list[tuple[str, int, float]]:
    """The functions with the most time of their own: where, calls, seconds. Waiting for work is left out."""
    rows = [
        (f"{Path(file).name}:{line} {name}" if line else name, calls, own)
        for (file, line, name), (_, calls, own, _, _) in pstats.Stats(profile).stats.items()  # type: ignore[attr-defined]
        if name != WAITING
    ]
    return sorted(rows, key=lambda row: -row[2])


def report_search(page: Page, search: Search) -> None:
    page.heading(
        "slots", "assignments", "wall time", "slept", "slept, without the first and last round", "target"
    )
    page.row(
        SLOTS,
        search.assignments,
        f"{search.wall_s:.1f} s",
        f"{search.slot_utilization:.1%}",
        f"{search.steady_share:.1%} ({search.steady_assignments})",
        "at least 95 %",
    )


def report_drive(page: Page, trials: int) -> float:
    """The driver's time, then where it goes. Returns milliseconds an event."""
    plain = drive(trials)
    per_event_ms = 1000 * (plain.loop_s + plain.flush_s) / plain.events
    page.heading("trials", "events", "search", "MLflow after the search", "driver, per event", "target")
    page.row(
        f"{trials:,}",
        f"{plain.events:,}",
        f"{plain.loop_s:.1f} s",
        f"{plain.flush_s:.1f} s",
        f"{per_event_ms:.2f} ms",
        "at most 10 ms",
    )
    loop = cProfile.Profile()
    with profiled_threads() as threads:
        drive(trials, loop)
    page.say("\nTime of the search by package (the profiler itself adds time):\n")
    page.heading("package", "seconds")
    for name, seconds in by_package(loop).items():
        page.row(name, f"{seconds:.2f}")
    mlflow = max(map(by_function, threads), key=lambda rows: sum(seconds for _, _, seconds in rows))
    for title, rows in (("Time of the search", by_function(loop)), ("Time of the MLflow thread", mlflow)):
        page.say(f"\n{title} by function:\n")
        page.heading("function", "calls", "own seconds")
        for name, calls, seconds in rows[:TOP]:
            page.row(f"`{name}`", f"{calls:,}", f"{seconds:.2f}")
    return per_event_ms


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300.0, help="of the search on Spark")
    parser.add_argument("--trials", type=int, default=1_000, help="simulated")
    parser.add_argument("--output", type=Path, default=FOLDER / "study.md")
    options = parser.parse_args()
    logging.getLogger("spark_hpo").setLevel(logging.ERROR)
    page = Page(INTRODUCTION)
    page.say(machine(("pyspark", "mlflow")) + ".\n")
    search = search_on_spark(options.seconds)
    report_search(page, search)
    page.say("\n## The driver\n")
    per_event_ms = report_drive(page, options.trials)
    page.write(options.output)
    figures = {
        "slot_utilization": round(search.slot_utilization, 4),
        "driver_ms_per_event": round(per_event_ms, 2),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
