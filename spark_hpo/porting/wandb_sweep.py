"""Imports sweep files of Weights & Biases."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from spark_hpo.errors import ConfigError, within
from spark_hpo.porting.imported import (
    EPOCHS,
    Format,
    Source,
    number,
    rounded,
    space_of,
    whole,
)
from spark_hpo.search.space import Space

_TRIALS = 100  # of a sweep without a limit

_METHODS = {"grid": "grid", "random": "random", "bayes": "tpe"}

_REASONS = {
    "command": "trials call a Python function; there is no command line",
    "controller": "the driver of a study decides, without a service",
    "entity": "belongs to W&B; pass it to the callback WeightsAndBiases",
    "launch": "Spark starts the trials",
    "job": "Spark starts the trials",
    "project": "belongs to W&B; pass it to the callback WeightsAndBiases",
}


def _read(sweep: Source) -> dict[str, Any]:
    name = sweep.take("name")
    metric = _metric(sweep)
    parameters = sweep.section("parameters")
    with within("parameters"):
        space = space_of(parameters, _parameter)
    method = sweep.take("method")
    if method not in _METHODS:
        sweep.note("method", f"{method!r} is not known here; the study uses tpe")
    elif method == "bayes":
        sweep.note("method", "a Gaussian process; the study uses tpe, and search.sampler: gp is closer")
    search = {"sampler": _METHODS.get(method, "tpe"), **_schedule(sweep, space)}
    study: dict[str, Any] = {
        "name": name,
        "task": _task(sweep),
        "objective": {"metric": metric["name"], "mode": metric["mode"]},
        "space": space,
        "search": search,
        "budget": {"trials": _trials(sweep, method, space)},
    }
    if metric["target"] is not None:
        study["stopping"] = {"target": metric["target"]}
    return study


def _metric(sweep: Source) -> dict[str, Any]:
    metric = sweep.section("metric")
    name, goal = metric.take("name"), metric.take("goal", "minimize")
    if name is None:
        name = "loss"
        metric.note("name", "is missing; the study minimises loss")
    if goal not in ("minimize", "maximize"):
        raise ConfigError("must be minimize or maximize", key="metric.goal", value=goal)
    target = metric.take("target")
    metric.note_rest({})
    return {"name": name, "mode": "min" if goal == "minimize" else "max", "target": target}


def _task(sweep: Source) -> str:
    program = sweep.take("program")
    sweep.note(
        "program",
        "write its training as a function train(ctx): ctx.params is wandb.config, ctx.report(...) is "
        "wandb.log(...), and range(*ctx.resource) are the epochs",
    )
    return f"{program or 'train.py'}:train"


def _trials(sweep: Source, method: str, space: Mapping[str, Any]) -> int:
    cap = sweep.take("run_cap")
    if cap is not None:
        return int(cap)
    if method == "grid":
        return Space.from_config(space).grid_size(5)
    sweep.note("run_cap", f"is missing, so the sweep never ends; the study ends after {_TRIALS} trials")
    return _TRIALS


def _schedule(sweep: Source, space: dict[str, Any]) -> dict[str, Any]:
    """Return scheduler, resource and eta. W&B counts how often a run has logged its metric."""
    early = sweep.section("early_terminate")
    kind = early.take("type")
    epochs = _epochs(sweep, space)
    if kind is None:
        early.note_rest({})
        return {"scheduler": "full", "max_resource": epochs or 1}
    if kind != "hyperband":
        early.note("type", f"{kind!r} is not known here; the study trains every trial to the end")
        early.note_rest({})
        return {"scheduler": "full", "max_resource": epochs or 1}
    eta = int(early.take("eta", 3))
    last, brackets, first = early.take("max_iter"), early.take("s"), early.take("min_iter")
    longest = int(last or epochs or (first or 1) * eta**2)
    if last is None and epochs is None:
        early.note(
            "max_iter", f"is missing; set search.max_resource to the epochs of a trial, here {longest}"
        )
    lowest = int(first) if first is not None else max(1, longest // eta ** int(brackets or 1))
    if early.take("strict"):
        early.note("strict", "trials that are not promoted stop in any case")
    early.note("type", "iterations are calls of wandb.log; the study counts epochs")
    early.note_rest({})
    return {
        "scheduler": "asha",
        "max_resource": longest,
        "min_resource": min(lowest, longest),
        "reduction_factor": eta,
    }


def _epochs(sweep: Source, space: dict[str, Any]) -> int | None:
    """Return the constant that says how long to train, which becomes the resource of the search."""
    for name, value in space.items():
        if EPOCHS.match(name):
            if whole(value):
                del space[name]
                sweep.note(f"parameters.{name}", "is search.max_resource; use range(*ctx.resource)")
                return int(value)
            sweep.note(f"parameters.{name}", "stays a parameter; search.max_resource says how long to train")
    if "early_terminate" not in sweep:
        sweep.note("parameters", "no number of epochs was found; set search.max_resource")
    return None


def _parameter(name: str, entry: Mapping[str, Any], parameters: Source) -> Any:
    if "parameters" in entry:
        with within(name):
            return space_of(parameters.nested(name, entry).section("parameters"), _parameter)
    if "value" in entry:
        return entry["value"]
    kind = entry.get("distribution")
    if "values" in entry:
        options = list(dict.fromkeys(entry["values"])) if _is_plain(entry["values"]) else entry["values"]
        if len(options) == 1:
            return options[0]
        weights = {"weights": entry["probabilities"]} if "probabilities" in entry else {}
        return {"type": "choice", "options": options, **weights}
    with within(name):
        return _number(name, kind, entry, parameters)


def _is_plain(values: Any) -> bool:
    return (
        isinstance(values, list)
        and len({type(value) for value in values}) == 1
        and not any(isinstance(value, list | dict) for value in values)
    )


def _number(name: str, kind: Any, entry: Mapping[str, Any], parameters: Source) -> Any:
    if kind in ("beta", "q_beta"):
        parameters.note(name, f"{kind} has no counterpart; the study draws it uniformly from 0 to 1")
        return {"type": "uniform", "low": 0.0, "high": 1.0}
    q = entry.get("q", 1)
    if kind in ("normal", "q_normal", "log_normal", "q_log_normal"):
        values = {"mu": entry.get("mu", 0.0), "sigma": entry.get("sigma", 1.0)}
        return {"type": kind.replace("_", ""), **values, **({"q": q} if kind.startswith("q_") else {})}
    if "min" not in entry or "max" not in entry:
        raise ConfigError("must have value, values, or min and max", value=dict(entry))
    low, high = _bound(entry, "min"), _bound(entry, "max")
    if kind is None:
        kind = "int_uniform" if whole(low, high) and _are_ints(entry) else "uniform"
    match kind:
        case "int_uniform":
            return number("int", int(low), int(high))
        case "uniform":
            return number("uniform", low, high)
        case "q_uniform":
            return number("quniform", low, high, q=q, **_integer(q))
        case "log_uniform":
            return number("loguniform", rounded(math.exp(low)), rounded(math.exp(high)))
        case "inv_log_uniform":  # 1/x is log-uniform, and then x is, too
            return number("loguniform", rounded(math.exp(-high)), rounded(math.exp(-low)))
        case "log_uniform_values" | "inv_log_uniform_values":
            return number("loguniform", low, high)
        case "q_log_uniform":
            return number("qloguniform", rounded(math.exp(low)), rounded(math.exp(high)), q=q, **_integer(q))
        case "q_log_uniform_values":
            return number("qloguniform", low, high, q=q, **_integer(q))
    raise ConfigError("is not a distribution of W&B", key="distribution", value=kind)


def _bound(entry: Mapping[str, Any], key: str) -> float:
    """Return a bound. YAML reads 1e-4 as text."""
    try:
        return entry[key] if isinstance(entry[key], int | float) else float(entry[key])
    except (TypeError, ValueError):
        raise ConfigError("must be a number", key=key, value=entry[key]) from None


def _are_ints(entry: Mapping[str, Any]) -> bool:
    return isinstance(entry["min"], int) and isinstance(entry["max"], int)


def _integer(q: Any) -> dict[str, bool]:
    return {"integer": True} if whole(q) else {}


SWEEP = Format(source="sweep of W&B", keys=("method", "parameters"), read=_read, reasons=_REASONS)
