"""Applies a trial's own settings to the optimizer and schedule state of another trial's checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def inherited(now: Any, built: Any, fresh: Any) -> Any:
    """Return the state of an optimizer or schedule as if it had been built with other settings.

    In population based training a child resumes from its parent's checkpoint with its own parameters. A value
    that both trials built alike keeps its state; so nothing changes when a trial resumes from its own
    checkpoint. A value that they built differently becomes the child's: as built, or, if training has changed
    it since, scaled by the ratio of the two.

    A trace: a cosine schedule half way down, built by the parent with the rate 0.1, by the child with 0.2:
        inherited({"lr": 0.05, "initial_lr": 0.1, "betas": (0.9, 0.99)},
                  {"lr": 0.1, "initial_lr": 0.1, "betas": (0.9, 0.99)},
                  {"lr": 0.2, "initial_lr": 0.2, "betas": (0.9, 0.99)})
            -> {"lr": 0.1, "initial_lr": 0.2, "betas": (0.9, 0.99)}

    Args:
        now: the state in the checkpoint: plain values and tensors, in mappings and lists.
        built: the same state before the checkpoint's trial was trained.
        fresh: the same state before this trial is trained.
    """
    if isinstance(now, Mapping):
        known = isinstance(built, Mapping) and isinstance(fresh, Mapping)
        return {
            key: inherited(value, built[key], fresh[key])
            if known and key in built and key in fresh
            else value
            for key, value in now.items()
        }
    if isinstance(now, list | tuple):
        if not (_is_like(built, now) and _is_like(fresh, now)):
            return now
        return type(now)(inherited(*one) for one in zip(now, built, fresh, strict=True))
    if _is_same(built, fresh):
        return now
    if _is_same(now, built):
        return fresh
    # Built differently and changed by training since, such as the rate of a schedule.
    return now * fresh / built if _is_number(now, built, fresh) and built != 0 else now


def _is_like(other: Any, now: list[Any] | tuple[Any, ...]) -> bool:
    return isinstance(other, type(now)) and len(other) == len(now)


def _is_same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and torch.equal(a.cpu(), b.cpu())
    return bool(a == b)


def _is_number(*values: Any) -> bool:
    return all(isinstance(value, float) for value in values)
