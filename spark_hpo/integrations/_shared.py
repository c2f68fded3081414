"""Messages about extras and settings, and values of all ranks, for all integrations."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist

from spark_hpo.errors import ConfigError, TrialError, suggestion
from spark_hpo.train.context import TrainContext

logger = logging.getLogger(__name__)


@contextmanager
def needs(*packages: str, extra: str) -> Iterator[None]:
    """Import packages of an extra inside this.

    Raises:
        ConfigError: one of the packages is not installed.
    """
    try:
        yield
    except ImportError as exc:
        if (exc.name or "").partition(".")[0] not in packages:
            raise
        raise ConfigError(
            f"spark_hpo.integrations.{extra} needs the package {exc.name}, which is not installed here: "
            f'pip install "spark_hpo[{extra}]" on the driver and on the executors'
        ) from exc


def check_settings(
    ctx: TrainContext,
    call: str,
    owner: str,
    settings: Iterable[str],
    *,
    known: Iterable[str],
    ours: Mapping[str, Any],
) -> None:
    """Check the names of the user's settings and of the trial's parameters.

    Args:
        call: the function of the integration, for messages.
        owner: the class that takes the settings, for messages.
        known: the valid names.
        ours: the settings that spark_hpo makes.

    Raises:
        TrialError: a setting does not exist, or a parameter is one that spark_hpo sets.
    """
    for name in sorted(set(settings) - set(known)):
        raise TrialError(f"{call}: {owner} has no {name!r}. {suggestion(name, known)}")
    for name in sorted(ctx.params.keys() & ours.keys()):
        raise TrialError(
            f"{call}: the space has a parameter {name!r}, but spark_hpo sets it ({ours[name]!r}): remove it "
            "from the space"
        )


def note_overruled(
    ctx: TrainContext, call: str, note: str, given: Mapping[str, Any], ours: Mapping[str, Any]
) -> None:
    """Log and note the settings of the user that lose against those of spark_hpo."""
    lost = {
        name: f"{getattr(value, 'value', value)} -> {ours[name]}"  # the value of an enum
        for name, value in given.items()
        if name in ours and value != ours[name]
    }
    if lost:
        ctx.note(note, lost)
        if ctx.rank == 0:
            texts = ", ".join(f"{name} ({change})" for name, change in lost.items())
            logger.warning("%s: spark_hpo sets these itself: %s", call, texts)


def gathered(ctx: TrainContext, value: Any) -> list[Any]:
    """Return the values of all ranks, by rank. Every rank must call this."""
    values = [value] * ctx.world_size
    if ctx.world_size > 1:
        dist.all_gather_object(values, value)
    return values
