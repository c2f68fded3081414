"""The search against its peers: `python -m tests.benchmarks.bench_search [--quick]`.

Replays every method on every family of problems (`replay/families.py`) under the virtual clock, with 20 full
trainings per slot and 4, 8 and 32 slots, and writes `search.md`, `search.json` and `search.png` into
docs/benchmarks/. A search does not know its budget, so the first part of a replay is the replay of a smaller
budget. A full run takes a day. Each replay is kept in a file of results, so a run that was stopped resumes;
`--again METHOD` forgets those of a method that has changed.

Peers that do not go together with this project's packages run before, with `--no-page`, by a Python of their
own that leaves its replays in the same file: see the Makefile.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from optuna.pruners import BasePruner

from tests.benchmarks.peers import (
    AutoRule,
    FullTraining,
    HyperoptTpe,
    OptunaSearch,
    Peer,
    halving_pruner,
    hyperband_pruner,
    optuna_gp,
    optuna_tpe,
    replay_with_pruner,
)
from tests.benchmarks.replay.benchmark import Benchmark
from tests.benchmarks.replay.families import FAMILIES, available, open_family
from tests.benchmarks.replay.methods import parse_method
from tests.benchmarks.replay.run import Replay, replay
from tests.benchmarks.search_page import write_page

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "benchmarks"
BUDGETS = (20.0,)  # full trainings per slot
SLOTS = (4, 8, 32)
OURS = (
    *(
        "default",
        "default with plain asha",
        "earlier default: guided_asha",
        "earlier default: adaptive_asha",
        "tpe+adaptive_asha",
        "tpe+asha",
        "tpe+async_hyperband",
        "tpe+hyperband",
        "tpe",
        "bohb",
    ),
    *("dehb", "random+asha", "random"),
)

VARIANTS = {
    "default with plain asha": "multifidelity_gp+asha",
    "earlier default: guided_asha": "multifidelity_gp+guided_asha",
    "earlier default: adaptive_asha": "tpe:enough=10,learns_from_paused=true,learns_from_failures=true,"
    "doubts_defaults=true+adaptive_asha:has_leader=true,control_share=0.1",
}


_AUTO = "peer: Optuna AutoSampler's rule"


def _peers() -> dict[str, Peer]:
    """The peers that this Python can import, each by its own documentation."""
    peers: dict[str, Peer] = {
        method.name: partial(_replay_full, method)
        for method in (
            FullTraining("peer: hyperopt TPE", HyperoptTpe),
            FullTraining(
                "peer: Optuna TPE", partial(OptunaSearch, build=partial(optuna_tpe, multivariate=True))
            ),
            FullTraining("peer: Optuna GPSampler", partial(OptunaSearch, build=optuna_gp)),
            FullTraining(_AUTO, partial(OptunaSearch, build=AutoRule)),
        )
    }
    pruners: tuple[tuple[str, Callable[[int], BasePruner]], ...] = (
        ("peer: Optuna TPE, Hyperband pruner", hyperband_pruner),
        ("peer: Optuna TPE, halving pruner", halving_pruner),
    )
    peers |= {name: partial(replay_with_pruner, name, pruner) for name, pruner in pruners}
    if importlib.util.find_spec("ConfigSpace"):
        from tests.benchmarks.rung_peers import OPTIMIZERS, replay_rungs

        for name, (module, build) in OPTIMIZERS.items():
            if importlib.util.find_spec(module):
                peers[f"peer: {name}"] = partial(replay_rungs, f"peer: {name}", build)
    if importlib.util.find_spec("syne_tune"):
        from tests.benchmarks.syne_peer import SCHEDULERS, replay_syne_tune

        for name, build in SCHEDULERS.items():
            peers[f"peer: Syne Tune {name}"] = partial(replay_syne_tune, f"peer: Syne Tune {name}", build)
    return peers


def _replay_full(method: FullTraining, benchmark: Benchmark, **settings: Any) -> Replay:
    return replay(benchmark, method, **settings)


class Search(NamedTuple):
    """What one replay is asked for."""

    family: str
    task: str
    method: str
    slots: int
    budget: float
    seed: int


def run(search: Search, curves: Path) -> Replay:
    """Replay one search, in any process."""
    logging.getLogger("spark_hpo").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    benchmark = open_family(search.family, curves)[search.task]
    contestant = _peers().get(search.method) or partial(_replay_ours, search.method)
    return contestant(benchmark, slots=search.slots, seed=search.seed, budget=search.budget)


def _replay_ours(name: str, benchmark: Benchmark, **settings: Any) -> Replay:
    method = replace(parse_method(VARIANTS.get(name, name)), name=name)
    return replay(benchmark, method, **settings)


class Results:
    """Replays that are done, one a line."""

    def __init__(self, file: Path, again: Sequence[str] = ()) -> None:
        """Open a file of results, without those of methods that have changed since."""
        self._file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = file.read_text().splitlines() if file.exists() else []
        kept = [one for one in map(self._read, lines) if one.method not in again]
        self._done = {self._key(one): one for one in kept}
        if len(kept) < len(lines):
            file.write_text("".join(map(self._line, kept)))

    def all(self) -> list[Replay]:
        return list(self._done.values())

    def __contains__(self, search: Search) -> bool:
        return search[1:] in self._done

    def add(self, one: Replay) -> None:
        self._done[self._key(one)] = one
        with self._file.open("a") as file:
            file.write(self._line(one))

    @staticmethod
    def _line(one: Replay) -> str:
        return json.dumps(asdict(one)) + "\n"

    @staticmethod
    def _read(line: str) -> Replay:
        record = json.loads(line)
        histories = {name: tuple(map(tuple, record[name])) for name in ("trained", "deployed")}
        return Replay(**{**record, **histories})

    @staticmethod
    def _key(one: Replay) -> tuple[str, str, int, float, int]:
        return one.task, one.method, one.slots, one.budget, one.seed


def searches(options: argparse.Namespace, methods: Sequence[str]) -> Iterator[Search]:
    """All that are asked for: seed by seed, so that a run that is stopped has whole seeds."""
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for family in options.family or available():
            for task in open_family(family, options.curves):
                if options.task and task not in options.task:
                    continue
                for slots in options.slots or SLOTS:
                    for budget in options.budget or BUDGETS:
                        for method in methods:
                            yield Search(family, task, method, slots, budget, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--curves", type=Path, default=ROOT.parent / "shared" / "curves", metavar="DIR")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0, metavar="SEED")
    parser.add_argument("--quick", action="store_true", help="two seeds, 8 slots, a budget of 5")
    parser.add_argument("--family", action="append", choices=list(FAMILIES))
    parser.add_argument("--task", action="append", help="of these families")
    parser.add_argument("--slots", type=int, action="append")
    parser.add_argument("--budget", type=float, action="append", help="full trainings per slot")
    parser.add_argument("--method", action="append", help="of this project, instead of the usual ones")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--only", action="append", metavar="TEXT", help="methods whose name has it, now")
    parser.add_argument(
        "--variants",
        action="append",
        default=["default", *VARIANTS, "tpe+adaptive_asha"],
        help="further settings of the default to choose from",
    )
    parser.add_argument(
        "--again", action="append", default=[], metavar="METHOD", help="has changed: forget its results"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--results", type=Path, default=ROOT / "build" / "search.jsonl")
    parser.add_argument("--no-page", action="store_true", help="replay only")
    parser.add_argument("--output", type=Path, default=DOCS)
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.slots, options.budget = 2, [8], [5.0]

    named = [*(options.method or OURS), *options.variants, *(() if options.no_peers else _peers())]
    methods = list(dict.fromkeys(named))
    if options.only:
        methods = [name for name in methods if any(text in name for text in options.only)]
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the models that peers fit: a process has one core
    results = Results(options.results, options.again)
    missing = [search for search in searches(options, methods) if search not in results]
    with ProcessPoolExecutor(options.jobs) as pool:
        futures = {pool.submit(run, search, options.curves): search for search in missing}
        for number, future in enumerate(as_completed(futures), start=1):
            if error := future.exception():
                print(f"{futures[future]} failed: {error!r}", file=sys.stderr, flush=True)
            else:
                results.add(future.result())
            if number % 50 == 0 or number == len(futures):
                print(f"{number} of {len(futures)} replays", file=sys.stderr, flush=True)
    if not options.no_page:
        readme = ROOT / "README.md" if options.output == DOCS else None
        write_page(results.all(), options.curves, options.output, options.variants, readme)


if __name__ == "__main__":
    main()
