"""The resource that a bracket of successive halving spends."""

from __future__ import annotations

from spark_hpo.search.schedulers.rungs import Rung


def planned_resource(rungs: tuple[Rung, ...]) -> int:
    """Return the resource that a bracket spends if no trial fails; trials continue from checkpoints."""
    below = (0, *(rung.resource for rung in rungs))
    return sum(rung.size * (rung.resource - start) for rung, start in zip(rungs, below, strict=False))
