"""What it costs to start a trial: `python -m tests.benchmarks.bench_launch [--sessions 3] [--output FILE]`.

Seconds from submit to report where nothing is trained: ours with one and with two ranks, hyperopt's
SparkTrials, and TorchDistributor. Each has Spark sessions of its own, in a process of its own and set up as
its users set it up, in turn. Writes docs/benchmarks/launch.md; the last line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from tests.benchmarks.page import FOLDER, Page, machine

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from spark_hpo.backend.base import Backend
    from spark_hpo.train.context import TrainContext

LOCAL = {"spark.master": "local[2]", "spark.ui.enabled": "false"}
LIMIT_S = 120.0
TRIALS = 8  # of one call of hyperopt's fmin
PACKAGES = ("pyspark", "torch", "hyperopt")
INTRODUCTION = f"""# The cost of starting a trial

The table shows the seconds from submitting a trial to its report, for a trial that trains nothing, on
`local[2]` or, with `backend: local`, without Spark. With `backend: driver`, a trial is a thread of the driver
that starts no Spark job. All values are medians. `make bench-launch` writes
this page.

With two ranks, the ranks form a process group and do one all-reduce, in spark_hpo and in
TorchDistributor. SparkTrials runs with a parallelism of 2 and {TRIALS} trials per call; the time of a
trial is an eighth of the time of a call.

- *first*: the first trial of a new session that has run nothing before.
- *first after a query*: the first trial of a session that has answered one query without Python, so its
  JVM has loaded what every query needs.
- *warm*: all later trials.

"""


def no_training(ctx: TrainContext) -> None:
    ctx.report({"loss": 0.0}, resource=ctx.resource.stop)


def on_spark(world_size: int, *, after_query: bool) -> Iterator[float]:
    from spark_hpo.backend.spark.backend import SparkBackend
    from spark_hpo.backend.spark.session import cluster_of, start_session

    spark = start_session("launch", LOCAL)
    if after_query:
        spark.range(1).collect()
    cluster = cluster_of(spark)
    with tempfile.TemporaryDirectory() as folder:
        run = run_nothing(folder, cluster.driver_host or "")
        yield from ours(SparkBackend(cluster, run, world_size=world_size))


def on_this_machine(world_size: int) -> Iterator[float]:
    from spark_hpo.backend.local.backend import LocalBackend

    with tempfile.TemporaryDirectory() as folder:
        run = run_nothing(folder, "127.0.0.1")
        yield from ours(LocalBackend(run, world_size=world_size, preloaded=["spark_hpo.train.preload"]))


def in_the_driver() -> Iterator[float]:
    from spark_hpo.backend.spark.driver_backend import DriverBackend
    from spark_hpo.backend.spark.session import cluster_of, start_session

    spark = start_session("launch", LOCAL, trains_on_executors=False)
    with tempfile.TemporaryDirectory() as folder:
        yield from ours(DriverBackend(cluster_of(spark), run_nothing(folder, "127.0.0.1")))


def run_nothing(folder: str, host: str) -> Any:
    """What each rank runs: a study's training function, which trains nothing."""
    from spark_hpo.objective import Mode, Objective
    from spark_hpo.study_dir.storage import Storage
    from spark_hpo.train.rank import RankSpec
    from spark_hpo.train.rendezvous.world import RendezvousServer
    from spark_hpo.train.training_settings import TrainingSettings
    from spark_hpo.train.worker import run_rank

    spec = RankSpec(
        study_id="launch",
        storage=Storage(folder),
        trainable=no_training,
        table=None,
        objective=Objective(metric="loss", mode=Mode.MIN),
        settings=TrainingSettings(),
        max_resource=1,
        seed=0,
        reader="auto",
        shuffle_window=1,
        rendezvous=RendezvousServer(host, timeout_s=LIMIT_S).address,
    )
    return partial(run_rank, spec)


def ours(backend: Backend) -> Iterator[float]:
    from spark_hpo.trial import Assignment

    for trial_id in itertools.count():
        assignment = Assignment(
            trial_id=trial_id,
            attempt=1,
            params={},
            bracket=0,
            rung=0,
            resource_from=0,
            resource_to=1,
            checkpoint=None,
            seed=0,
        )
        began = time.perf_counter()
        backend.submit(assignment)
        report = backend.wait(LIMIT_S)
        seconds = time.perf_counter() - began
        assert report is not None, f"no report within {LIMIT_S} s"
        assert report.failure is None, report.failure
        yield seconds


def spark_trials() -> Iterator[float]:
    import numpy as np
    from hyperopt import SparkTrials, fmin, hp, rand

    spark = plain_session()
    while True:
        trials = SparkTrials(parallelism=2, spark_session=spark)
        began = time.perf_counter()
        fmin(
            float,
            hp.uniform("x", 0, 1),
            algo=rand.suggest,
            max_evals=TRIALS,
            trials=trials,
            rstate=np.random.default_rng(0),
            show_progressbar=False,
            verbose=False,
        )
        yield (time.perf_counter() - began) / TRIALS
        assert trials.count_successful_trials() == TRIALS


def torch_distributor() -> Iterator[float]:
    from pyspark.ml.torch.distributor import TorchDistributor

    plain_session()
    while True:
        began = time.perf_counter()
        ranks = TorchDistributor(num_processes=2, local_mode=False, use_gpu=False).run(all_reduce)
        yield time.perf_counter() - began
        assert ranks == 2


