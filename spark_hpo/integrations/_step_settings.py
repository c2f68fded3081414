"""Gives a trial that continues another trial's checkpoint its own learning rate and schedule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spark_hpo.train.inheritance import inherited


def step_settings(optimizers: Sequence[Any], schedules: Sequence[Any]) -> dict[str, Any]:
    """Return what the parameters of a trial decide: the groups of its optimizers, and its schedules."""
    return {
        "groups": [optimizer.state_dict()["param_groups"] for optimizer in optimizers],
        "schedules": [schedule.state_dict() for schedule in schedules],
    }


def inherit(optimizers: Sequence[Any], schedules: Sequence[Any], *, built: Any, fresh: Any) -> None:
    """Change the settings of loaded optimizers and schedules to those of this trial: see `inherited`.

    Args:
        built: `step_settings` of the checkpoint's trial before it was trained.
        fresh: those of this trial.
    """
    now = inherited(step_settings(optimizers, schedules), built, fresh)
    for optimizer, groups in zip(optimizers, now["groups"], strict=True):
        for group, values in zip(optimizer.param_groups, groups, strict=True):
            group |= {name: value for name, value in values.items() if name != "params"}
    for schedule, state in zip(schedules, now["schedules"], strict=True):
        schedule.load_state_dict(state)
