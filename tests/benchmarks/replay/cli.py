"""The command line of replays: folders and methods in, a table, a file of rows and a picture out."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from spark_hpo.errors import ConfigError, SparkHpoError
from tests.benchmarks.replay.curves import open_benchmarks
from tests.benchmarks.replay.methods import DEFAULT, parse_method
from tests.benchmarks.replay.picture import draw
from tests.benchmarks.replay.run import Replay, replay
from tests.benchmarks.replay.summary import average_ranks, summarise, to_markdown
from tests.support.simulated import Disturbances

_COUNT = click.IntRange(min=1)
_FILE = click.Path(path_type=Path)
_SHARE = click.FloatRange(0, 1)


@click.command(context_settings={"show_default": True})
@click.option("--curves", type=_FILE, required=True, metavar="DIR", help="Folder of learning curves.")
@click.option("--task", "tasks", multiple=True, help="Task of the folder; may be repeated.  [default: all]")
@click.option(
    "--method",
    "methods",
    multiple=True,
    default=[DEFAULT],
    help="default, or sampler+scheduler such as tpe+hyperband, with settings as in "
    "tpe:num_candidates=64+hyperband:min_resource=3; may be repeated.",
)
@click.option("--slots", type=_COUNT, default=8, help="Trials that run at the same time.")
@click.option("--seeds", type=_COUNT, default=5, help="Repetitions of each search.")
@click.option("--budget", type=float, default=20.0, help="Full trainings per slot.")
@click.option("--json", "json_file", type=_FILE, metavar="FILE", help="Write the rows to this file.")
@click.option(
    "--picture", type=_FILE, metavar="FILE", help="Write the plot to this file.  [default: beside --json]"
)
@click.option("--launch-seconds", type=float, default=0.0, help="Time to start an assignment.")
@click.option("--stragglers", type=_SHARE, default=0.0, help="Share of assignments that run 3 times slower.")
@click.option("--failures", type=_SHARE, default=0.0, help="Share of assignments whose code raises.")
@click.option("--losses", type=_SHARE, default=0.0, help="Share of assignments that lose their process.")
def main(
    curves: Path,
    tasks: Sequence[str],
    methods: Sequence[str],
    slots: int,
    seeds: int,
    budget: float,
    json_file: Path | None,
    picture: Path | None,
    launch_seconds: float,
    stragglers: float,
    failures: float,
    losses: float,
) -> None:
    """Replay searches on learning curves, on a virtual clock: which method finds more, sooner?

    Exit codes: 0 done, 2 a setting is wrong, 3 the folder is.
    """
    # Diverging curves and lost slots are what is replayed here, not news.
    logging.getLogger("spark_hpo").setLevel(logging.ERROR)
    disturbances = Disturbances(
        launch_s=launch_seconds, straggler_share=stragglers, failure_share=failures, loss_share=losses
    )
    replays: list[Replay] = []
    try:
        parsed = [parse_method(text) for text in methods]
        for benchmark in open_benchmarks(curves, tasks):
            for method in parsed:
                for seed in range(seeds):
                    one = replay(
                        benchmark, method, slots=slots, seed=seed, budget=budget, disturbances=disturbances
                    )
                    replays.append(one)
                    click.echo(
                        f"{one.task} {one.method} seed {seed}: {one.trials} trials, {one.driver_s:.1f} s",
                        err=True,
                    )
        rows = summarise(replays)
        click.echo(to_markdown(rows))
        if len(methods) > 1:
            click.echo("average rank over tasks and points in time")
            for name, rank in average_ranks(rows).items():
                click.echo(f"  {rank:5.2f}  {name}")
        if json_file is not None:
            _write(json_file, json.dumps([row.to_json() for row in rows], indent=2) + "\n")
        picture = picture or (json_file and json_file.with_suffix(".png"))
        if picture is not None:
            draw(replays, picture)
    except SparkHpoError as exc:
        click.echo(str(exc), err=True)
        sys.exit(exc.exit_code)


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as exc:
        raise ConfigError(f"{file} cannot be written: {exc.strerror}") from exc
