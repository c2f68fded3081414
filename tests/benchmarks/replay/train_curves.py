"""Trains random configurations, and writes their learning curves in the format that `curves.py` reads:
`python -m tests.benchmarks.replay.train_curves [DIR]`.

Three families on which no setting of the default was chosen: a convolutional network on digits, a
network with embeddings on the Adult census table, and a transformer on text messages. They take
about half an hour on one core; a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from sklearn.datasets import load_digits
from sklearn.feature_extraction.text import CountVectorizer
from torch import Tensor, nn
from torch.nn import functional

from spark_hpo.search.space import Space
from tests.benchmarks.replay.families import FRESH_CURVES

ROOT = Path(__file__).parents[3]
DATA = ROOT.parent / "shared" / "data"
MAX_RESOURCE = 27
_WORDS, _VOCABULARY = 24, 1000

Params = Mapping[str, Any]

_OPTIMIZER: Mapping[str, Any] = {
    "learning_rate": {"type": "loguniform", "low": 1e-4, "high": 1.0},
    "batch_size": {"type": "logint", "low": 16, "high": 256},
    "optimizer": {"type": "choice", "options": ["sgd", "adamw"]},
    "weight_decay": {"type": "loguniform", "low": 1e-6, "high": 1e-1},
    "warmup": {"type": "uniform", "low": 0.0, "high": 0.5},
    "decay": {"type": "choice", "options": ["none", "cosine"]},
}


class Tables(tuple[tuple[Tensor, Tensor], ...]):
    """Inputs and labels to train on, to validate on and to test on."""

    __slots__ = ()

    @classmethod
    def split(cls, inputs: Tensor, labels: Tensor, train: int, other: int) -> Tables:
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        parts = order[:train], order[train : train + other], order[train + other : train + 2 * other]
        return cls((inputs[part], labels[part]) for part in parts)


@dataclass(frozen=True, slots=True)
class Family:
    """A table, and the network that learns it."""

    load: Callable[[], Tables]
    build: Callable[[Params], nn.Module]
    space: Mapping[str, Any]
    metric: str
    mode: str
    configurations: int = 300


def _digits() -> Tables:
    images, labels = load_digits(return_X_y=True)
    return Tables.split(
        torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16, torch.tensor(labels), 800, 450
    )


def _convolutions(params: Params) -> nn.Module:
    width = params["channels"]
    return nn.Sequential(
        *(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()),
        *(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten()),
        *(nn.Dropout(params["dropout"]), nn.Linear(2 * width * 16, 10)),
    )


def _adult() -> Tables:
    table = pd.read_csv(DATA / "adult" / "adult.csv", skipinitialspace=True)
    labels = torch.tensor((table.pop("income-per-year") == ">50K").to_numpy(int))
    columns = []
    for _, column in table.items():
        codes = column if column.dtype.kind in "if" else pd.Series(pd.factorize(column)[0])
        columns.append(codes.to_numpy(float))
    return Tables.split(torch.tensor(np.column_stack(columns), dtype=torch.float32), labels, 4000, 4000)


class _Census(nn.Module):
    """Numbers standardized by the first batches, texts embedded, then layers of one width."""

    numbers = (0, 2, 4, 10, 11, 12)

    def __init__(self, params: Params) -> None:
        super().__init__()
        self.texts = [i for i in range(14) if i not in self.numbers]
        size = params["embedding"]
        self.embeddings = nn.ModuleList(nn.Embedding(64, size) for _ in self.texts)
        self.norm = nn.BatchNorm1d(len(self.numbers))
        widths = [len(self.numbers) + size * len(self.texts), *[params["width"]] * params["layers"]]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(params["dropout"])]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], 2))

    def forward(self, rows: Tensor) -> Tensor:
        texts = [one(rows[:, i].long()) for i, one in zip(self.texts, self.embeddings, strict=True)]
        result: Tensor = self.layers(torch.cat([self.norm(rows[:, list(self.numbers)]), *texts], dim=1))
        return result


def _messages() -> Tables:
    table = pd.read_csv(
        DATA / "sms_spam" / "sms.tsv", sep="\t", header=None, names=["label", "text"], quoting=3
    )
    table = table.drop_duplicates("text")
    counts = CountVectorizer(max_features=_VOCABULARY - 1)
    counts.fit(table["text"])
    analyze, words = counts.build_analyzer(), counts.vocabulary_
    rows = np.zeros((len(table), _WORDS), int)
    for row, text in zip(rows, table["text"], strict=True):
        known = [1 + words[word] for word in analyze(text) if word in words][:_WORDS]
        row[: len(known)] = known
    return Tables.split(
        torch.tensor(rows), torch.tensor((table["label"] == "spam").to_numpy(int)), 1000, 1500
    )


class _Transformer(nn.Module):
    def __init__(self, params: Params) -> None:
        super().__init__()
        width = 8 * params["heads"]
        self.words = nn.Embedding(_VOCABULARY, width)
        self.places = nn.Parameter(torch.zeros(_WORDS, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, params["heads"], 2 * width, params["dropout"], batch_first=True, norm_first=True
            )
            for _ in range(params["layers"])
        )
        self.head = nn.Linear(width, 2)

    def forward(self, rows: Tensor) -> Tensor:
        states = self.words(rows) + self.places
        for block in self.blocks:
            states = block(states)
        result: Tensor = self.head(states.mean(dim=1))
        return result


_DROPOUT = {"type": "uniform", "low": 0.0, "high": 0.7}
FAMILIES: Mapping[str, Family] = {
    "digits_convolutions": Family(
        _digits,
        _convolutions,
        {**_OPTIMIZER, "dropout": _DROPOUT, "channels": {"type": "logint", "low": 2, "high": 24}},
        metric="val_loss",
        mode="min",
    ),
    "adult_embeddings": Family(
        _adult,
        _Census,
        {
            **_OPTIMIZER,
            "dropout": _DROPOUT,
            "layers": {"type": "int", "low": 1, "high": 3},
            "width": {"type": "logint", "low": 8, "high": 128},
            "embedding": {"type": "logint", "low": 1, "high": 8},
        },
        metric="val_accuracy",
        mode="max",
    ),
    "sms_transformer": Family(
        _messages,
        _Transformer,
        {
            **_OPTIMIZER,
            "dropout": _DROPOUT,
            "layers": {"type": "int", "low": 1, "high": 2},
            "heads": {"type": "int", "low": 1, "high": 4},
        },
        metric="val_loss",
        mode="min",
        configurations=160,
    ),
}


def train(family: Family, tables: Tables, params: Params, seed: int) -> Iterator[dict[str, float]]:
    """Train one configuration to the end, and yield its metrics after each unit of the resource."""
    torch.manual_seed(seed)
    model = family.build(params)
    (inputs, labels), *others = tables
    rate, kind = (
        params["learning_rate"],
        torch.optim.SGD if params["optimizer"] == "sgd" else torch.optim.AdamW,
    )
    more = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    optimizer = kind(model.parameters(), lr=rate, weight_decay=params["weight_decay"], **more)
    size, steps = params["batch_size"], math.ceil(len(labels) / params["batch_size"])
    end, warmup = MAX_RESOURCE * steps, params["warmup"] * 5 * steps  # at most 2.5 epochs

    def factor(step: int) -> float:
        rise = min(1.0, (step + 1) / (warmup + 1))
        return rise if params["decay"] == "none" else rise * 0.5 * (1 + math.cos(math.pi * step / end))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    spent = 0.0
    for epoch in range(1, MAX_RESOURCE + 1):
        started = time.process_time()
        model.train()
        for batch in torch.randperm(len(labels)).split(size):
            if len(batch) > 1:  # a batch norm needs two rows
                optimizer.zero_grad()
                functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()
                optimizer.step()
            schedule.step()
        spent += time.process_time() - started
        model.eval()
        values: dict[str, float] = {}
        with torch.no_grad():
            for name, (rows, truth) in zip(("val", "test"), others, strict=True):
                logits = model(rows)
                values[f"{name}_loss"] = float(functional.cross_entropy(logits, truth))
                values[f"{name}_accuracy"] = float((logits.argmax(1) == truth).float().mean())
        if not math.isfinite(values["val_loss"]):
            return  # it has diverged
        yield {"resource": epoch, "elapsed_s": spent, **values}


def write(name: str, folder: Path, configurations: int | None = None) -> None:
    """Write a family's folder. Configurations that an earlier run has trained are kept."""
    family, tables = FAMILIES[name], FAMILIES[name].load()
    configurations = configurations or family.configurations
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "trained.jsonl"
    space = Space.from_config(family.space)
    drawn = [space.sample(np.random.default_rng(i)) for i in range(configurations)]
    done = len(file.read_text().splitlines()) if file.exists() else 0
    with file.open("a") as lines:
        for number in range(done, configurations):
            lines.write(json.dumps(list(train(family, tables, drawn[number], number))) + "\n")
            lines.flush()
    curves = [json.loads(line) for line in file.read_text().splitlines()[:configurations]]
    rows = [{"task": name, "config_id": i, **point} for i, curve in enumerate(curves) for point in curve]
    pd.DataFrame([{"config_id": i, **params} for i, params in enumerate(drawn)]).to_parquet(
        folder / "configs.parquet"
    )
    pd.DataFrame(rows).to_parquet(folder / "curves.parquet")
    description = {
        "name": name,
        "metric": family.metric,
        "mode": family.mode,
        "max_resource": MAX_RESOURCE,
        "resource_unit": "1 epoch",
        "source": "tests/benchmarks/replay/train_curves.py",
        "space": dict(family.space),
    }
    (folder / "benchmark.yaml").write_text(yaml.safe_dump(description, sort_keys=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=FRESH_CURVES)
    parser.add_argument("--family", action="append", choices=list(FAMILIES))
    parser.add_argument("--configurations", type=int, help="of each, instead of 300 or 160")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.family or FAMILIES:
        write(name, options.folder / name, options.configurations)


if __name__ == "__main__":
    main()
