"""The protocol by which people change a search that runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

from spark_hpo.trial import Params

Ranges: TypeAlias = Mapping[str, list[Any]]
"""By dotted name: `[low, high]` of a number, or the options of a choice."""


class Steerable(Protocol):
    """A sampler that takes configurations and ranges from people. Pure, like every sampler.

    A trace: completed({"lr": 0.01}, like={"lr": 0.1, "units": 8}) -> {"lr": 0.01, "units": 8}; add(_);
        check_ranges({"lr": [1e-4, 1e-2]}); change_ranges({"lr": [1e-4, 1e-2]})
    """

    @property
    def size(self) -> int | None:
        """Number of trials after which there is nothing left to propose; None: no limit."""
        ...

    @property
    def num_added(self) -> int:
        """Number of added configurations that no trial has so far."""
        ...

    def completed(self, params: Mapping[str, Any], *, like: Params | None) -> Params:
        """Return a valid configuration. Values that are missing come from `like`.

        Args:
            params: values by name; the names of nested ones may be dotted.
            like: another configuration; None: all values are in `params`.

        Raises:
            ConfigError: the configuration does not fit the space, or the space is not known.
        """
        ...

    def add(self, params: Params) -> None:
        """Let one of the next trials have this configuration, which `completed` has returned."""
        ...

    def check_ranges(self, ranges: Ranges) -> int | None:
        """Check whether new trials may have other ranges.

        Returns:
            The `size` that the sampler would have.

        Raises:
            ConfigError: the ranges are wrong, or they cannot change.
        """
        ...

    def change_ranges(self, ranges: Ranges) -> None:
        """Replace the ranges with which the study began, for new trials. All that was learned stays."""
        ...


class SteerableExplorer(Protocol):
    """An explorer that takes ranges from people. Pure, like every explorer."""

    def check_ranges(self, ranges: Ranges) -> None:
        """Check whether children may have other ranges.

        Raises:
            ConfigError: a child keeps the value of its parent, which may lie outside of the range.
        """
        ...

    def change_ranges(self, ranges: Ranges) -> None:
        """Replace the ranges with which the study began, for children."""
        ...
