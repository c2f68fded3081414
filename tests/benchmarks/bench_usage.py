"""What measuring the use of a rank costs: `python -m tests.benchmarks.bench_usage`.

The same training runs with and without the measurement, round after round in one process. Its processor time
is compared, because a busy machine lengthens the time of both. Writes docs/benchmarks/usage.md.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import median, quantiles

import psutil
import torch

from spark_hpo.data.loader import Loader
from spark_hpo.data.table import Table, open_table
from spark_hpo.train.usage.meter import UsageMeter
from spark_hpo.train.usage.waits import DataWaits
from spark_hpo.trial import Split
from tests.benchmarks.page import FOLDER, Page, machine
from tests.support.tables import write_clusters

ROWS = 200_000
BATCH = 256
EPOCHS = 1
ROUNDS = 101
EMPTY_BATCHES = 100_000
INTRODUCTION = """# The cost of measuring use

What does it cost a rank that its processes are sampled once a second, and that each of its batches is timed?
`make bench-usage` writes this page.

"""


def train(table: Table, *, is_measured: bool) -> tuple[float, float]:
    """Train a small network. Return processor seconds, and the share of the time that sampling took."""
    waits = DataWaits()
    loader = Loader(
        table,
        Split.TRAIN,
        rank=0,
        world_size=1,
        batch_size=BATCH,
        seed=0,
        reader="arrow",
        shuffle_window=50_000,
        timed=waits.timed if is_measured else iter,
    )
    model = torch.nn.Sequential(torch.nn.Linear(2, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    began, used = time.monotonic(), time.process_time()
    with UsageMeter(0, (), waits) if is_measured else nullcontext() as meter:
        for batches in loader.passes(0, EPOCHS):
            for batch in batches:
                outputs = model(torch.stack([batch["x"], batch["y"]], 1))
                loss = torch.nn.functional.cross_entropy(outputs, batch["side"])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    used = time.process_time() - used
    return used, 0.0 if meter is None else meter.sampling_s / (time.monotonic() - began)


def cost_per_batch() -> float:
    """Return the seconds that timing adds to one batch."""

    def loop(iterate: Callable[..., object]) -> float:
        began = time.process_time()
        for _ in iterate(iter(range(EMPTY_BATCHES))):  # type: ignore[attr-defined]
            pass
        return (time.process_time() - began) / EMPTY_BATCHES

    return median(loop(DataWaits().timed) - loop(iter) for _ in range(ROUNDS))


def cost_of_start() -> float:
    """Return the processor seconds that opening and closing the measurement takes."""
    costs = []
    for _ in range(ROUNDS):
        began = time.process_time()
        with UsageMeter(0, (), DataWaits()) as meter:
            pass
        meter.use()
        costs.append(time.process_time() - began)
    return median(costs)


def _quarters(values: list[float]) -> tuple[float, float, float]:
    """Return the median, and the bounds of the middle half."""
    low, middle, high = quantiles(values, n=4)
    return middle, low, high


def main() -> None:
    torch.set_num_threads(1)
    page = Page(INTRODUCTION)
    where = machine(("torch", "psutil"))
    with tempfile.TemporaryDirectory() as folder:
        table = open_table(str(write_clusters(Path(folder) / "table", rows=ROWS, row_group_rows=20_000)))
        train(table, is_measured=True)
        ratios, noise, shares = [], [], []
        for _ in range(ROUNDS):
            before, _ = train(table, is_measured=False)
            measured, share = train(table, is_measured=True)
            after, _ = train(table, is_measured=False)
            ratios.append(2 * measured / (before + after))
            noise.append(after / before)
            shares.append(share)
    page.heading("", "")
    quarters = "{:.3f} ({:.3f} to {:.3f})"
    page.row(
        "processor time of a measured training, relative to one that is not",
        quarters.format(*_quarters(ratios)),
    )
    page.row("two trainings that are not measured, likewise", quarters.format(*_quarters(noise)))
    page.row("share of the time that sampling took, at most", f"{max(shares):.2%}")
    page.row("timing one batch", f"{cost_per_batch() * 1e6:.2f} µs")
    page.row("beginning and ending, for each assignment", f"{cost_of_start() * 1e3:.2f} ms")
    page.say()
    steps = EPOCHS * ROWS // BATCH
    page.say(
        f"Medians, and the middle half, of {ROUNDS} rounds of {steps:,} steps; "
        f"{len(psutil.pids())} processes on the machine; {where}."
    )
    page.write(FOLDER / "usage.md")


if __name__ == "__main__":
    main()