def all_reduce() -> int:
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    ranks = torch.ones(1)
    dist.all_reduce(ranks)
    dist.destroy_process_group()
    return int(ranks)


def plain_session() -> SparkSession:
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.config("spark.ui.showConsoleProgress", "false")
    return builder.config(map=LOCAL).getOrCreate()


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """Starts trials, one after another, in a session of its own."""

    launch: Callable[[], Iterator[float]]  # yields the seconds of one trial, without end
    runs: int  # in one session, the first one included


CONTESTANTS = {
    "spark_hpo, 1 rank": Contestant(launch=partial(on_spark, 1, after_query=False), runs=21),
    "spark_hpo, 1 rank, after a query": Contestant(launch=partial(on_spark, 1, after_query=True), runs=21),
    "spark_hpo, 2 ranks": Contestant(launch=partial(on_spark, 2, after_query=False), runs=21),
    "spark_hpo, 2 ranks, after a query": Contestant(launch=partial(on_spark, 2, after_query=True), runs=21),
    "spark_hpo, backend: local, 1 rank": Contestant(launch=partial(on_this_machine, 1), runs=21),
    "spark_hpo, backend: local, 2 ranks": Contestant(launch=partial(on_this_machine, 2), runs=21),
    "spark_hpo, backend: driver": Contestant(launch=in_the_driver, runs=21),
    "SparkTrials": Contestant(launch=spark_trials, runs=3),
    "TorchDistributor": Contestant(launch=torch_distributor, runs=3),
}


@dataclass(slots=True)
class Launches:
    """Seconds of a contestant's trials, over all of its sessions."""

    first: list[float] = field(default_factory=list)
    first_after_query: list[float] = field(default_factory=list)
    warm: list[float] = field(default_factory=list)

    def above_warm(self) -> float:
        """What the first trial costs more than a warm one, beyond the JVM."""
        return median(self.first_after_query) - median(self.warm)


def one_session(name: str) -> list[float]:
    """The seconds of a contestant's trials in a new process with a new session."""
    done = subprocess.run(
        [sys.executable, "-m", __spec__.name, "--contestant", name],
        env={**os.environ, "PYSPARK_PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=10 * LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    seconds: list[float] = json.loads(done.stdout.splitlines()[-1])
    return seconds


def measure(sessions: int) -> dict[str, Launches]:
    """All contestants in turn, so that what else the machine does meets all of them."""
    launches: dict[str, Launches] = {}
    for _ in range(sessions):
        for name in CONTESTANTS:
            first, *warm = one_session(name)
            known = name.removesuffix(", after a query")
            mine = launches.setdefault(known, Launches())
            (mine.first if name == known else mine.first_after_query).append(first)
            mine.warm += warm
    return launches


def report(page: Page, launches: dict[str, Launches]) -> dict[str, float]:
    """Both tables, and the figures of the JSON line."""
    one, two = launches["spark_hpo, 1 rank"], launches["spark_hpo, 2 ranks"]
    peers = {"SparkTrials": one, "TorchDistributor": two}
    page.heading("trial", "first", "first after a query", "warm", "runs", "relative to spark_hpo")
    for name, seconds in launches.items():
        page.row(
            name,
            f"{median(seconds.first):.2f} s",
            f"{median(seconds.first_after_query):.2f} s" if seconds.first_after_query else "",
            f"{median(seconds.warm):.3f} s",
            len(seconds.warm),
            f"{median(seconds.warm) / median(peers[name].warm):.1f}" if name in peers else "",
        )
    worst = max(one, two, key=Launches.above_warm)
    figures = {
        "ours_1_rank_s": median(one.warm),
        "ours_2_ranks_s": median(two.warm),
        "sparktrials_s": median(launches["SparkTrials"].warm),
        "torchdistributor_s": median(launches["TorchDistributor"].warm),
        "cold_first_s": median(worst.first_after_query),
        "warm_s": median(worst.warm),
    }
    page.say()
    page.heading("target", "measured")
    fifth = figures["ours_1_rank_s"] / figures["sparktrials_s"]
    page.row("one rank: at most a fifth (0.2) of the time of SparkTrials", f"{fifth:.3f}")
    fiftieth = figures["ours_2_ranks_s"] / figures["torchdistributor_s"]
    page.row("two ranks: at most a fiftieth (0.02) of the time of TorchDistributor", f"{fiftieth:.4f}")
    page.row(
        "the first trial after a query: at most 1.5 s slower than a warm one", f"{worst.above_warm():.2f} s"
    )
    return {name: round(value, 3) for name, value in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sessions", type=int, default=3, help="of each contestant")
    parser.add_argument("--output", type=Path, default=FOLDER / "launch.md")
    parser.add_argument("--contestant", choices=CONTESTANTS, help="run one session of it, and print seconds")
    options = parser.parse_args()
    if options.contestant:
        contestant = CONTESTANTS[options.contestant]
        print(json.dumps(list(itertools.islice(contestant.launch(), contestant.runs))))
        return
    page = Page(INTRODUCTION)
    page.say(machine(PACKAGES) + ".\n")
    figures: dict[str, Any] = report(page, measure(options.sessions))
    page.write(options.output)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
