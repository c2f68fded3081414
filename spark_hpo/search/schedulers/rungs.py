"""Arithmetic of successive halving: resource levels and rung sizes.

All in integers: with floating-point logarithms log(243) / log(3) is 4.999..., which loses a bracket.

Hyperband (Li et al. 2018, arXiv:1603.06560), Algorithm 1: R is max_resource, eta is reduction_factor, s is
the number of rungs above the lowest, n is the size of the lowest rung, n_i and r_i are size and resource
of rung i, B = (s_max + 1) R is the budget of a bracket.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from spark_hpo.search.settings import require_integer


class Rounding(StrEnum):
    """How the size of a Hyperband bracket is rounded."""

    FLOOR = "floor"  # floor((s_max+1)/(s+1)) eta^s: Table 1 of the paper, 81, 27, 9, 6, 5 for R = 81
    CEILING = "ceiling"  # ceil((s_max+1) eta^s/(s+1)): its Algorithm 1, 81, 34, 15, 8, 5


@dataclass(frozen=True, slots=True)
class Rung:
    """A rung of a bracket: `size` trials are trained up to `resource`."""

    size: int
    resource: int  # epochs completed


def resource_levels(min_resource: int, max_resource: int, reduction_factor: int) -> tuple[int, ...]:
    """Return the resources at which trials are compared, ascending up to `max_resource`.

    Level k from the top is max_resource // reduction_factor^k, as long as it is at least
    `min_resource`: resource_levels(1, 100, 3) -> (1, 3, 11, 33, 100). The lowest level may be above
    `min_resource`: resource_levels(2, 27, 3) -> (3, 9, 27).
    """
    levels = [max_resource]
    # floor(floor(R / a) / b) = floor(R / ab), so repeated division is exact.
    while (lower := levels[-1] // reduction_factor) >= min_resource:
        levels.append(lower)
    return tuple(reversed(levels))


def next_size(size: int, reduction_factor: int) -> int:
    """Return how many trials a rung promotes: floor(size / reduction_factor), at least one."""
    return max(1, size // reduction_factor)


def bracket_rungs(num_trials: int, levels: tuple[int, ...], reduction_factor: int) -> tuple[Rung, ...]:
    """Return the rungs of a bracket: bracket_rungs(9, (1, 3, 9), 3) -> 9 to 1, 3 to 3, 1 to 9."""
    rungs = [Rung(num_trials, levels[0])]
    for resource in levels[1:]:
        rungs.append(Rung(next_size(rungs[-1].size, reduction_factor), resource))
    return tuple(rungs)


def hyperband_rungs(
    min_resource: int, max_resource: int, reduction_factor: int, rounding: Rounding = Rounding.FLOOR
) -> tuple[tuple[Rung, ...], ...]:
    """Return the brackets of one round of Hyperband, the one with the lowest rung first."""
    levels = resource_levels(min_resource, max_resource, reduction_factor)
    brackets = []
    for s in reversed(range(len(levels))):
        if rounding is Rounding.FLOOR:
            num_trials = len(levels) // (s + 1) * reduction_factor**s
        else:
            num_trials = -(-len(levels) * reduction_factor**s // (s + 1))
        brackets.append(bracket_rungs(num_trials, levels[-(s + 1) :], reduction_factor))
    return tuple(brackets)


def interval_levels(interval: int | None, min_resource: int, max_resource: int) -> tuple[int, ...]:
    """Return evenly spaced resources, ascending: interval_levels(4, 1, 10) -> (4, 8, 10).

    The first one is at least `min_resource`. The default interval is a tenth of `max_resource`.
    """
    step = max(1, max_resource // 10) if interval is None else interval
    require_integer("interval", step, 1)
    levels = [r for r in range(step, max_resource, step) if r >= min_resource]
    return (*levels, max_resource)
