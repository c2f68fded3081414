"""A study of many trials: `python -m tests.benchmarks.bench_load [--trials 10000] [--output FILE]`.

Training is simulated; journal, MLflow on SQLite and S3 are real. First a driver that writes journal and
MLflow, then one that resumes, then the journal on object stores. Every figure is taken in a process of its
own. Writes docs/benchmarks/load.md; the last line is JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from spark_hpo.study_dir.journal import Journal
from spark_hpo.study_dir.lease import Lease
from spark_hpo.study_dir.storage import Storage
from spark_hpo.tracking.mlflow import MlflowTracker
from spark_hpo.tracking.study_runs import StudyCard
from tests.benchmarks.bench_driver import FUNCTION, NoTracker, simulate
from tests.benchmarks.page import FOLDER, Page, machine
from tests.support.s3_server import s3_server

METHOD = "default"
SLOTS = 16
LIMIT_S = 3_600.0  # for MLflow to have everything
CHECKS = 100
READS = 3
INTRODUCTION = f"""# Large studies

How much does the driver spend on a study of 10,000 trials? This benchmark runs studies with the default
method and {SLOTS} slots on a simulated clock, so only the work of the driver takes time. Trials end
thousands of times faster than real ones, so MLflow falls as far behind as it ever can. `make
bench-load` writes this page.

"""
T = TypeVar("T")


def alone(call: Callable[..., T], *arguments: object, environment: Mapping[str, str] | None = None) -> T:
    """The result of a call in a process of its own."""
    os.environ.update(environment or {})
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(call, *arguments).result()


def drive(folder: str, trials: int, with_mlflow: bool) -> dict[str, float]:
    """A study from its beginning to its end."""
    logging.getLogger("spark_hpo").setLevel(logging.ERROR)
    storage = Storage(f"{folder}/study")
    card = StudyCard(study_id="bench", name="bench", objective=FUNCTION.objective)
    tracker = MlflowTracker(f"sqlite:///{folder}/mlflow.db", "bench", card) if with_mlflow else None
    journal = Journal.open(storage, FUNCTION.objective)
    study = simulate(METHOD, journal, storage, tracker or NoTracker(), trials=trials, slots=SLOTS).study
    began = time.perf_counter()
    study.run()
    searched = time.perf_counter()
    lag = tracker.wait(0.0) if tracker else 0
    if tracker is not None:
        assert tracker.flush(LIMIT_S), "MLflow has every trial"
    flushed = time.perf_counter()
    if tracker is not None:
        tracker.close(1.0)
    journal.close()
    return {
        "events": journal.sequence,
        "bytes": sum(file.stat().st_size for file in Path(folder, "study/journal").iterdir()),
        "search_s": searched - began,
        "lag": lag,
        "lag_s": flushed - searched,
        "peak_mib": peak_mib(),
    }


def resume(folder: str, trials: int) -> dict[str, float]:
    """What a second driver does before its first decision."""
    logging.getLogger("spark_hpo").setLevel(logging.ERROR)
    storage = Storage(f"{folder}/study")
    began = time.perf_counter()
    journal = Journal.open(storage, FUNCTION.objective)
    read = time.perf_counter()
    study = simulate(METHOD, journal, storage, NoTracker(), trials=trials, slots=SLOTS).study
    replayed = time.perf_counter()
    journal.close()
    assert study.run() == "trials", "there was nothing left to do"
    return {"read_s": read - began, "replay_s": replayed - read, "peak_mib": peak_mib()}


def write_objects(url: str, lines: Sequence[str]) -> float:
    """Milliseconds a line."""
    began = time.perf_counter()
    log = Storage(url).log("journal/000001")
    for line in lines:
        log.append(line)
    return 1000 * (time.perf_counter() - began) / len(lines)


def read_objects(url: str) -> dict[str, float]:
    """What a reader waits for: the quickest of a few, the first of which has S3's client to make."""
    storage, seconds = Storage(url), []
    for _ in range(READS):
        gc.collect()
        began = time.perf_counter()
        events = Journal(storage, FUNCTION.objective).sequence
        seconds.append(time.perf_counter() - began)
    objects = len(storage.names("journal/000001"))
    return {"seconds": min(seconds), "events": events, "objects": objects}


def in_memory(lines: Sequence[str]) -> dict[str, float]:
    append_ms = write_objects("memory://load", lines)
    return {**read_objects("memory://load"), "append_ms": append_ms}


