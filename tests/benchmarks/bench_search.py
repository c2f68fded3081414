"""The search against its peers: `python -m tests.benchmarks.bench_search --curves DIR [--quick]`.

Replays every method on lcbench (surrogate) and alexnet_imagenet (table) under the virtual clock, writes
`search.md`, `search.json` and `search.png` into docs/benchmarks/ and the ranks into README.md. A full run
takes hours on one core; each replay is kept in a file of results, so that a run that was stopped goes on.
Remove that file when a method has changed.

Peers that do not go together with this project's packages run before, with `--no-page`, by a Python of their
own that leaves its replays in the same file: see the Makefile.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from optuna.pruners import BasePruner

from tests.benchmarks.peers import (
    FullTraining,
    HyperoptTpe,
    OptunaTpe,
    Peer,
    halving_pruner,
    hyperband_pruner,
    replay_with_pruner,
)
from tests.benchmarks.replay.benchmark import Benchmark
from tests.benchmarks.replay.curves import open_benchmarks
from tests.benchmarks.replay.methods import parse_method
from tests.benchmarks.replay.picture import draw
from tests.benchmarks.replay.run import Method, Replay, replay
from tests.benchmarks.replay.summary import POINTS, Row, average_ranks, summarise, to_markdown

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "benchmarks"
BUDGET = 20.0  # full trainings per slot
HYPEROPT = "peer: hyperopt TPE, full"
START, END = "<!-- ranks: make bench-search -->", "<!-- end of ranks -->"
OURS = (
    "default",
    "tpe+asha",
    "tpe+async_hyperband",
    "tpe+hyperband",
    "tpe",
    "hyperopt_tpe+hyperband",
    "bohb",
    "dehb",
    "random+asha",
    "random",
)


@dataclass(frozen=True, slots=True)
class Contestant:
    """A method, here or of another library."""

    name: str
    run: Peer


def one_of_ours(method: Method) -> Contestant:
    return Contestant(method.name, lambda benchmark, **settings: replay(benchmark, method, **settings))


def with_pruner(name: str, pruner: Callable[[int], BasePruner]) -> Contestant:
    return Contestant(name, partial(replay_with_pruner, name, pruner))


PEERS: tuple[Contestant, ...] = (
    one_of_ours(FullTraining(HYPEROPT, HyperoptTpe)),
    one_of_ours(FullTraining("peer: Optuna multivariate TPE, full", partial(OptunaTpe, multivariate=True))),
    with_pruner("peer: Optuna TPE, Hyperband pruner", hyperband_pruner),
    with_pruner("peer: Optuna TPE, halving pruner", halving_pruner),
)

if importlib.util.find_spec("dehb"):
    from tests.benchmarks.dehb_peer import replay_dehb

    PEERS += (Contestant("peer: DEHB", partial(replay_dehb, "peer: DEHB")),)

if importlib.util.find_spec("syne_tune"):
    from syne_tune.optimizer.baselines import BOHB

    from tests.benchmarks.syne_peer import replay_syne_tune

    PEERS += (Contestant("peer: Syne Tune BOHB", partial(replay_syne_tune, "peer: Syne Tune BOHB", BOHB)),)


class Results:
    """Replays that are done, one a line."""

    def __init__(self, file: Path) -> None:
        self._file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = file.read_text().splitlines() if file.exists() else []
        self._done = {self._key(one): one for one in map(self._read, lines)}

    def all(self) -> list[Replay]:
        return list(self._done.values())

    def get(self, task: str, method: str, slots: int, seed: int) -> Replay | None:
        return self._done.get((task, method, slots, seed))

    def add(self, one: Replay) -> None:
        self._done[self._key(one)] = one
        with self._file.open("a") as file:
            file.write(json.dumps(asdict(one)) + "\n")

    @staticmethod
    def _read(line: str) -> Replay:
        record = json.loads(line)
        return Replay(**{**record, "incumbents": tuple(map(tuple, record["incumbents"]))})

    @staticmethod
    def _key(one: Replay) -> tuple[str, str, int, int]:
        return one.task, one.method, one.slots, one.seed


def problems(curves: Path, *, quick: bool) -> Iterator[tuple[Benchmark, int]]:
    """Benchmarks and numbers of slots."""
    lcbench = open_benchmarks(curves / "lcbench", ["126026", "168331"] if quick else ())
    for slots in (8,) if quick else (8, 32):
        for benchmark in lcbench:
            yield benchmark, slots
    if not quick:
        for benchmark in open_benchmarks(curves / "alexnet_imagenet"):
            yield benchmark, 8


def half_budget(rows: list[Row]) -> str:
    """On how many problems a method has, at half the budget, what hyperopt's TPE has at its end."""
    at_end = {(row.task, row.slots): row.regret[1.0] for row in rows if row.method == HYPEROPT}
    lines = ["| method | as good at half the budget as hyperopt TPE at the end |", "|---|---|"]
    for method in dict.fromkeys(row.method for row in rows):
        mine = [r for r in rows if r.method == method and (r.task, r.slots) in at_end]
        reached = [row.regret[0.5] <= at_end[row.task, row.slots] for row in mine]
        lines.append(f"| {method} | {sum(reached)} of {len(reached)} problems |")
    return "\n".join(lines) + "\n"


