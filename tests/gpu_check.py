"""Checks training on a real GPU, in less than 8 minutes: `make gpu-check`.

Each shipped task is trained by the inline backend on a small table: on the CPU in float32, then on the GPU in
float32 and in bfloat16, in two rungs, so that the second one resumes from a checkpoint. The curves must
agree. Then `tests.support.gpu_parts`: resuming, NCCL and FSDP with one rank, two trials on one GPU, a batch
that does not fit, and the speed of the training loop. Needs torch, pyarrow and this package, nothing else.
The last line is JSON; without a GPU it is `no GPU`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from spark_hpo.backend.inline import InlineBackend
from spark_hpo.data.schema import ColumnKind, Feature, Label, TableSchema
from spark_hpo.data.table import open_table
from spark_hpo.objective import Mode, Objective
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train.rank import RankSpec
from spark_hpo.train.training_settings import Precision, TrainingSettings
from spark_hpo.train.worker import run_rank
from spark_hpo.trial import Assignment, Measurement
from tests.support import gpu_parts

ROWS = 40_000  # of the training split
RUNGS = (0, 2, 6)  # epochs
MIN_SHARE = 0.85  # of the speed on data that is in the GPU's memory already; runs differ by 0.05
SIDE = 16  # of an image, pixels
COLOURS = ("red", "green", "blue")
CLASSES = ("no", "yes")
SHAPES = ("dark", "left", "right")

Columns = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A built-in task, and a table that it can learn."""

    task: str
    schema: TableSchema
    draw: Callable[[np.random.Generator, int], Columns]
    params: Mapping[str, Any]


def draw_rows(rng: np.random.Generator, rows: int) -> Columns:
    """Rows whose label says whether x is above a threshold that depends on the colour."""
    x, y = rng.normal(size=(2, rows))
    colour = rng.integers(1, len(COLOURS) + 1, rows)
    answer = x + 0.3 * rng.normal(size=rows) > colour - 2
    return {
        "x": x.astype("float32"),
        "y": y.astype("float32"),
        "colour": colour,
        "answer": answer.astype("int64"),
    }


