"""What a trial takes over from another one's checkpoint: what training has made, not what was set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def inherited(now: Any, built: Any, fresh: Any) -> Any:
    """The state of an optimizer or a schedule, as it would be if it had been built with other settings.

    In population based training a child goes on from its parent's checkpoint with parameters of its own.
    There the rates of both stand side by side: the parent's in the state, the child's in what it has
    built. Where both were built alike, which is everywhere when a trial goes on from its own checkpoint,
    the state stays as it is.

    A trace, a cosine schedule half way down; the parent began at 0.1, the child at 0.2:
        inherited({"lr": 0.05, "initial_lr": 0.1, "betas": (0.9, 0.99)},
                  {"lr": 0.1, "initial_lr": 0.1, "betas": (0.9, 0.99)},
                  {"lr": 0.2, "initial_lr": 0.2, "betas": (0.9, 0.99)})
            -> {"lr": 0.1, "initial_lr": 0.2, "betas": (0.9, 0.99)}

    Args:
        now: the state in the checkpoint, plain values and tensors.
        built: the same state as it was when its trial had been built.
        fresh: the same state as this trial has built it.
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
    # Set otherwise, and changed by training since: a schedule's rate, mostly. It keeps its place.
    return now * fresh / built if _is_number(now, built, fresh) and built != 0 else now


def _is_like(other: Any, now: list[Any] | tuple[Any, ...]) -> bool:
    return isinstance(other, type(now)) and len(other) == len(now)


def _is_same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and torch.equal(a.cpu(), b.cpu())
    return bool(a == b)


def _is_number(*values: Any) -> bool:
    return all(isinstance(value, float) for value in values)
