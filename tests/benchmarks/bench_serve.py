"""The live page with 10,000 trials: first paint, delay of an update, memory.

    python -m tests.benchmarks.bench_serve [--trials 10000] [--studies 50]

Prints the lines of the table in docs/live-page.md. Needs a Chromium.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import requests
from playwright.sync_api import Browser

from spark_hpo.study_dir.storage import Storage
from spark_hpo.trial import Assignment, Measurement, Report
from tests.support.browser import CURE, chromium
from tests.support.virtual_studies import SPACE
from tests.support.written_studies import StudyWriter

UPDATES = 40
RUNGS = (1, 3, 9, 27)
PAINTED = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--studies", type=int, default=50, help="of a tenth of the trials, for the memory")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        if browser is None:
            sys.exit(CURE)
        large = write_large(Path(folder) / "large/study", options.trials)
        with served(Path(folder) / "large") as (address, server):
            measure_pages(browser, address, server, large)
        for number in range(options.studies):
            write_large(Path(folder) / f"many/{number}", options.trials // 10).die()
        with served(Path(folder) / "many") as (address, server):
            before = server.memory_info().rss
            while ">reading<" in requests.get(address, timeout=600).text:
                time.sleep(0.1)
            grown = (server.memory_info().rss - before) / 2**20
            show(f"memory, {options.studies} studies of {options.trials // 10:,} trials", f"{grown:.0f} MiB")
        large.die()


def measure_pages(browser: Browser, address: str, server: psutil.Process, large: StudyWriter) -> None:
    before = server.memory_info().rss
    browser.new_page().goto("data:text/html,warm")
    for name, path in (("list", ""), ("study", None)):
        if path is None:
            found = re.findall(r"study\?id=(\w+)", requests.get(address, timeout=600).text)
            path = f"study?id={found[0]}"
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(address + path)
        page.wait_for_function(f"() => {PAINTED}")
        show(f"first paint of the {name}", f"{page.evaluate(PAINTED) / 1000:.2f} s")
        if name == "list":
            page.close()
    page.wait_for_selector("#curves", state="attached", timeout=600_000)
    show("pictures of the study", f"{page.evaluate('performance.now()') / 1000:.1f} s")
    show("memory, one study", f"{(server.memory_info().rss - before) / 2**20:.0f} MiB")
    delays = []
    for update in range(UPDATES):
        trial = 1_000_000 + update
        text = f"trial {trial}, "
        page.evaluate(
            """text => {
                window.seen = new Promise(resolve => {
                    const top = document.getElementById("top");
                    new MutationObserver(() => top.textContent.includes(text) && resolve(Date.now()))
                        .observe(top, { childList: true, subtree: true });
                });
                return 0;
            }""",
            text,
        )
        large.now = time.time()
        began = time.time()
        large.start(trial, params={"learning_rate": 0.01})
        delays.append(page.evaluate("window.seen") - 1000 * began)
        time.sleep(0.2)
    page.close()  # else its own requests are counted
    time.sleep(5)
    used = []
    for update in range(3):
        large.start(2_000_000 + update, params={"learning_rate": 0.01})
        time.sleep(1.5)
        before_s = sum(server.cpu_times()[:2])
        requests.get(f"{address}{path}&fresh=1", timeout=600).raise_for_status()
        used.append(sum(server.cpu_times()[:2]) - before_s)
    show("all pictures again, processor time", f"{statistics.median(used):.1f} s")
    show("update, median and most", f"{statistics.median(delays):.0f} ms, {max(delays):.0f} ms")


def show(what: str, figure: str) -> None:
    print(f"| {what} | {figure} |", flush=True)


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Serve a directory from a process of its own."""
    command = [sys.executable, "-m", "spark_hpo", "serve", str(folder), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ})
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1], psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(30)


def write_large(folder: Path, trials: int) -> StudyWriter:
    """Write a running study, all lines at once; the writer adds more."""
    search = {"sampler": "random", "scheduler": "asha", "max_resource": 27}
    pen = StudyWriter(
        storage=Storage(folder), name="large", search=search, space=SPACE, budget={"trials": trials}
    )
    pen.slots(64)
    [log] = (folder / "journal").glob("*.jsonl")
    with log.open("a") as file:
        sequence, now = 2, pen.now
        for line in lines(trials):
            sequence, now = sequence + 1, now + 0.1
            file.write(json.dumps({"sequence": sequence, "time": now, **line}) + "\n")
    pen.die()
    return pen.open()


def lines(trials: int) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng(0)
    for trial in range(trials):
        rate = float(10 ** rng.uniform(-4, -1))
        optimizer = (
            {"name": "sgd", "momentum": float(rng.uniform(0, 0.99))} if trial % 2 else {"name": "adam"}
        )
        params = {
            "learning_rate": rate,
            "dropout": float(rng.uniform(0, 0.6)),
            "width": 64,
            "optimizer": optimizer,
        }
        final, done, checkpoint = 0.95 - 0.05 * (np.log10(rate) + 2.5) ** 2, 0, None
        for rung, resource in enumerate(RUNGS[: 1 + min(3, int(rng.exponential(0.5)))]):
            common: dict[str, Any] = {"trial_id": trial, "attempt": 1, "rung": rung}
            assigned = Assignment(
                **common,
                params=params,
                bracket=0,
                resource_from=done,
                resource_to=resource,
                checkpoint=checkpoint,
                seed=0,
            )
            yield {"event": "assigned", **assigned.to_json()}
            curve = [
                Measurement(
                    resource=epoch,
                    metrics={"accuracy": final * (1 - 0.6 * float(np.exp(-epoch / 4)))},
                    time=0.0,
                    seconds=1.0,
                    rows=1000,
                )
                for epoch in range(done + 1, resource + 1)
            ]
            done, checkpoint = resource, f"checkpoints/trial-{trial:06d}/{resource:06d}-1.pt"
            reported = Report(
                **common,
                resource=resource,
                metrics=curve[-1].metrics,
                curve=tuple(curve),
                checkpoint=checkpoint,
                seconds=float(len(curve)),
            )
            yield {"event": "reported", **reported.to_json()}


if __name__ == "__main__":
    main()
