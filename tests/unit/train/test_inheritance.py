"""A child in population based training has its parent's weights and moments, and its own rates."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    SequentialLR,
)

from spark_hpo.train.inheritance import inherited

STEPS = 40


def half_way(step: int) -> float:
    return 1 - step / (2 * STEPS)


def warm_up(optimizer: Optimizer) -> LRScheduler:
    parts = [LinearLR(optimizer, 0.1, total_iters=5), CosineAnnealingLR(optimizer, T_max=STEPS)]
    return SequentialLR(optimizer, parts, milestones=[5])


SCHEDULES: dict[str, Callable[[Optimizer], LRScheduler]] = {
    "cosine": lambda optimizer: CosineAnnealingLR(optimizer, T_max=STEPS),
    "exponential": lambda optimizer: ExponentialLR(optimizer, gamma=0.9),
    "lambda": lambda optimizer: LambdaLR(optimizer, half_way),
    "warm_up": warm_up,
    "one_cycle": lambda optimizer: OneCycleLR(
        optimizer, max_lr=10 * optimizer.param_groups[0]["lr"], total_steps=STEPS
    ),
}


class Training:
    """An optimizer and its schedule, as a trial builds them."""

    def __init__(self, rate: float, schedule: Callable[[Optimizer], LRScheduler], **settings: Any) -> None:
        self.layer = nn.Linear(2, 1)
        self.optimizer = torch.optim.AdamW(self.layer.parameters(), lr=rate, **settings)
        self.schedule = schedule(self.optimizer)
        self.built = copy.deepcopy(self.state())

    def state(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict()}

    def rates(self, steps: int) -> list[float]:
        """Return the rate of each of the next steps."""
        seen = []
        for _ in range(steps):
            seen.append(self.optimizer.param_groups[0]["lr"])
            self.layer(torch.ones(1, 2)).sum().backward()
            self.optimizer.step()
            self.schedule.step()
        return seen

    def resume_from(self, other: Training) -> None:
        now = {**other.state(), "optimizer": other.state()["optimizer"]["param_groups"]}
        built = {**other.built, "optimizer": other.built["optimizer"]["param_groups"]}
        fresh = {**self.built, "optimizer": self.built["optimizer"]["param_groups"]}
        loaded = inherited(now, built, fresh)
        moments = other.state()["optimizer"]["state"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": loaded["optimizer"]})
        self.schedule.load_state_dict(loaded["schedule"])


@pytest.mark.parametrize("name", SCHEDULES)
def test_child_continues_the_schedule_at_its_own_rate(name: str) -> None:
    parent, child = Training(0.1, SCHEDULES[name]), Training(0.03, SCHEDULES[name])
    parent.rates(12)
    child.resume_from(parent)
    expected = Training(0.03, SCHEDULES[name]).rates(30)[12:]
    assert child.rates(18) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_trial_that_resume_from_its_own_checkpoint_changes_nothing(name: str) -> None:
    before, again = Training(0.1, SCHEDULES[name]), Training(0.1, SCHEDULES[name])
    before.rates(12)
    again.resume_from(before)
    assert again.rates(18) == before.rates(18)


def test_child_has_its_parents_moments_and_its_own_settings() -> None:
    parent = Training(0.1, SCHEDULES["cosine"], weight_decay=0.5, betas=(0.9, 0.9))
    child = Training(0.1, SCHEDULES["cosine"], weight_decay=0.0, betas=(0.5, 0.9))
    parent.rates(3)
    child.resume_from(parent)
    group = child.optimizer.param_groups[0]
    assert (group["weight_decay"], group["betas"]) == (0.0, (0.5, 0.9))
    for mine, theirs in zip(child.layer.parameters(), parent.layer.parameters(), strict=True):
        assert torch.equal(child.optimizer.state[mine]["exp_avg"], parent.optimizer.state[theirs]["exp_avg"])


def test_inherited_keeps_counters_in_parameter_groups() -> None:
    now, built, fresh = (
        {"k": 7, "d": 0.5, "lr": 1.0},
        {"k": 0, "d": 0.1, "lr": 1.0},
        {"k": 0, "d": 0.1, "lr": 2.0},
    )
    assert inherited(now, built, fresh) == {"k": 7, "d": 0.5, "lr": 2.0}


def test_inherited_compares_rates_that_are_tensors() -> None:
    now, built, fresh = torch.tensor(0.1), torch.tensor(0.1), torch.tensor(0.2)
    assert inherited(now, built, fresh) is fresh
    assert inherited(now, built, built.clone()) is now


def test_inherited_keeps_a_state_whose_settings_are_unknown() -> None:
    assert inherited({"lr": 0.1, "betas": [1, 2]}, None, {"lr": 0.2}) == {"lr": 0.1, "betas": [1, 2]}
    assert inherited({"lr": 0.1, "lrs": [1]}, {"lrs": [1, 2]}, {"lr": 0.2, "lrs": [3]}) == {
        "lr": 0.1,
        "lrs": [1],
    }
