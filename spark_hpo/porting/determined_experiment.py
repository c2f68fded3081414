"""Imports experiment files of Determined."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from spark_hpo.errors import ConfigError, within
from spark_hpo.porting.imported import (
    Format,
    Source,
    number,
    rounded,
    space_of,
)
from spark_hpo.search.space import Space

_BATCH = "global_batch_size"
_DIVISOR, _MAX_RUNGS = 4, 5  # Determined's own
_GRID = 5  # values of a range in a grid that does not say how many

_ENVIRONMENT = "prepare the executors instead: spark-submit, a Dockerfile or the cluster's own packages"
_REASONS = {
    "bind_mounts": _ENVIRONMENT,
    "environment": _ENVIRONMENT,
    "checkpoint_policy": "checkpoints are always kept for the best trial and for trials that may go on",
    "checkpoint_storage": "is study_dir, which may be a URL such as s3://bucket/studies/name",
    "data": "set data.path to a table, or load the data in the training function",
    "log_policies": "`stopping` and retries of failed executors are the counterpart",
    "min_checkpoint_period": "is training.checkpoint_every; a trial is saved at each rung anyway",
    "min_validation_period": "metrics are measured after each epoch",
    "optimizations": "training.micro_batch and training.precision are the counterpart",
    "pbs": "Spark starts the trials",
    "slurm": "Spark starts the trials",
    "tensorboard_storage": "is the callback TensorBoard(log_dir)",
}
_RESOURCES = {
    "agent_label": "Spark places the trials",
    "devices": "Spark places the trials",
    "is_single_node": "Spark places the trials",
    "native_parallel": "Spark places the trials",
    "priority": "is a matter of Spark's scheduler pools or of the cluster",
    "resource_pool": "Spark places the trials",
    "shm_size": "is a matter of the cluster",
}


def _read(experiment: Source) -> dict[str, Any]:
    name = experiment.take("name") or experiment.take("description")
    searcher = experiment.section("searcher")
    hyperparameters = experiment.section("hyperparameters")
    with within("hyperparameters"):
        space = space_of(hyperparameters, _parameter)
    if _BATCH in space:
        experiment.note(f"hyperparameters.{_BATCH}", "is called batch_size")
        space = {("batch_size" if key == _BATCH else key): value for key, value in space.items()}
    epochs = _epochs(searcher, space, experiment.take("records_per_epoch"))
    search, trials = _search(searcher, space, epochs)
    resources = _resources(experiment, searcher)
    study: dict[str, Any] = {
        "name": name,
        **_seed(experiment),
        "task": _task(experiment),
        "objective": {
            "metric": searcher.take("metric", "validation_loss"),
            "mode": "min" if searcher.take("smaller_is_better", True) else "max",
        },
        "space": space,
        "search": search,
        "budget": {"trials": trials},
        **({"resources": resources} if resources else {}),
    }
    workspace, project = experiment.take("workspace"), experiment.take("project")
    if workspace or project:
        study["mlflow"] = {"experiment": "/".join(filter(None, (workspace, project)))}
    searcher.note_rest(
        {key: "pass the best parameters as search.enqueue" for key in ("source_trial_id",)}
        | {"source_checkpoint_uuid": "a trial starts from its own checkpoints only"}
    )
    return study


def _task(experiment: Source) -> str:
    entrypoint = experiment.take("entrypoint")
    words = " ".join(entrypoint) if isinstance(entrypoint, list) else str(entrypoint or "")
    found = re.search(r"([\w.]+):(\w+)\s*$", words)
    experiment.note(
        "entrypoint",
        "write the training as a function of ctx: ctx.params are context.get_hparam(...), ctx.report(...) "
        "reports validation metrics, and range(*ctx.resource) are the epochs; or write a TrainTask",
    )
    return f"{found[1].replace('.', '/')}.py:{found[2]}" if found else "model_def.py:train"


def _seed(experiment: Source) -> dict[str, int]:
    seed = experiment.section("reproducibility").take("experiment_seed")
    return {} if seed is None else {"seed": int(seed)}


def _epochs(searcher: Source, space: Mapping[str, Any], records_per_epoch: Any) -> int | None:
    """Return the epochs of a fully trained trial; None: the file does not say."""
    length, unit = searcher.take("max_length"), "batches"
    metric, time = searcher.take("time_metric"), searcher.take("max_time")
    if time is not None:  # since 0.38: the unit is any metric that the code reports
        length, unit = time, str(metric)
        if unit not in ("epochs", "batches", "records"):
            searcher.note("time_metric", "the study counts epochs; set search.max_resource")
            return int(time)
    if isinstance(length, Mapping):
        [(unit, length)] = length.items()
    if length is None:
        searcher.note("max_length", "is missing; set search.max_resource to the epochs of a trial")
        return None
    if unit == "epochs":
        return int(length)
    batch = space.get("batch_size")
    rows = int(length) * (int(batch) if unit == "batches" and isinstance(batch, int) else 1)
    if records_per_epoch and (unit == "records" or isinstance(batch, int)):
        epochs = max(1, math.ceil(rows / int(records_per_epoch)))
        searcher.note("max_length", f"{length} {unit} are {epochs} epochs")
        return epochs
    searcher.note(
        "max_length",
        f"{length} {unit}: the study counts epochs, or parts of the table with search.resource: rows; "
        "set search.max_resource to the epochs of a trial",
    )
    return None


def _search(searcher: Source, space: dict[str, Any], epochs: int | None) -> tuple[dict[str, Any], int]:
    """Return the section `search`, and the number of trials."""
    name = searcher.take("name", "single")
    trials = int(searcher.take("max_trials", 1))
    if name == "single":
        return {"sampler": "random", "scheduler": "full", "max_resource": epochs or 1}, 1
    if name == "random":
        return {"sampler": "random", "scheduler": "full", "max_resource": epochs or 1}, trials
    if name == "grid":
        searcher.note(
            "name", "the study's grid has 5 values of each range: search.sampler_settings.resolution"
        )
        size = Space.from_config(space).grid_size(_GRID)
        return {"sampler": "grid", "scheduler": "full", "max_resource": epochs or 1}, size
    if name not in ("adaptive_asha", "async_halving", "asha", "adaptive", "adaptive_simple"):
        searcher.note("name", f"{name!r} is not known here; the study uses the method default")
        return {"method": "default", "max_resource": epochs or 1}, trials
    divisor, rungs = int(searcher.take("divisor", _DIVISOR)), int(searcher.take("max_rungs", _MAX_RUNGS))
    searcher.take("stop_once")
    mode = searcher.take("mode", "standard")
    for key in ("bracket_rungs", "num_rungs"):
        if (given := searcher.take(key)) is not None:
            rungs = int(max(given) if isinstance(given, list) else given)
    longest = epochs or divisor**2
    scheduler = {"aggressive": "asha", "standard": "async_hyperband", "conservative": "async_hyperband"}
    if mode != "aggressive":
        searcher.note(
            "mode", f"{mode}: async_hyperband has all brackets, so a part of the trials is trained fully"
        )
    return {
        "sampler": "random",
        "scheduler": "asha" if name in ("asha", "async_halving") else scheduler.get(mode, "async_hyperband"),
        "max_resource": longest,
        "min_resource": max(1, longest // divisor ** (rungs - 1)),
        "reduction_factor": divisor,
    }, trials


def _resources(experiment: Source, searcher: Source) -> dict[str, Any]:
    found: dict[str, Any] = {}
    resources = experiment.section("resources")
    slots = resources.take("slots_per_trial", 1)
    if slots and int(slots) > 1:
        found["world_size"] = int(slots)
        resources.note("slots_per_trial", "is resources.world_size; for GPUs add resources.gpus_per_rank: 1")
    concurrent = searcher.take("max_concurrent_trials")
    most = resources.take("max_slots")
    if concurrent or most:
        found["max_concurrent"] = int(concurrent or max(1, int(most) // max(1, int(slots))))
    if (weight := resources.take("weight")) is not None:
        found["share"] = weight
    if (restarts := experiment.take("max_restarts")) is not None:
        found["max_infra_retries"] = int(restarts)
        experiment.note("max_restarts", "is resources.max_infra_retries; errors of the code are not retried")
    resources.note_rest(_RESOURCES)
    return found


def _parameter(name: str, entry: Mapping[str, Any], parameters: Source) -> Any:
    with within(name):
        kind = entry.get("type")
        if kind is None:
            return space_of(parameters.nested(name, entry), _parameter)
        if "count" in entry:
            parameters.note(f"{name}.count", "is search.sampler_settings.resolution, for all ranges")
        match kind:
            case "const":
                return entry.get("val")
            case "categorical":
                options = entry.get("vals")
                if not isinstance(options, list) or not options:
                    raise ConfigError("must be a list", key="vals", value=options)
                return options[0] if len(options) == 1 else {"type": "choice", "options": options}
            case "int":
                return number("int", int(_bound(entry, "minval")), int(_bound(entry, "maxval")))
            case "double":
                return number("uniform", _bound(entry, "minval"), _bound(entry, "maxval"))
            case "log":
                base = float(entry.get("base", 10.0))
                low, high = (rounded(base ** _bound(entry, key)) for key in ("minval", "maxval"))
                return number("loguniform", low, high)
        raise ConfigError("is not a type of Determined", key="type", value=kind)


def _bound(entry: Mapping[str, Any], key: str) -> float:
    """Return a bound. YAML reads 1e-4 as text."""
    try:
        return float(entry[key])
    except (KeyError, TypeError, ValueError):
        raise ConfigError("must be a number", key=key, value=entry.get(key)) from None


EXPERIMENT = Format(
    source="experiment of Determined", keys=("searcher", "hyperparameters"), read=_read, reasons=_REASONS
)
