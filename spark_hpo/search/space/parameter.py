"""The nodes of a search space: parameters, constants, groups and sequences.

    Node      = Parameter | Constant | Group | Sequence
    Parameter = Uniform | Normal | Choice

A number is drawn as a *latent* value, uniformly between two bounds or from a normal distribution, and then
mapped to its value: `log` takes the exponential, `q` rounds to a multiple, `integer` makes it an int. The
common kinds of parameters are these two distributions with some of the flags, so models need only two:

    uniform  loguniform  quniform  qloguniform  int  logint   Uniform
    normal   lognormal   qnormal   qlognormal                 Normal
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from statistics import NormalDist
from typing import Any, TypeAlias

import numpy as np

_MAX_EXPONENT = 700.0  # exp(710) overflows


@dataclass(frozen=True, slots=True, kw_only=True)
class _Number(ABC):
    """Base of both distributions: maps latent values to values and back."""

    log: bool = False  # the latent value is the logarithm
    q: float | None = None  # values are multiples of q; None: any number
    integer: bool = False  # values are int; q must be a whole number
    default: float | int | None = None  # initial guess for samplers; None: none

    @abstractmethod
    def bounds(self) -> tuple[float, float]:
        """Return the lowest and the highest value, in natural units and inclusive."""

    def value(self, latent: float) -> float | int:
        """Return the value at a latent position: within the bounds, rounded, an int or a float."""
        natural = math.exp(min(latent, _MAX_EXPONENT)) if self.log else float(latent)
        low, high = self.bounds()
        if self.q is None:
            return min(max(natural, low), high)
        first, last = self._multiples(self.q)
        return self._multiple(self.q, int(min(max(round(natural / self.q), first), last)))

    def latent(self, value: float | int) -> float:
        """Return the latent position of a value."""
        if not self.log:
            return float(value)
        # The multiple 0 has no logarithm, so the middle of its cell is used.
        return math.log(value if value > 0 else (self.q or 1e-12) / 4)

    def accepts(self, value: object) -> bool:
        """Return whether a value is one of the distribution. An int is a valid float; a bool is not."""
        if isinstance(value, bool) or not isinstance(value, int if self.integer else (int, float)):
            return False
        low, high = self.bounds()
        if not (math.isfinite(value) and low <= value <= high):
            return False
        return self.q is None or math.isclose(
            value, self._multiple(self.q, round(value / self.q)), rel_tol=1e-9, abs_tol=1e-9 * self.q
        )

    def rule(self) -> str:
        """Describe the values that `accepts` allows."""
        low, high = self.bounds()
        noun = "an integer" if self.integer else "a number"
        step = f", a multiple of {self.q:.12g}" if self.q is not None and self.q != 1 else ""
        span = f" from {low:.12g} to {high:.12g}" if math.isfinite(high) else " above 0" if self.log else ""
        return f"{noun}{span}{step}"

    def plain(self, value: float | int) -> float | int:
        """Return an accepted value as int or float, as the parameter has it."""
        return int(value) if self.integer else float(value)

    def _multiple(self, q: float, k: int) -> float | int:
        # Exact arithmetic: 3 x 0.1 is 0.3, not 0.30000000000000004.
        exact = Fraction(repr(float(q))) * k
        return int(exact) if self.integer else float(exact)

    def _multiples(self, q: float) -> tuple[float, float]:
        """Return the first and the last multiple of q within the bounds, in units of q."""
        low, high = self.bounds()
        step = Fraction(repr(float(q)))
        first = math.ceil(Fraction(repr(low)) / step) if math.isfinite(low) else low
        last = math.floor(Fraction(repr(high)) / step) if math.isfinite(high) else high
        return first, last

    def _broken_rule(self) -> tuple[str, str] | None:
        if self.q is not None and not (math.isfinite(self.q) and self.q > 0):
            return "q", "must be above 0"
        if self.integer and (self.q is None or self.q != int(self.q)):
            return "integer", "needs a q that is a whole number"
        if self.default is not None and not self.accepts(self.default):
            return "default", f"must be {self.rule()}"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Uniform(_Number):
    """Uniform between two inclusive bounds, or on a logarithmic scale with `log`.

    With `q`, every multiple of q within the bounds is equally likely; with `log`, in proportion to its cell.
    The bounds are always in natural units: `low: 1e-4`, not `low: -9.21`.
    """

    low: float
    high: float

    def bounds(self) -> tuple[float, float]:
        return float(self.low), float(self.high)

    def latent_bounds(self) -> tuple[float, float]:
        """Return the bounds of the latent value. They include a whole cell for each multiple of q."""
        low, high = self.bounds()
        if self.q is not None:
            first, last = self._multiples(self.q)
            low, high = (first - 0.5) * self.q, (last + 0.5) * self.q
        return (math.log(low), math.log(high)) if self.log else (low, high)

    def sample(self, rng: np.random.Generator) -> float | int:
        return self.value(float(rng.uniform(*self.latent_bounds())))

    def grid(self, resolution: int) -> list[float | int]:
        """Return at most `resolution` ascending values, both ends included; all if there are fewer."""
        if self.q is not None:
            first, last = (int(k) for k in self._multiples(self.q))
            if last - first < resolution:
                return [self._multiple(self.q, k) for k in range(first, last + 1)]
        low, high = self.bounds()
        if self.log:
            low, high = math.log(low), math.log(high)
        positions = [(low + high) / 2] if resolution == 1 else np.linspace(low, high, resolution).tolist()
        # Twelve digits undo the rounding of exp(log(x)): 0.0001, not 0.00010000000000000009.
        values = [self.value(x) for x in positions]
        return _distinct(
            v if self.integer else min(max(float(f"{v:.12g}"), self.low), self.high) for v in values
        )

    def broken_rule(self) -> tuple[str, str] | None:
        """Return the first invalid field and its rule; None if all are valid."""
        for name in ("low", "high"):
            if not math.isfinite(getattr(self, name)):
                return name, "must be a finite number"
        if self.log and self.low <= 0:
            return "low", "must be above 0, because its logarithm is taken"
        if self.low >= self.high:
            return "low", f"must be below high, {self.high:.12g}; write a single value as a constant"
        if broken := self._broken_rule():
            return broken
        if self.q is not None:
            first, last = self._multiples(self.q)
            if first >= last:
                return "q", f"must have two multiples or more from {self.low:.12g} to {self.high:.12g}"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Normal(_Number):
    """Normally distributed: `mu` is the mean, `sigma` the standard deviation.

    With `log` (lognormal) these are of the natural logarithm of the value: half of all values are below
    exp(mu), and two thirds between exp(mu - sigma) and exp(mu + sigma).
    """

    mu: float
    sigma: float

    def bounds(self) -> tuple[float, float]:
        return (0.0 if self.log else -math.inf), math.inf

    def accepts(self, value: object) -> bool:
        # A lognormal value is 0 only if it was rounded to that multiple.
        return _Number.accepts(self, value) and not (self.log and self.q is None and value == 0)

    def sample(self, rng: np.random.Generator) -> float | int:
        return self.value(float(rng.normal(self.mu, self.sigma)))

    def grid(self, resolution: int) -> list[float | int]:
        """Return at most `resolution` values at evenly spaced quantiles: 5 % to 95 % for ten."""
        normal = NormalDist(self.mu, self.sigma)
        return _distinct(self.value(normal.inv_cdf((i + 0.5) / resolution)) for i in range(resolution))

    def broken_rule(self) -> tuple[str, str] | None:
        """Return the first invalid field and its rule; None if all are valid."""
        if not math.isfinite(self.mu):
            return "mu", "must be a finite number"
        if not (math.isfinite(self.sigma) and self.sigma > 0):
            return "sigma", "must be a finite number above 0"
        return self._broken_rule()


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One of several options. Parameters inside an option are active only if it is chosen."""

    options: tuple[Node, ...]
    weights: tuple[float, ...] | None = None  # probabilities, summing to 1; None: uniform
    default: int | None = None  # index of an option: initial guess for samplers; None: none

    def sample(self, rng: np.random.Generator) -> int:
        """Draw the index of an option."""
        return int(rng.choice(len(self.options), p=self.weights))

    def broken_rule(self) -> tuple[str, str] | None:
        """Return the first invalid field and its rule; None if all are valid."""
        if not self.options:
            return "options", "must have at least one option"
        if self.weights is not None:
            if len(self.weights) != len(self.options):
                return "weights", f"must have one number for each of the {len(self.options)} options"
            if not (all(w >= 0 for w in self.weights) and math.isclose(sum(self.weights), 1.0)):
                return "weights", "must be >= 0 and sum to 1"
        return None


@dataclass(frozen=True, slots=True)
class Constant:
    """A JSON value that is never tuned."""

    value: Any


@dataclass(frozen=True, slots=True)
class Group:
    """Named nodes, in the order of writing."""

    entries: tuple[tuple[str, Node], ...]


@dataclass(frozen=True, slots=True)
class Sequence:
    """A list of nodes."""

    items: tuple[Node, ...]


Number: TypeAlias = Uniform | Normal
Parameter: TypeAlias = Uniform | Normal | Choice
Node: TypeAlias = Uniform | Normal | Choice | Constant | Group | Sequence


def _distinct(values: Iterable[float | int]) -> list[float | int]:
    return list(dict.fromkeys(values))
