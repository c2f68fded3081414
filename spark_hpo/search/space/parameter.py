"""The nodes of a search space: parameters, and what holds them together.

    Node      = Parameter | Constant | Group | Sequence
    Parameter = Uniform | Normal | Choice

A number is drawn as a *latent* value, evenly between two bounds or from a normal distribution, and then
mapped to what the user sees: `log` takes the exponential, `q` the nearest multiple, `integer` makes it an
int. All kinds of the field are these two with some of the flags:

    uniform  loguniform  quniform  qloguniform  int  logint   Uniform
    normal   lognormal   qnormal   qlognormal                 Normal

So a model of the losses has to know two distributions, not ten.
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

_MAX_EXPONENT = 700.0  # exp(710) is beyond a float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Number(ABC):
    """What both distributions share: the way from a latent value to the user's and back."""

    log: bool = False  # the latent value is the logarithm
    q: float | None = None  # values are multiples of q; None: any number
    integer: bool = False  # values are int; q must be whole
    default: float | int | None = None  # a first guess, which models start from; None: no guess

    @abstractmethod
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest value, natural units, both included."""

    def value(self, latent: float) -> float | int:
        """The value at a latent position: within the bounds, a multiple of q, a plain int or float."""
        natural = math.exp(min(latent, _MAX_EXPONENT)) if self.log else float(latent)
        low, high = self.bounds()
        if self.q is None:
            return min(max(natural, low), high)
        first, last = self._multiples(self.q)
        return self._multiple(self.q, int(min(max(round(natural / self.q), first), last)))

    def latent(self, value: float | int) -> float:
        """The latent position of a value."""
        if not self.log:
            return float(value)
        # A multiple of q may be 0; the middle of its cell stands for it.
        return math.log(value if value > 0 else (self.q or 1e-12) / 4)

    def accepts(self, value: object) -> bool:
        """Whether a value could have been drawn from here. An int is a float too; a bool is neither."""
        if isinstance(value, bool) or not isinstance(value, int if self.integer else (int, float)):
            return False
        low, high = self.bounds()
        if not (math.isfinite(value) and low <= value <= high):
            return False
        return self.q is None or math.isclose(
            value, self._multiple(self.q, round(value / self.q)), rel_tol=1e-9, abs_tol=1e-9 * self.q
        )

    def rule(self) -> str:
        """What `accepts` asks for, in words."""
        low, high = self.bounds()
        noun = "an integer" if self.integer else "a number"
        step = f", a multiple of {self.q:.12g}" if self.q is not None and self.q != 1 else ""
        span = f" from {low:.12g} to {high:.12g}" if math.isfinite(high) else " above 0" if self.log else ""
        return f"{noun}{span}{step}"

    def plain(self, value: float | int) -> float | int:
        """An accepted value in its own type."""
        return int(value) if self.integer else float(value)

    def _multiple(self, q: float, k: int) -> float | int:
        # 3 x 0.1 is 0.3 here, as it is written, and not 0.30000000000000004.
        exact = Fraction(repr(float(q))) * k
        return int(exact) if self.integer else float(exact)

    def _multiples(self, q: float) -> tuple[float, float]:
        """The first and the last multiple of q within the bounds, counted in q."""
        low, high = self.bounds()
        step = Fraction(repr(float(q)))
        first = math.ceil(Fraction(repr(low)) / step) if math.isfinite(low) else low
        last = math.floor(Fraction(repr(high)) / step) if math.isfinite(high) else high
        return first, last

    def _broken_rule(self) -> tuple[str, str] | None:
        if self.q is not None and not (math.isfinite(self.q) and self.q > 0):
            return "q", "it must be above 0"
        if self.integer and (self.q is None or self.q != int(self.q)):
            return "integer", "it needs a q that is a whole number"
        if self.default is not None and not self.accepts(self.default):
            return "default", f"it must be {self.rule()}"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Uniform(_Number):
    """Evenly spread between two bounds, both included; with `log`, evenly on a logarithmic scale.

    With `q`, every multiple of q within the bounds is equally likely (with `log`: in proportion to its
    cell). The bounds are in natural units, also with `log`: `low: 1e-4`, not `low: -9.21`.
    """

    low: float
    high: float

    def bounds(self) -> tuple[float, float]:
        return float(self.low), float(self.high)

    def latent_bounds(self) -> tuple[float, float]:
        """Between which the latent value is evenly spread. Each multiple of q has a cell of its own."""
        low, high = self.bounds()
        if self.q is not None:
            first, last = self._multiples(self.q)
            low, high = (first - 0.5) * self.q, (last + 0.5) * self.q
        return (math.log(low), math.log(high)) if self.log else (low, high)

    def sample(self, rng: np.random.Generator) -> float | int:
        return self.value(float(rng.uniform(*self.latent_bounds())))

    def grid(self, resolution: int) -> list[float | int]:
        """At most `resolution` values, ascending, both ends included; all of them where they are fewer."""
        if self.q is not None:
            first, last = (int(k) for k in self._multiples(self.q))
            if last - first < resolution:
                return [self._multiple(self.q, k) for k in range(first, last + 1)]
        low, high = self.bounds()
        if self.log:
            low, high = math.log(low), math.log(high)
        positions = [(low + high) / 2] if resolution == 1 else np.linspace(low, high, resolution).tolist()
        # Twelve digits: 0.0001, not 0.00010000000000000009 by way of the logarithm.
        values = [self.value(x) for x in positions]
        return _distinct(
            v if self.integer else min(max(float(f"{v:.12g}"), self.low), self.high) for v in values
        )

    def broken_rule(self) -> tuple[str, str] | None:
        """The field that makes no sense, and the rule that it breaks; None where all is well."""
        for name in ("low", "high"):
            if not math.isfinite(getattr(self, name)):
                return name, "it must be a finite number"
        if self.log and self.low <= 0:
            return "low", "it must be above 0, for its logarithm is taken"
        if self.low >= self.high:
            return "low", f"it must be below high, which is {self.high:.12g}; a single value is a constant"
        if broken := self._broken_rule():
            return broken
        if self.q is not None:
            first, last = self._multiples(self.q)
            if first >= last:
                return "q", f"fewer than two multiples of it lie from {self.low:.12g} to {self.high:.12g}"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Normal(_Number):
    """Normally distributed: `mu` is the mean, `sigma` the standard deviation.

    With `log` (lognormal) they are those of the natural logarithm of the value: half of all values lie
    below exp(mu), and two thirds between exp(mu - sigma) and exp(mu + sigma).
    """

    mu: float
    sigma: float

    def bounds(self) -> tuple[float, float]:
        return (0.0 if self.log else -math.inf), math.inf

    def accepts(self, value: object) -> bool:
        # The logarithm reaches 0 only by rounding to a multiple.
        return _Number.accepts(self, value) and not (self.log and self.q is None and value == 0)

    def sample(self, rng: np.random.Generator) -> float | int:
        return self.value(float(rng.normal(self.mu, self.sigma)))

    def grid(self, resolution: int) -> list[float | int]:
        """At most `resolution` values, ascending, at evenly spaced quantiles: 5 % to 95 % for ten."""
        normal = NormalDist(self.mu, self.sigma)
        return _distinct(self.value(normal.inv_cdf((i + 0.5) / resolution)) for i in range(resolution))

    def broken_rule(self) -> tuple[str, str] | None:
        """The field that makes no sense, and the rule that it breaks; None where all is well."""
        if not math.isfinite(self.mu):
            return "mu", "it must be a finite number"
        if not (math.isfinite(self.sigma) and self.sigma > 0):
            return "sigma", "it must be a finite number above 0"
        return self._broken_rule()


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One of several options. What lies inside an option is active only when that option is chosen."""

    options: tuple[Node, ...]
    weights: tuple[float, ...] | None = None  # probabilities, summing to 1; None: all alike
    default: int | None = None  # number of an option: a first guess, which models start from

    def sample(self, rng: np.random.Generator) -> int:
        """The number of the chosen option."""
        return int(rng.choice(len(self.options), p=self.weights))

    def broken_rule(self) -> tuple[str, str] | None:
        """The field that makes no sense, and the rule that it breaks; None where all is well."""
        if not self.options:
            return "options", "it must have at least one option"
        if self.weights is not None:
            if len(self.weights) != len(self.options):
                return "weights", f"it must have one number for each of the {len(self.options)} options"
            if not (all(w >= 0 for w in self.weights) and math.isclose(sum(self.weights), 1.0)):
                return "weights", "they must be at least 0 and sum to 1"
        return None


@dataclass(frozen=True, slots=True)
class Constant:
    """A JSON value that is never tuned."""

    value: Any


@dataclass(frozen=True, slots=True)
class Group:
    """Named nodes, in the order in which they were written."""

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
