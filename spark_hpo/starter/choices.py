"""Chooses objective, space and budget for a table. Pure: the same facts give the same study."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spark_hpo.starter.table_facts import LabelFacts, TableFacts

RARE = 0.1  # share below which a class is rare, if it is also less than half of an equal share
UNEVEN = 0.85  # share of a class above which accuracy hardly differs between models
MIN_TRIALS, TRIALS, MAX_TRIALS = 20, 200, 500  # TRIALS: unless the pace is known, or they take too long
HOUR_S = 3600
_SOON_S = 600  # a small table gets as many trials as fit
_REDUCTION = 3  # of the trials, from rung to rung
_JOB_S = 0.3  # that Spark takes to start an assignment
_TEXT_ROWS = 100_000  # up to which a text study trains for epochs
_LINEAR_ROWS = 5_000  # below, a model without a hidden layer may be the best


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """The settings that depend on the table, with reasons for the comments of the study file."""

    task: str
    metric: str
    mode: str
    metric_reason: str
    training: Mapping[str, Any]
    space: Mapping[str, Any]
    first: Mapping[str, Any]
    search: Mapping[str, Any]
    search_reason: str
    trials: int
    seconds: int
    budget_reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """How fast trials are, as measured."""

    step_s: float  # seconds per batch
    start_s: float  # seconds to start an assignment
    slots: int  # trials that run at once


def choose(facts: TableFacts, speed: Speed | None = None) -> Choices:
    """Choose a study that ends in a reasonable time.

    Args:
        speed: None: not measured.
    """
    metric, mode, metric_reason = _objective(facts.label)
    if facts.is_forecast:
        reason = "the absolute error, divided by that of repeating the last season within the history"
        metric, mode, metric_reason = "scaled_error", "min", reason
    if facts.extra_labels:
        metric, mode, metric_reason = "loss", "min", "the sum over the labels"
    task = _task(facts)
    is_rare = any(map(_has_rare_class, (facts.label, *facts.extra_labels)))
    space, first = _SPACES[task](facts)
    for label in facts.extra_labels:  # relative to the first one
        space[f"loss_weight_{label.name}"] = _loguniform(0.3, 3.0)
        first[f"loss_weight_{label.name}"] = 1.0
    search, search_reason = _resource(facts)
    trials, seconds, budget_reason = _budget(facts, search, int(first["batch_size"]), speed)
    return Choices(
        task=task,
        metric=metric,
        mode=mode,
        metric_reason=metric_reason,
        training={"clip_norm": 1.0} | ({"class_weights": "balanced"} if is_rare else {}),
        space=space,
        first=first,
        search=search,
        search_reason=search_reason,
        trials=trials,
        seconds=seconds,
        budget_reason=budget_reason,
    )


def _budget(
    facts: TableFacts, search: Mapping[str, Any], batch_size: int, speed: Speed | None
) -> tuple[int, int, str]:
    """As many trials as fit into ten minutes, or TRIALS if these fit into an hour."""
    if speed is None:
        return TRIALS, HOUR_S, "whichever is reached first; the time of a trial is not measured yet"
    trial_s = seconds_per_trial(facts, search, batch_size, speed)
    fits_soon = int(_SOON_S * speed.slots / trial_s)
    fits = int(HOUR_S * speed.slots / trial_s)
    trials = min(MAX_TRIALS, max(fits_soon, min(fits, TRIALS), MIN_TRIALS))
    expected_s = trials * trial_s / speed.slots
    # Half as long again, because other trials are larger than the one that was measured.
    seconds = min(HOUR_S, max(60, math.ceil(1.5 * expected_s / 60) * 60))
    per_trial = f"{trial_s:.2g} s" if trial_s < 100 else f"{trial_s / 60:.3g} min"
    slots = f"{speed.slots} at once" if speed.slots > 1 else "one at a time"
    return trials, seconds, f"about {per_trial} per trial, as measured here, {slots}; the first limit counts"


def seconds_per_trial(facts: TableFacts, search: Mapping[str, Any], batch_size: int, speed: Speed) -> float:
    """Estimate the mean time of a trial, most of which are stopped early.

    A third of the trials is promoted from each rung to the next, which has three times its resource. So a
    trial uses 1 + 2/3 per rung of the smallest resource on average, in 1 + 1/3 + 1/9 + ... assignments.
    """
    max_resource = int(search["max_resource"])
    resource = 1 + (1 - 1 / _REDUCTION) * math.log(max_resource, _REDUCTION)
    rows = facts.train_rows * int(search.get("epochs", 1))
    if search.get("resource") == "rows":
        rows = math.ceil(rows / max_resource)
    evaluation = facts.validation_rows / 3  # without gradients
    steps = (rows + evaluation) / batch_size
    assignments = _REDUCTION / (_REDUCTION - 1)
    return resource * steps * speed.step_s + assignments * (speed.start_s + _JOB_S)


def _objective(label: LabelFacts) -> tuple[str, str, str]:
    if label.is_number:
        known = label.deviation
        mean = f"; always predicting the mean gives about {known**2:.4g}" if known is not None else ""
        return "squared_error", "min", f"in the label's own units, squared{mean}"
    if _has_rare_class(label):
        share = f"only {100 * label.smallest_share:.2g} % of the rows are of the rarest class"
        if label.classes == 2 and not label.rare_is_second:
            return "auroc", "max", f"{share}, which is the first one: average_precision is of the second one"
        return "average_precision", "max", f"{share}, so accuracy hardly differs between models"
    share = f"{label.largest_share:.0%} of the rows are of one class"
    if label.largest_share > UNEVEN:
        return "loss", "min", f"cross-entropy: {share}, so accuracy hardly differs between models"
    return "accuracy", "max", f"{share}; always predicting it gives {label.largest_share:.3f}"


def _has_rare_class(label: LabelFacts) -> bool:
    return not label.is_number and label.smallest_share < min(RARE, 0.5 / label.classes)


def _resource(facts: TableFacts) -> tuple[dict[str, Any], str]:
    """Epochs for small tables, shares of the rows for large ones."""
    rows = facts.train_rows
    if facts.texts and rows <= _TEXT_ROWS:
        return {"max_resource": 9}, "epochs of a fully trained trial; a pretrained encoder needs few"
    for most, epochs in ((5_000, 81), (100_000, 27), (3_000_000, 9)):
        if rows <= most:
            return {"max_resource": epochs}, "epochs of a fully trained trial"
    passes = 3 if rows <= 30_000_000 else 1
    return (
        {"resource": "rows", "max_resource": 27, "epochs": passes},
        f"27ths of {passes} passes over the rows: the lowest rungs train on a part of the table",
    )


def _tabular_space(facts: TableFacts) -> tuple[dict[str, Any], dict[str, Any]]:
    rows = facts.train_rows
    is_small = rows <= _LINEAR_ROWS
    widest = 64 if rows <= 1_000 else 128 if rows <= 30_000 else 256 if rows <= 1_000_000 else 512
    batches = _batch_sizes(rows)
    # A small table gets the choice, because a plain network of few weights may be the best.
    space: dict[str, Any] = {
        "model": {"type": "choice", "options": ["mlp", "resnet"]} if is_small else "resnet",
        "learning_rate": _loguniform(1e-3 if is_small else 3e-4, 3e-2 if is_small else 1e-2),
        "weight_decay": _loguniform(1e-4, 1.0 if is_small else 0.1),
        "hidden_units": {"type": "logint", "low": 16 if is_small else 32, "high": widest},
        "hidden_layers": {"type": "int", "low": 0 if is_small else 1, "high": 2},
        "dropout": {"type": "uniform", "low": 0.0, "high": 0.5},
        "batch_size": {"type": "choice", "options": batches},
    }
    first: dict[str, Any] = {
        "model": "mlp" if is_small else "resnet",
        "learning_rate": 3e-3,
        "weight_decay": 0.01,
        "hidden_units": 64 if is_small else 128,
        "hidden_layers": 1,
        "dropout": 0.1 if is_small else 0.2,
        "batch_size": batches[1],
    }
    if facts.numbers:
        space["frequency_scale"] = _loguniform(0.3, 8.0)
        first["frequency_scale"] = 2.0
    if widths := _embedding_units(facts):
        space["embedding_units"] = {"type": "choice", "options": widths}
        first["embedding_units"] = widths[1]
    return space, first


def _image_space(facts: TableFacts) -> tuple[dict[str, Any], dict[str, Any]]:
    side = min(facts.image[1:])
    batches = _batch_sizes(facts.train_rows)
    space: dict[str, Any] = {
        "learning_rate": _loguniform(3e-4, 3e-2),
        "weight_decay": _loguniform(1e-5, 0.1),
        "channels": {"type": "choice", "options": [16, 32, 48]},
        "stages": {"type": "int", "low": 1 if side < 16 else 2, "high": 2 if side < 16 else 4},
        "dropout": {"type": "uniform", "low": 0.0, "high": 0.6},
        "crop_padding": {"type": "int", "low": 0, "high": max(1, side // 8)},
        "flip_probability": {"type": "choice", "options": [0.0, 0.5]},
        "batch_size": {"type": "choice", "options": batches},
    }
    first: dict[str, Any] = {
        "learning_rate": 3e-3,
        "weight_decay": 0.01,
        "channels": 32,
        "stages": 2,
        "dropout": 0.1,
        "crop_padding": 0,
        "flip_probability": 0.0,
        "batch_size": batches[1],
    }
    return space, first


def _sequence_space(facts: TableFacts) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    batches = _batch_sizes(facts.train_rows)
    space: dict[str, dict[str, Any]] = {
        "model": {"type": "choice", "options": ["gru", "transformer"]},
        "learning_rate": _loguniform(3e-4, 1e-2),
        "weight_decay": _loguniform(1e-4, 0.1),
        "units": {"type": "logint", "low": 16, "high": 128},
        "layers": {"type": "int", "low": 1, "high": 2},
        "dropout": {"type": "uniform", "low": 0.0, "high": 0.5},
        "batch_size": {"type": "choice", "options": batches},
    }
    first = {
        "model": "gru",
        "learning_rate": 3e-3,
        "weight_decay": 0.01,
        "units": 64,
        "layers": 1,
        "dropout": 0.1,
        "batch_size": batches[1],
    }
    return space, first


def _text_space(facts: TableFacts) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    space: dict[str, dict[str, Any]] = {
        "learning_rate": _loguniform(1e-5, 3e-4),
        "head_learning_rate": _loguniform(3e-4, 1e-2),
        "frozen_layers": {"type": "int", "low": 0, "high": 4},
        "dropout": {"type": "uniform", "low": 0.0, "high": 0.3},
        "batch_size": {"type": "choice", "options": [16, 32]},
    }
    first = {
        "learning_rate": 5e-5,
        "head_learning_rate": 1e-3,
        "frozen_layers": 0,
        "dropout": 0.1,
        "batch_size": 32,
    }
    return space, first


def _forecast_space(facts: TableFacts) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    batches = _batch_sizes(facts.train_rows)
    space: dict[str, dict[str, Any]] = {
        "model": {"type": "choice", "options": ["mlp", "gru"]},
        "learning_rate": _loguniform(3e-4, 1e-2),
        "weight_decay": _loguniform(1e-5, 0.1),
        "units": {"type": "logint", "low": 16, "high": 128},
        "layers": {"type": "int", "low": 1, "high": 2},
        "dropout": {"type": "uniform", "low": 0.0, "high": 0.3},
        "batch_size": {"type": "choice", "options": batches},
    }
    first = {
        "model": "mlp",
        "learning_rate": 1e-3,
        "weight_decay": 0.01,
        "units": 64,
        "layers": 1,
        "dropout": 0.0,
        "batch_size": batches[1],
    }
    return space, first


def _task(facts: TableFacts) -> str:
    """Name the task for the columns that need the most particular one."""
    if facts.is_forecast:
        return "forecast"
    if facts.image:
        return "image"
    if facts.texts:
        return "text"
    return "sequence" if facts.lists else "tabular"


_SPACES = {
    "tabular": _tabular_space,
    "image": _image_space,
    "sequence": _sequence_space,
    "text": _text_space,
    "forecast": _forecast_space,
}


def _batch_sizes(rows: int) -> list[int]:
    """Powers of two that give at least about twenty steps per epoch, if there are enough rows."""
    for most, middle in ((2_000, 32), (10_000, 64), (50_000, 128), (500_000, 256)):
        if rows <= most:
            return [middle // 2, middle, middle * 2]
    return [512, 1024, 2048]


def _embedding_units(facts: TableFacts) -> list[int]:
    """Embedding widths; the task uses at most half the number of codes."""
    most = max(facts.categories, default=0)
    if most <= 3:
        return []
    return [2, 4] if most <= 8 else [4, 8, 16] if most <= 200 else [8, 16, 32]


def _loguniform(low: float, high: float) -> dict[str, Any]:
    return {"type": "loguniform", "low": low, "high": high}