def rank_table(rows: list[Row]) -> str:
    """Average ranks as Markdown: over all problems, and for each number of slots of those that ran there."""
    numbers = sorted({row.slots for row in rows})
    over_all = average_ranks(rows)
    by_slots = [average_ranks([row for row in rows if row.slots == slots]) for slots in numbers]
    headings = ["method", "average rank", *(f"with {slots} slots" for slots in numbers)]
    lines = ["| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
    everyone = dict.fromkeys(method for ranks in [over_all, *by_slots] for method in ranks)
    for method in everyone:
        ranks = [f"{r[method]:.2f}" if method in r else "" for r in [over_all, *by_slots]]
        lines.append("| " + " | ".join([method, *ranks]) + " |")
    return "\n".join(lines) + "\n"


def report(rows: list[Row]) -> str:
    """The whole page: ranks first, then every figure."""
    points = ", ".join(f"{point:.0%}" for point in POINTS)
    problems = len({(row.task, row.slots) for row in rows})
    lines = [
        "# Search methods compared",
        "",
        "Which method finds good configurations fastest? This benchmark replays recorded learning curves "
        "with every method, and with those of other libraries, on the same simulated clock. "
        "`make bench-search` writes this page.",
        "",
        f"The figures are the normalised regret of the incumbent at {points} of the budget ({BUDGET:g} full "
        "trainings per slot), as medians over seeds. The incumbent is the best configuration that was "
        "trained to the end by then. A regret of 0 is that of the best of 5,000 random configurations (or of "
        "the whole table, if the problem is a table), a regret of 1 that of the median one. Lower is better.",
        "",
        "![median regret over time](search.png)",
        "",
        f"Ranks are averages over {problems} problems (combinations of a task and a number of slots) and the "
        "four points in time. The column `average rank` has the methods that ran on all problems; 1 is the "
        "best rank.",
        "",
        rank_table(rows),
        half_budget(rows),
        to_markdown(rows),
    ]
    return "\n".join(lines)


def show_in_readme(readme: Path, rows: list[Row]) -> None:
    """Put the ranks between the two marks that README.md has for them."""
    before, rest = readme.read_text().split(START, 1)
    _, after = rest.split(END, 1)
    readme.write_text(f"{before}{START}\n{rank_table(rows)}{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--curves", type=Path, default=ROOT.parent / "shared" / "curves", metavar="DIR")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="two tasks, two seeds, 8 slots")
    parser.add_argument("--slots", type=int, action="append", help="only these of the problems")
    parser.add_argument("--method", action="append", help="of this project, instead of the usual ones")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--only", action="append", metavar="TEXT", help="methods whose name has it, now")
    parser.add_argument("--results", type=Path, default=ROOT / "build" / "bench_search.jsonl")
    parser.add_argument("--no-page", action="store_true", help="replay only")
    parser.add_argument("--output", type=Path, default=DOCS)
    options = parser.parse_args()
    logging.getLogger("spark_hpo").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")

    contestants = [one_of_ours(parse_method(name)) for name in options.method or OURS]
    contestants += () if options.no_peers else PEERS
    if options.only:
        contestants = [c for c in contestants if any(text in c.name for text in options.only)]
    results = Results(options.results)
    for benchmark, slots in problems(options.curves, quick=options.quick):
        if options.slots and slots not in options.slots:
            continue
        for contestant in contestants:
            replays = []
            for seed in range(2 if options.quick else options.seeds):
                one = results.get(benchmark.task, contestant.name, slots, seed)
                if one is None:
                    one = contestant.run(benchmark, slots=slots, seed=seed, budget=BUDGET)
                    results.add(one)
                replays.append(one)
            (row,) = summarise(replays)
            figures = " / ".join(f"{row.regret[point]:.3f}" for point in POINTS)
            print(f"{row.task}, {row.slots} slots, {row.method}: {figures}", file=sys.stderr, flush=True)
    if options.no_page:
        return
    # All that is there: a peer may have run before, in an environment of its own.
    replays = sorted(results.all(), key=lambda one: (one.slots, one.task, one.method, one.seed))
    rows = summarise(replays)
    page = report(rows)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "search.md").write_text(page)
    (options.output / "search.json").write_text(json.dumps([row.to_json() for row in rows], indent=2) + "\n")
    draw(replays, options.output / "search.png")
    if options.output == DOCS:
        show_in_readme(ROOT / "README.md", rows)
    print(page)


if __name__ == "__main__":
    main()