def draw_images(rng: np.random.Generator, rows: int) -> Columns:
    """Noise, and a bright half: left, right, or none."""
    shape = rng.integers(0, len(SHAPES), rows)
    pixels = rng.normal(size=(rows, SIDE, SIDE))
    pixels[shape == 1, :, : SIDE // 2] += 0.4
    pixels[shape == 2, :, SIDE // 2 :] += 0.4
    flat = pa.array(pixels.astype("float32").ravel())
    return {"pixels": pa.FixedSizeListArray.from_arrays(flat, SIDE * SIDE), "shape": shape}


PROBLEMS = (
    Problem(
        task="tabular",
        schema=TableSchema(
            features=(
                Feature(name="x", kind=ColumnKind.NUMERIC),
                Feature(name="y", kind=ColumnKind.NUMERIC),
                Feature(name="colour", kind=ColumnKind.CATEGORICAL, vocabulary=COLOURS),
            ),
            label=Label(name="answer", classes=CLASSES),
        ),
        draw=draw_rows,
        params={"learning_rate": 3e-3, "hidden_units": 64},
    ),
    Problem(
        task="image",
        schema=TableSchema(
            features=(Feature(name="pixels", kind=ColumnKind.ARRAY, shape=(1, SIDE, SIDE)),),
            label=Label(name="shape", classes=SHAPES),
        ),
        draw=draw_images,
        params={"learning_rate": 1e-3, "channels": 8},
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A device and a precision, with the allowed difference from the CPU in float32."""

    name: str
    gpus: Sequence[int]
    precision: Precision
    loss: float = 0.0  # largest difference, in parts of the reference
    accuracy: float = 0.0  # largest difference


CPU = Place(name="cpu fp32", gpus=(), precision=Precision.FP32)


def places(gpus: Sequence[int], name: str) -> tuple[Place, ...]:
    """Return what to compare with the CPU. A GPU adds in another order, and differences grow."""
    return (
        Place(name=f"{name} fp32", gpus=gpus, precision=Precision.FP32, loss=0.05, accuracy=0.01),
        # Eight bits of mantissa: a step is off by 0.4 %.
        Place(name=f"{name} bf16", gpus=gpus, precision=Precision.BF16, loss=0.1, accuracy=0.02),
    )


def write_table(folder: Path, problem: Problem, rows: int) -> None:
    rng = np.random.default_rng(7)
    for split, count in {"train": rows, "validation": rows // 4, "test": rows // 4}.items():
        (folder / split).mkdir(parents=True)
        table = pa.table(problem.draw(rng, count))
        pq.write_table(table, folder / split / "part-0.parquet", row_group_size=max(1, rows // 8))
    (folder / "schema.json").write_text(json.dumps(problem.schema.to_json()))


def train(problem: Problem, table: Path, place: Place) -> list[Measurement]:
    """Return the curve over all rungs, each of which resumes from the checkpoint of the one below."""
    with tempfile.TemporaryDirectory() as study:
        spec = RankSpec(
            study_id=f"gpu-check-{place.name}",
            storage=Storage(study),
            trainable=f"spark_hpo.train.{problem.task}:{problem.task.capitalize()}Task",
            table=open_table(str(table)),
            objective=Objective(metric="accuracy", mode=Mode.MAX),
            settings=TrainingSettings(batch_size=256, precision=place.precision),
            max_resource=RUNGS[-1],
            seed=0,
            reader="arrow",
            shuffle_window=100_000,
        )
        backend = InlineBackend(partial(run_rank, spec), gpus=place.gpus)
        curve: list[Measurement] = []
        checkpoint = None
        for rung, (start, stop) in enumerate(pairwise(RUNGS)):
            backend.submit(
                Assignment(
                    trial_id=0,
                    attempt=1,
                    params=problem.params,
                    bracket=0,
                    rung=rung,
                    resource_from=start,
                    resource_to=stop,
                    checkpoint=checkpoint,
                    seed=5,
                )
            )
            report = backend.wait(0.0)
            assert report is not None, "the inline backend runs an assignment in wait"
            if (failure := report.failure) is not None:
                sys.exit(f"{problem.task} on {place.name}: {failure.message}\n{failure.traceback}")
            checkpoint = report.checkpoint
            curve += report.curve
        return curve


def differences(place: Place, reference: Sequence[Measurement], curve: Sequence[Measurement]) -> list[str]:
    """Return a sentence for each curve that differs from the reference by more than its place allows."""
    found = []
    for theirs, ours in zip(reference, curve, strict=True):
        for name in ("loss", "train_loss", "accuracy"):
            expected, value = theirs.metrics[name], ours.metrics[name]
            allowed = place.accuracy if name == "accuracy" else place.loss * expected
            if abs(value - expected) > allowed:
                found.append(
                    f"{place.name}, epoch {ours.resource}: {name} is {value:.4f}; "
                    f"it must be {expected:.4f} +- {allowed:.4f}"
                )
    return found


def rows_per_second(curve: Sequence[Measurement]) -> float:
    """Return the rate without the first epoch, in which kernels are compiled and loaded."""
    return sum(m.rows for m in curve[1:]) / sum(m.seconds for m in curve[1:])


def check(gpus: Sequence[int], name: str, *, rows: int) -> tuple[dict[str, Any], list[str]]:
    """Train each task in each place. Return the figures by task and place, and the differences."""
    figures: dict[str, Any] = {}
    wrong: list[str] = []
    for problem in PROBLEMS:
        with tempfile.TemporaryDirectory() as folder:
            table = Path(folder) / "table"
            write_table(table, problem, rows)
            reference = train(problem, table, CPU)
            for place in (CPU, *places(gpus, name)):
                curve = reference if place is CPU else train(problem, table, place)
                wrong += [f"{problem.task} on {line}" for line in differences(place, reference, curve)]
                last = curve[-1].metrics
                figures.setdefault(problem.task, {})[place.name] = {
                    "rows_per_s": round(rows_per_second(curve)),
                    "loss": round(last["loss"], 4),
                    "accuracy": round(last["accuracy"], 4),
                }
                print(
                    f"{problem.task:8} {place.name:14} {rows_per_second(curve):12,.0f} rows/s   "
                    f"loss {last['loss']:.4f}   accuracy {last['accuracy']:.4f}",
                    flush=True,
                )
    return figures, wrong


def check_parts(gpus: Sequence[int], *, rows: int) -> tuple[dict[str, Any], list[str]]:
    """Run the parts. Return their figures by name, and what is wrong."""
    figures: dict[str, Any] = {}
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        tables = {problem.task: Path(folder) / problem.task for problem in PROBLEMS}
        for problem in PROBLEMS:
            write_table(tables[problem.task], problem, rows)
        tabular, image = PROBLEMS
        large = Path(folder) / "large"  # a pass over small rows must have more than a few steps
        write_table(large, tabular, 10 * rows)
        of_tabular = (tabular.task, tabular.params, tables["tabular"], gpus)
        parts: dict[str, Callable[[], Any]] = {
            "checkpoint and resume": partial(gpu_parts.resume, *of_tabular),
            "one rank of a group, FSDP": partial(gpu_parts.group_of_one, *of_tabular),
            "two trials on one device": partial(gpu_parts.two_trials, *of_tabular),
            "out of memory, halved": partial(gpu_parts.halved, tables["tabular"], gpus),
            "use of a rank": partial(gpu_parts.use, tables["tabular"], gpus),
            "speed of tabular": partial(
                gpu_parts.speed, tabular.task, tabular.params, large, gpus, batch_size=4096
            ),
            "speed of image": partial(
                gpu_parts.speed,
                image.task,
                {"channels": 64 if gpus else 4},
                tables["image"],
                gpus,
                batch_size=512,
            ),
        }
        for name, part in parts.items():
            began = time.monotonic()
            try:
                figures[name] = part()
            except AssertionError as exc:
                wrong.append(f"{name}: {exc}")
            print(f"{name}: {figures.get(name, 'failed')} ({time.monotonic() - began:.1f} s)", flush=True)
    for name, found in figures.items():
        if gpus and found.get("share", 1.0) < MIN_SHARE:
            wrong.append(
                f"{name}: {found['share']:.2f} of the speed on data in GPU memory; {MIN_SHARE} is due"
            )
    return figures, wrong


def page(device: str, tasks: Mapping[str, Any], parts: Mapping[str, Any]) -> str:
    """Return the figures as a page of the documentation."""
    lines = [
        "# Training on a GPU",
        "",
        f"Measured by `make gpu-check` on one {device} with torch {torch.__version__}.",
        "",
        "| task | place | rows/s | loss | accuracy |",
        "|---|---|---|---|---|",
    ]
    for task, places_of_task in tasks.items():
        for place, found in places_of_task.items():
            values = f"{found['rows_per_s']:,} | {found['loss']} | {found['accuracy']}"
            lines.append(f"| `{task}` | {place} | {values} |")
    lines += ["", "| check | result |", "|---|---|"]
    for name, found in parts.items():
        said = ", ".join(f"{key} {value:.3g}" for key, value in found.items() if value is not None)
        lines.append(f"| {name} | {said.replace('_', ' ')} |")
    lines += [
        "",
        "`share` is the speed of the training loop in parts of the speed of the same steps on batches that "
        "are in the memory of the GPU already. `busy` is the part of the time in which the GPU computes.",
        "",
        "The models of this check are small, so a step takes as long as the CPU needs to start its kernels. "
        "A small MLP in batches of 256 rows is therefore faster on the CPU, and `precision: fp32` is faster "
        "than bf16, which starts more kernels.",
        "",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=ROWS, help="of the training split")
    parser.add_argument("--page", type=Path, help="write the figures to this Markdown file")
    parser.add_argument("--only-curves", action="store_true", help="without the other parts")
    parser.add_argument("--rehearse", action="store_true", help="with the CPU in the GPU's place")
    options = parser.parse_args(arguments)
    if not options.rehearse and not torch.cuda.is_available():
        print("no GPU")
        return 0
    device = "cpu" if options.rehearse else torch.cuda.get_device_name(0)
    name, gpus = ("rehearsal", ()) if options.rehearse else ("gpu", (0,))
    print(f"{device}, torch {torch.__version__}")
    figures, wrong = check(gpus, name, rows=options.rows)
    parts, wrong_parts = ({}, []) if options.only_curves else check_parts(gpus, rows=options.rows)
    wrong += wrong_parts
    if options.page is not None:
        options.page.write_text(page(device, figures, parts))
    for line in wrong:
        print(line, file=sys.stderr)
    print(json.dumps({"device": device, "tasks": figures, "parts": parts, "agrees": not wrong}))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
