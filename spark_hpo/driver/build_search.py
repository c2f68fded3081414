"""The deciding half of a study, from its configuration: sampler, scheduler, explorer, stopping rules."""

from __future__ import annotations

import json
from typing import Any

from spark_hpo.config import StudyConfig
from spark_hpo.errors import ConfigError, JournalError
from spark_hpo.search.methods import Method, find_method
from spark_hpo.search.registry import build_explorer, build_sampler, build_scheduler
from spark_hpo.search.sampler import Sampler
from spark_hpo.search.samplers.transfer import EarlierTrial, Knowledge, warm_start
from spark_hpo.search.scheduler import Scheduler
from spark_hpo.search.space import Space
from spark_hpo.search.stopping import CostSpent, NoImprovement, RegretBound, StoppingRule, TargetReached
from spark_hpo.study import Search
from spark_hpo.study_dir.journal import Journal
from spark_hpo.study_dir.storage import Storage

_TRANSFER_FILE = "transfer.json"
_WITHOUT_RUNGS = "full"  # the one scheduler that trains every trial to the end


def build_search(
    config: StudyConfig,
    space: Space,
    *,
    place: str,
    knowledge: Knowledge | None = None,
    sampler: Sampler | None = None,
) -> Search:
    """Everything that decides, as the study file says.

    Args:
        place: the study file, for messages.
        knowledge: of earlier studies.
        sampler: in place of the one that the study file names.

    Raises:
        ConfigError: an unknown name, or a setting that does not fit what it is given to.
    """
    search, place = config.search, f"{place}: search"
    method = find_method(search.method, place=place)
    # What replaces a part of the method takes none of that part's settings.
    sampler_settings = method.sampler_settings if search.sampler in (None, method.sampler) else {}
    scheduler_name = _scheduler_of(config, method, place)
    scheduler_settings = method.scheduler_settings if scheduler_name == method.scheduler else {}
    given = {
        "max_resource": search.max_resource,
        "min_resource": search.min_resource,
        "reduction_factor": search.reduction_factor,
    }
    sampler = sampler or build_sampler(
        search.sampler or method.sampler,
        space,
        config.seed,
        place=place,
        enqueue=search.first,
        knowledge=knowledge,
        num_objectives=len(config.objective.build().metrics),
        **{**sampler_settings, **search.sampler_settings},
    )
    # No more trials than a grid has points.
    limits = [n for n in (config.budget.trials, sampler.size) if n is not None]
    scheduler = build_scheduler(
        scheduler_name,
        place=place,
        max_trials=min(limits, default=None),
        **{name: value for name, value in given.items() if value is not None},
        **{**scheduler_settings, **search.scheduler_settings},
    )
    return Search(
        sampler=sampler,
        scheduler=scheduler,
        explorer=build_explorer(
            search.explorer or method.explorer, space, config.seed, place=place, **search.explore
        ),
        stopping=_stopping_rules(config),
        seed=config.seed,
        warning=_warning(config, scheduler_name, scheduler),
    )


def _scheduler_of(config: StudyConfig, method: Method, place: str) -> str:
    """The scheduler's name: the user's own, or the method's."""
    search = config.search
    if search.scheduler is not None or not config.objective.also or search.method != "default":
        return search.scheduler or method.scheduler
    # Rungs rank by one number: unless the user wants them, they shall stop nothing that is good in another.
    of_rungs = {"min_resource": search.min_resource, "reduction_factor": search.reduction_factor}
    for name, value in {**of_rungs, **search.scheduler_settings}.items():
        if value is not None:
            raise ConfigError(
                f"{place}.{name} is {value!r}, but with objective.also method 'default' trains every trial "
                f"to the end: leave it out, or set search.scheduler, to {method.scheduler} for one"
            )
    return _WITHOUT_RUNGS


def _warning(config: StudyConfig, scheduler_name: str, scheduler: Scheduler) -> str | None:
    objective = config.objective
    if not objective.also or not getattr(scheduler, "stops_early", Scheduler.stops_early):
        return None
    return (
        f"scheduler {scheduler_name!r} ranks the trials of a rung by {objective.metric} alone, and may stop "
        f"what is good in {' or '.join(objective.also)}; search.scheduler: {_WITHOUT_RUNGS} stops nothing"
    )


def earlier_trials(config: StudyConfig, storage: Storage) -> list[list[EarlierTrial]]:
    """What the studies of `search.transfer` know; kept in the study directory when it is read first.

    A study that resumes must know what it knew when it began, whatever has become of the others.
    """
    data = storage.read(_TRANSFER_FILE)
    if data is None:
        objective = config.objective.build()
        records = [
            [
                {
                    "params": dict(trial.params),
                    "resource": trial.resource,
                    "loss": repr(trial.loss),
                    "violation": repr(trial.violation),
                }
                for trial in Journal(Storage(folder), objective).trials.values()
            ]
            for folder in config.search.transfer.studies
        ]
        data = json.dumps(records).encode()
        storage.write(_TRANSFER_FILE, data)
    try:
        return [
            [
                EarlierTrial(
                    params=record["params"],
                    resource=record["resource"],
                    loss=float(record["loss"]),
                    violation=float(record.get("violation", 0.0)),
                )
                for record in study
            ]
            for study in json.loads(data)
        ]
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise JournalError(
            f"{storage.url}/{_TRANSFER_FILE} is damaged ({exc!r}): what this study has learned from others "
            "stands in it; restore the file, or start a new study in another study_dir"
        ) from exc


def knowledge_of(config: StudyConfig, space: Space, storage: Storage) -> Knowledge | None:
    """What earlier studies say about this space; None when there are none."""
    transfer = config.search.transfer
    if not transfer.studies:
        return None
    studies = earlier_trials(config, storage)
    return warm_start(space, studies, num_first=transfer.num_first, discount=transfer.discount)


def _stopping_rules(config: StudyConfig) -> list[StoppingRule]:
    stopping, max_resource = config.stopping, config.search.max_resource
    rules: list[Any] = []
    if stopping.target is not None:
        sign = -1 if config.objective.mode == "max" else 1
        rules.append(TargetReached(sign * stopping.target))
    if stopping.no_improvement is not None:
        rules.append(NoImprovement(max_resource, stopping.no_improvement, stopping.min_improvement))
    if stopping.cost is not None and stopping.price_per_slot_hour is not None:
        rules.append(CostSpent(stopping.cost, stopping.price_per_slot_hour))
    if stopping.regret_bound is not None:
        rules.append(RegretBound(max_resource, stopping.regret_bound))
    return rules