def check_lease(url: str) -> float:
    """Milliseconds for one look at the lease; there is one before each line."""
    lease = Lease.acquire(Storage(url))
    began = time.perf_counter()
    for _ in range(CHECKS):
        lease.check()
    return 1000 * (time.perf_counter() - began) / CHECKS


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def lines_of(folder: str) -> list[str]:
    [log] = Path(folder, "study/journal").glob("000001.jsonl")
    return log.read_text().splitlines()


def report_driver(page: Page, folder: str, trials: int) -> dict[str, float]:
    run = alone(drive, folder, trials, True)
    again = alone(resume, folder, trials)
    event_ms = 1000 * run["search_s"] / run["events"]
    resume_s = again["read_s"] + again["replay_s"]
    page.heading("trials", "events", "journal", "search", "driver, per event", "peak memory")
    page.row(
        f"{trials:,}",
        f"{run['events']:,}",
        f"{run['bytes'] / 1e6:.1f} MB",
        f"{run['search_s']:.0f} s",
        f"{event_ms:.2f} ms",
        f"{run['peak_mib']:.0f} MiB",
    )
    page.say("\nWriting to MLflow on SQLite, in a thread of the driver:\n")
    page.heading("trials missing when the search ends", "time until none is missing", "writing, per trial")
    page.row(
        f"{run['lag']:,.0f}",
        f"{run['lag_s']:.0f} s",
        f"{1000 * (run['search_s'] + run['lag_s']) / trials:.0f} ms",
    )
    page.say("\nResuming the study:\n")
    page.heading("read the journal", "replay it", "together", "target", "peak memory")
    page.row(
        f"{again['read_s']:.1f} s",
        f"{again['replay_s']:.1f} s",
        f"{resume_s:.1f} s",
        "at most 10 s",
        f"{again['peak_mib']:.0f} MiB",
    )
    return {
        "journal_mb": round(run["bytes"] / 1e6, 1),
        "driver_ms_per_event": round(event_ms, 2),
        "peak_mib": round(run["peak_mib"]),
        "mlflow_lag_trials": run["lag"],
        "mlflow_lag_s": round(run["lag_s"], 1),
        "resume_s": round(resume_s, 2),
    }


def report_stores(page: Page, sizes: Mapping[int, list[str]]) -> dict[str, Any]:
    page.say("\n## The journal on object stores\n")
    page.say(
        "The driver waits until a line is durable. Each line takes one call to write it and one to check the "
        "lease; every 256 lines are combined into a segment and deleted. S3 is moto on the same machine, "
        "which answers one call at a time.\n"
    )
    page.heading("store", "trials", "lines", "objects", "per append", "per lease check", "time to read")
    ratios: dict[str, float] = {}
    with s3_server() as environment:
        os.environ.update(environment)
        import s3fs

        s3fs.S3FileSystem().mkdir("lake")
        for store in ("memory", "s3"):
            seconds = []
            for trials, lines in sizes.items():
                url = f"s3://lake/{trials}"
                if store == "memory":
                    found = alone(in_memory, lines)
                else:
                    append_ms = alone(write_objects, url, lines)
                    found = {**alone(read_objects, url), "append_ms": append_ms}
                check = f"{alone(check_lease, url):.1f} ms" if store == "s3" else ""
                page.row(
                    store,
                    f"{trials:,}",
                    f"{len(lines):,}",
                    f"{found['objects']:,.0f}",
                    f"{found['append_ms']:.2f} ms",
                    check,
                    f"{found['seconds']:.2f} s",
                )
                seconds.append(found["seconds"])
            ratios[store] = seconds[-1] / seconds[0]
            ratios[f"{store}_s"] = seconds[-1]
    page.say(
        "\nReading ten times as many trials takes "
        + " and ".join(f"{ratios[store]:.1f} times as long ({store})" for store in ("memory", "s3"))
        + "; the target is at most 12."
    )
    return {
        "read_ratio_memory": round(ratios["memory"], 1),
        "read_ratio_s3": round(ratios["s3"], 1),
        "read_s3_s": round(ratios["s3_s"], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--trials", type=int, default=10_000, help="in the large study; the small has a tenth"
    )
    parser.add_argument("--output", type=Path, default=FOLDER / "load.md")
    options = parser.parse_args()
    page = Page(INTRODUCTION)
    page.say(machine(("mlflow", "s3fs")) + ".\n")
    with tempfile.TemporaryDirectory() as large, tempfile.TemporaryDirectory() as small:
        figures = report_driver(page, large, options.trials)
        alone(drive, small, options.trials // 10, False)
        sizes = {options.trials // 10: lines_of(small), options.trials: lines_of(large)}
        figures |= report_stores(page, sizes)
    page.write(options.output)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
