"""Builds what decides in a study: sampler, scheduler, explorer and stopping rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from spark_hpo.config import StudyConfig
from spark_hpo.errors import ConfigError, within
from spark_hpo.search.explorer import Explorer
from spark_hpo.search.explorers.steered import SteeredExplorer
from spark_hpo.search.methods import METHODS_VERSION, Method, find_method
from spark_hpo.search.registry import accepts, build_explorer, build_sampler, build_scheduler
from spark_hpo.search.sampler import Sampler
from spark_hpo.search.samplers.steered import SteeredSampler
from spark_hpo.search.samplers.transfer import EarlierTrial, warm_start
from spark_hpo.search.scheduler import Scheduler
from spark_hpo.search.schedulers.staged import StagedScheduler
from spark_hpo.search.space import Space
from spark_hpo.search.stopping import CostSpent, NoImprovement, RegretBound, StoppingRule, TargetReached
from spark_hpo.study import Confirm, Search
from spark_hpo.study_dir.definition import Definition
from spark_hpo.study_dir.events import described

_FULL_TRAINING = "full"  # the scheduler without rungs


def build_search(
    config: StudyConfig,
    space: Space,
    *,
    earlier: Sequence[Sequence[EarlierTrial]] = (),
    sampler: Sampler | None = None,
    definition: Definition | None = None,
) -> Search:
    """Build everything that decides, as the section `search` describes it.

    Args:
        config: the study.
        space: what is tuned.
        earlier: the trials of each study in `search.transfer`.
        sampler: replaces the sampler of the configuration.
        definition: of the study that is resumed; None: a new one.

    Raises:
        ConfigError: an unknown name, or a setting that does not fit.
    """
    with within("search"):
        search = _build_search(config, space, earlier, sampler, definition)
    _check_ranks(config, search.scheduler)
    return search


def _build_search(
    config: StudyConfig,
    space: Space,
    earlier: Sequence[Sequence[EarlierTrial]],
    sampler: Sampler | None,
    definition: Definition | None,
) -> Search:
    search = config.search
    method = _method(config, METHODS_VERSION if definition is None else definition.methods)
    # A part that replaces the method's does not get the method's settings for it.
    sampler_settings = method.sampler_settings if search.sampler in (None, method.sampler) else {}
    scheduler_name = _scheduler_name(config, method)
    scheduler_settings = method.scheduler_settings if scheduler_name == method.scheduler else {}
    shared = {
        "max_resource": search.max_resource,
        "min_resource": search.min_resource,
        "reduction_factor": search.reduction_factor,
    }

    first_space = space

    def make_explorer(space: Space) -> Explorer:
        return build_explorer(search.explorer or method.explorer, space, config.seed, **search.explore)

    def make_sampler(space: Space, *, is_first: bool = False) -> Sampler:
        transfer, knowledge = search.transfer, None
        if earlier:
            num_first = transfer.num_first if is_first else 0
            knowledge = warm_start(space, earlier, num_first=num_first, discount=transfer.discount)
        return build_sampler(
            search.sampler or method.sampler,
            space,
            config.seed,
            enqueue=search.enqueue if is_first else (),
            knowledge=knowledge,
            num_objectives=len(config.objective.build().metrics),
            first_space=None if is_first else first_space,
            **{**sampler_settings, **search.sampler_settings},
        )

    steered = None
    if sampler is None:
        sampler = steered = SteeredSampler(make_sampler(space, is_first=True), space, make_sampler)
    settings = {
        **{name: value for name, value in shared.items() if value is not None},
        **scheduler_settings,
        **search.scheduler_settings,
    }
    # A sampler of a finite size, such as a grid, limits the trials too.
    max_trials = _least(config.budget.trials, sampler.size)
    first_max_trials = _least(_first_budget(config, definition), sampler.size)
    scheduler = StagedScheduler(
        lambda trials: build_scheduler(scheduler_name, max_trials=trials, **settings), first_max_trials
    )
    if search.has_folds:
        _check_folds(scheduler_name, scheduler, sampler)
    explorer = SteeredExplorer(make_explorer(space), space, make_explorer)
    return Search(
        sampler=sampler,
        steerable=steered,
        scheduler=scheduler,
        explorer=explorer,
        steerable_explorer=explorer,
        stopping=_stopping_rules(config),
        first_max_trials=first_max_trials,
        max_trials=max_trials,
        described=partial(described, search=search),
        has_folds=search.has_folds,
        confirm=None
        if search.confirm is None
        else Confirm(top=search.confirm.top, seeds=search.confirm.seeds),
        seed=config.seed,
        warning=_warning(config, scheduler_name, scheduler),
    )


def _method(config: StudyConfig, version: int) -> Method:
    """Return the study's method, with the settings of an earlier version if the study file was made for them.

    A study file may set what only the scheduler or sampler of an earlier version has.
    """
    search = config.search
    latest = find_method(search.method, version)
    for earlier in reversed(range(1, version + 1)):
        method = find_method(search.method, earlier)
        if accepts("sampler", search.sampler or method.sampler, search.sampler_settings) and accepts(
            "scheduler", search.scheduler or method.scheduler, search.scheduler_settings
        ):
            return method
    return latest


def _check_ranks(config: StudyConfig, scheduler: Scheduler) -> None:
    """Check that the rungs in which the number of ranks grows exist."""
    sizes = config.resources.world_size
    if isinstance(sizes, int) or scheduler.num_rungs is None:
        return
    if (highest := max(sizes)) >= scheduler.num_rungs:
        raise ConfigError(
            f"names rung {highest}, but the highest rung of this search is {scheduler.num_rungs - 1}",
            key="resources.world_size",
            value=dict(sizes),
            cure="Count rungs from 0, the lowest of a bracket",
        )


def _least(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)


def _first_budget(config: StudyConfig, definition: Definition | None) -> int | None:
    """Return the budget of trials that the study began with."""
    if definition is None:
        return config.budget.trials
    budget: Mapping[str, int | None] = definition.config.get("budget", {})
    return budget.get("trials")


def _scheduler_name(config: StudyConfig, method: Method) -> str:
    """Return the user's scheduler, or the method's; with several objectives the default has no rungs."""
    search = config.search
    if search.scheduler is not None or not config.objective.also or search.method != "default":
        return search.scheduler or method.scheduler
    # Rungs rank by one metric: by default they must not stop a trial that is good in another one.
    for_rungs = {
        "min_resource": search.min_resource,
        "reduction_factor": search.reduction_factor,
        **{f"scheduler_settings.{name}": value for name, value in search.scheduler_settings.items()},
    }
    for key, value in for_rungs.items():
        if value is not None:
            raise ConfigError(
                "has no effect, because with objective.also method 'default' trains every trial to the end",
                key=key,
                value=value,
                cure=f"Remove it, or set search.scheduler, for example to {method.scheduler}",
            )
    return _FULL_TRAINING


def _check_folds(scheduler_name: str, scheduler: Scheduler, sampler: Sampler) -> None:
    if scheduler.has_parents:
        raise ConfigError(
            "continues the training of other trials, but with search.resource: folds each fold is trained "
            "from scratch",
            key="scheduler",
            value=scheduler_name,
            cure="Use another scheduler, or resource: epochs",
        )
    if sampler.is_define_by_run:
        raise ConfigError(
            "must not be folds, because each fold would choose its own parameters",
            key="resource",
            value="folds",
            cure="Use epochs",
        )


def _warning(config: StudyConfig, scheduler_name: str, scheduler: Scheduler) -> str | None:
    objective = config.objective
    if not objective.also or not scheduler.stops_early:
        return scheduler.warning
    return (
        f"scheduler {scheduler_name!r} ranks the trials of a rung by {objective.metric} only, and may stop "
        f"trials that are good in {' or '.join(objective.also)}; search.scheduler: {_FULL_TRAINING} does not"
    )


def _stopping_rules(config: StudyConfig) -> list[StoppingRule]:
    stopping, max_resource = config.stopping, config.search.max_resource
    rules: list[Any] = []
    if stopping.target is not None:
        sign = -1 if config.objective.mode == "max" else 1
        # A trial may be lucky in its first fold.
        least = max_resource if config.search.has_folds else 0
        rules.append(TargetReached(sign * stopping.target, least))
    if stopping.no_improvement is not None:
        rules.append(NoImprovement(max_resource, stopping.no_improvement, stopping.min_improvement))
    if stopping.cost is not None and stopping.price_per_slot_hour is not None:
        rules.append(CostSpent(stopping.cost, stopping.price_per_slot_hour))
    if stopping.regret_bound is not None:
        rules.append(RegretBound(max_resource, stopping.regret_bound))
    return rules
