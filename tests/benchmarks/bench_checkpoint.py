"""Saving checkpoints: `python -m tests.benchmarks.bench_checkpoint [--mib 128] [--output FILE]`.

A loop of matrix products stands for the training; states, files and S3 are real. Every run is a process of
its own. Writes docs/benchmarks/checkpoints.md; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch

from spark_hpo.study_dir import layout
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train.checkpoints import checkpoint, folder
from spark_hpo.train.checkpoints.attempt_checkpoints import AttemptCheckpoints
from spark_hpo.train.checkpoints.folder import FolderStore
from spark_hpo.train.rendezvous.world import World
from spark_hpo.trial import Assignment
from tests.benchmarks.page import FOLDER, Page, machine
from tests.support.s3_server import s3_server

TENSORS = 16
SAVES = 3
TRAINING_S = 5.0  # between two saves, at least
TRAINING_PER_SAVE = 1.5  # so that a save has ended before the next one begins
FILES = 64  # in a folder
INTRODUCTION = """# Checkpoints

What does saving cost the training, and how much memory does it need? A loop of matrix products on one core
stands for the training. `make bench-checkpoint` writes this page.

"""
T = TypeVar("T")


def alone(call: Callable[..., T], *arguments: object) -> T:
    """The result of a call in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(call, *arguments).result()


def peak_bytes() -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def opened(url: str) -> AttemptCheckpoints:
    assignment = Assignment(
        trial_id=0,
        attempt=1,
        params={},
        bracket=0,
        rung=0,
        resource_from=0,
        resource_to=1,
        checkpoint=None,
        seed=0,
    )
    return AttemptCheckpoints(Storage(url), assignment, World(rank=0, size=1, device=torch.device("cpu")))


def clock() -> tuple[float, float]:
    """Seconds without the time that this thread has waited for a core, and those in which it has computed."""
    computed_ns, queued_ns, _ = map(int, Path("/proc/thread-self/schedstat").read_text().split())
    return time.perf_counter() - queued_ns / 1e9, computed_ns / 1e9


