"""The command line of replays: folders and methods in, a table, a file of rows and a picture out."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from spark_hpo.backend.simulated import Disturbances
from spark_hpo.errors import ConfigError, SparkHpoError
from tests.benchmarks.replay.curves import open_benchmarks
from tests.benchmarks.replay.methods import DEFAULT, parse_method
from tests.benchmarks.replay.picture import draw
from tests.benchmarks.replay.run import Replay, replay
from tests.benchmarks.replay.summary import average_ranks, summarise, to_markdown


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Replay methods on learning curves and exit: 0 done, 2 a setting is wrong, 3 the folder is."""
    options = _parser().parse_args(arguments)
    options.method = options.method or [DEFAULT]
    # Diverging curves and lost slots are what is replayed here, not news.
    logging.getLogger("spark_hpo").setLevel(logging.ERROR)
    try:
        replays = _replay_all(options)
        rows = summarise(replays)
        print(to_markdown(rows))
        if len(options.method) > 1:
            print("average rank over tasks and points in time")
            for method, rank in average_ranks(rows).items():
                print(f"  {rank:5.2f}  {method}")
        if options.json is not None:
            _write(options.json, json.dumps([row.to_json() for row in rows], indent=2) + "\n")
        picture = options.picture or (options.json and options.json.with_suffix(".png"))
        if picture is not None:
            draw(replays, picture)
    except SparkHpoError as exc:
        print(exc, file=sys.stderr)
        sys.exit(exc.exit_code)
    sys.exit(0)


def _replay_all(options: argparse.Namespace) -> list[Replay]:
    methods = [parse_method(text) for text in options.method]
    disturbances = Disturbances(
        launch_s=options.launch_seconds,
        straggler_share=options.stragglers,
        failure_share=options.failures,
        loss_share=options.losses,
    )
    replays = []
    for benchmark in open_benchmarks(options.curves, options.task or ()):
        for method in methods:
            for seed in range(options.seeds):
                one = replay(
                    benchmark,
                    method,
                    slots=options.slots,
                    seed=seed,
                    budget=options.budget,
                    disturbances=disturbances,
                )
                replays.append(one)
                print(
                    f"{one.task} {one.method} seed {seed}: {one.trials} trials, {one.driver_s:.1f} s",
                    file=sys.stderr,
                )
    return replays


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as exc:
        raise ConfigError(f"{file} cannot be written: {exc.strerror}") from exc


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Replay searches on learning curves, on a virtual clock: which method finds more, sooner?"
    )
    parser.add_argument("--curves", type=Path, required=True, metavar="DIR", help="folder of learning curves")
    parser.add_argument("--task", action="append", help="of the folder; may be repeated; default: all")
    parser.add_argument(
        "--method",
        action="append",
        help="default, or sampler+scheduler such as tpe+hyperband, with settings as in "
        "tpe:num_candidates=64+hyperband:min_resource=3; may be repeated",
    )
    parser.add_argument("--slots", type=_at_least_one, default=8, help="trials at the same time (8)")
    parser.add_argument("--seeds", type=_at_least_one, default=5, help="repetitions of each search (5)")
    parser.add_argument("--budget", type=float, default=20.0, help="full trainings per slot (20)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the rows go")
    parser.add_argument(
        "--picture", type=Path, metavar="FILE", help="where the picture goes; default: beside --json"
    )
    parser.add_argument("--launch-seconds", type=float, default=0.0, help="to start an assignment (0)")
    for name, what in (
        ("stragglers", "on a machine that is three times slower"),
        ("failures", "whose own code raises"),
        ("losses", "that lose their process"),
    ):
        parser.add_argument(
            f"--{name}", type=float, default=0.0, metavar="SHARE", help=f"of assignments, {what}"
        )
    return parser


def _at_least_one(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value