def train(url: str, mib: int, way: str, steps: int) -> dict[str, float]:
    """Train with `SAVES` saves between the steps: at once, in the background, or none."""
    torch.set_num_threads(1)
    attempt = opened(url)
    state = {"model": {str(number): torch.randn(mib * 2**18 // TENSORS) for number in range(TENSORS)}}
    matrix = torch.randn(512, 512)
    small = {"model": torch.ones(9)}
    checkpoint.save(attempt.storage, "warm.pt", small)
    attempt.save_partial(small)
    attempt.wait()
    saving = saving_computed = 0.0
    before, (began, computed) = peak_bytes(), clock()
    for number in range(1, steps * (SAVES + 1)):
        torch.mm(matrix, matrix)
        if number % steps == 0 and way != "none":
            called, computed_then = clock()
            if way == "at once":
                checkpoint.save(attempt.storage, layout.partial(0, 1), state)
            else:
                attempt.save_partial(state)
            now, computed_now = clock()
            saving += now - called
            saving_computed += computed_now - computed_then
    ended, computed_at_end = clock()
    attempt.close()
    held_up = (ended - began - saving) - (computed_at_end - computed - saving_computed)
    return {
        "saving": saving / SAVES,
        "held_up": held_up / SAVES,
        "copies": (peak_bytes() - before) / (mib * 2**20),
    }


def steps_between(url: str, mib: int) -> int:
    """Enough steps for a save to end meanwhile."""
    state = {"model": {str(number): torch.randn(mib * 2**18 // TENSORS) for number in range(TENSORS)}}
    storage = Storage(url)
    checkpoint.save(storage, "warm.pt", {"model": torch.ones(9)})
    began = time.perf_counter()
    checkpoint.save(storage, layout.partial(0, 1), state)
    seconds = max((time.perf_counter() - began) * TRAINING_PER_SAVE, TRAINING_S)
    torch.set_num_threads(1)
    matrix = torch.randn(512, 512)
    began, steps = time.perf_counter(), 0
    while time.perf_counter() - began < 2.0:
        torch.mm(matrix, matrix)
        steps += 1
    return int(steps * seconds / 2.0)


def report_training(page: Page, stores: dict[str, str], mib: int, repeats: int) -> dict[str, Any]:
    page.say(
        f"## Cost to the training\n\nA state of {mib} MiB in {TENSORS} tensors is saved {SAVES} times, with "
        f"at least {TRAINING_S:.0f} s of training between the saves; median of {repeats} run(s). The "
        "cost of a save is the time in the call that saves, and the time that the training is held up "
        "afterwards (it can run, but waits for Python's lock). The time that other programs on the machine "
        "take from it does not count. S3 is moto on the same machine.\n"
    )
    page.heading("store", "saved", "in the call", "held up", "cost of a save", "extra memory, in states")
    figures: dict[str, Any] = {}
    for store, url in stores.items():
        steps = alone(steps_between, url, mib)
        runs: dict[str, list[dict[str, float]]] = {"none": [], "at once": [], "in the background": []}
        for _ in range(repeats):  # in turn: the machine may be busier at times
            for way, found in runs.items():
                found.append(alone(train, url, mib, way, steps))
        median = {
            way: {name: statistics.median(run[name] for run in found) for name in found[0]}
            for way, found in runs.items()
        }
        costs = {}
        for way in ("at once", "in the background"):
            saving, copies = median[way]["saving"], median[way]["copies"]
            held_up = max(median[way]["held_up"] - median["none"]["held_up"], 0.0)
            costs[way] = saving + held_up
            page.row(
                store, way, f"{saving:.3f} s", f"{held_up:.3f} s", f"{costs[way]:.3f} s", f"{copies:.2f}"
            )
            figures[f"{store}, {way}"] = {"cost_s": round(costs[way], 3), "copies": round(copies, 2)}
        share = costs["in the background"] / costs["at once"]
        figures[f"{store}, share"] = round(share, 3)
        page.row(store, "**background, as a share**", "", "", f"**{share:.1%}**", "")
    page.say()
    return figures


def write_folder(place: Path, mib: int) -> None:
    place.mkdir(parents=True)
    for number in range(FILES):
        (place / f"{number}.bin").write_bytes(os.urandom(mib * 2**20 // FILES))


def copy_folder(url: str, mib: int) -> dict[str, float]:
    """Save a folder three times: new, unchanged, with one file changed; then load it."""
    storage = Storage(url)
    storage.write("warm", b"")
    path = layout.checkpoint(0, 1, 1, suffix=layout.MANIFEST)
    seconds = {}
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary) / "folder"
        write_folder(place, mib)
        store = FolderStore(storage, "0-1", None)
        before = peak_bytes()
        for name in ("new", "unchanged", "one file changed"):
            if name == "one file changed":
                (place / "0.bin").write_bytes(os.urandom(mib * 2**20 // FILES))
            began = time.perf_counter()
            store.save(path, place, {})
            seconds[name] = time.perf_counter() - began
        began = time.perf_counter()
        folder.load(storage, path, Path(temporary) / "copy")
        seconds["loaded"] = time.perf_counter() - began
        seconds["memory"] = (peak_bytes() - before) / (mib * 2**20)
    return seconds


def report_folders(page: Page, stores: dict[str, str], mib: int) -> dict[str, Any]:
    page.say(f"## Folders\n\nA folder of {mib} MiB in {FILES} files. Loading verifies every file.\n")
    names = ("new", "unchanged", "one file changed", "loaded")
    page.heading("store", *names, "memory, as a share of the folder")
    figures: dict[str, Any] = {}
    for store, url in stores.items():
        found = alone(copy_folder, f"{url}-folder", mib)
        page.row(store, *(f"{found[name]:.2f} s" for name in names), f"{found['memory']:.2f}")
        figures |= {f"{store}_folder_{name.replace(' ', '_')}_s": round(found[name], 2) for name in names}
        figures[f"{store}_folder_memory"] = round(found["memory"], 2)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mib", type=int, default=128, help="of the state and of the folder")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=FOLDER / "checkpoints.md")
    options = parser.parse_args()
    page = Page(INTRODUCTION)
    page.say(machine(("torch", "s3fs")) + ".\n")
    with tempfile.TemporaryDirectory() as local, s3_server() as variables:
        os.environ |= variables
        import s3fs

        s3fs.S3FileSystem().mkdir("bench")
        stores = {"local disk": f"{local}/study", "S3": "s3://bench/study"}
        figures = report_training(page, stores, options.mib, options.repeats)
        figures |= report_folders(page, stores, options.mib)
    page.write(options.output)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
