"""A sampler that people steer: they add configurations, and change the ranges of the space."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from spark_hpo.errors import ConfigError, SpaceError
from spark_hpo.search.sampler import Outcome, Sampler
from spark_hpo.search.samplers.wrappers import EnqueuedSampler, WrappedSampler
from spark_hpo.search.space import Space
from spark_hpo.search.space.ranges import nearest, with_ranges
from spark_hpo.search.space.space_config import json_constant
from spark_hpo.search.steerable import Ranges
from spark_hpo.trial import Params


@dataclass(eq=False)
class SteeredSampler(WrappedSampler):
    """Proposes added configurations first, and replaces its sampler when the space changes.

    The new sampler is told all that the old one was told, so it has learned the same. To a sampler that does
    not accept trials outside of its space (`accepts_foreign`), a number outside of its range is told as the
    nearest end of the range, and a trial with an option that was removed is not told while it is.

    The same calls in the same order give the same proposals. `start` takes a configuration out of the queue,
    so a replay, which never calls `ask`, ends with the same queue.

    A trace: add({"lr": 0.01}); ask(4) -> {"lr": 0.01}; start(4, {"lr": 0.01}); ask(5) -> of the sampler
    """

    space: Space  # with which the study begins
    make: Callable[[Space], Sampler]  # makes the sampler for other ranges, without enqueued configurations

    def __post_init__(self) -> None:
        super().__post_init__()
        self._added: deque[Params] = deque()
        self._space = self.space  # of new trials
        self._calls: list[Callable[[], None]] = []
        self._started: dict[int, Params] = {}  # by trial
        self._untold: set[int] = set()  # trials

    @property
    def _num_enqueued(self) -> int:
        return len(self.sampler.enqueued) if isinstance(self.sampler, EnqueuedSampler) else 0

    @property
    def num_added(self) -> int:
        return len(self._added)

    def completed(self, params: Mapping[str, Any], *, like: Params | None) -> Params:
        if self.is_define_by_run:
            raise ConfigError("trials cannot be added, because they choose their parameters while they run")
        return complete(self._space, params, like=like)

    def add(self, params: Params) -> None:
        self._added.append(params)

    def check_ranges(self, ranges: Ranges) -> int | None:
        is_list = self.size is not None and not self.accepts_foreign
        if self.is_define_by_run or is_list:
            reason = (
                "trials choose their parameters while they run"
                if self.is_define_by_run
                else "the sampler tries a fixed list of configurations"
            )
            raise ConfigError(f"the ranges of this study cannot change, because {reason}")
        space = with_ranges(self.space, ranges)
        space.sample(np.random.default_rng(0))  # raises if the constraints allow none
        return None if self.size is None else self._made(space).size

    def change_ranges(self, ranges: Ranges) -> None:
        self._space = with_ranges(self.space, ranges)
        sampler = self.make(self._space)
        if self.size is not None:
            self.size = self._made(self._space).size
        if isinstance(self.sampler, EnqueuedSampler):
            sampler = EnqueuedSampler(sampler, self.sampler.enqueued)
        self.sampler = sampler
        self._untold.clear()
        for call in self._calls:
            call()

    def ask(self, trial_id: int) -> Params:
        if self._added and trial_id >= self._num_enqueued:
            return self._added[0]
        return self.sampler.ask(trial_id)

    def start(self, trial_id: int, params: Params) -> None:
        if self._added and params == self._added[0]:
            self._added.popleft()
        self._started[trial_id] = params
        self._call(lambda: self._start(trial_id, params))

    def note(self, trial_id: int, outcome: Outcome) -> None:
        self._call(lambda: self._note(trial_id, outcome))

    def tell(self, trial_id: int, **result: Any) -> None:
        self._call(lambda: self._tell(trial_id, result))

    def resolve_params(self, trial_id: int, params: Params, notes: Mapping[str, Any]) -> None:
        self.sampler.resolve_params(trial_id, params, notes)

    def _made(self, space: Space) -> Sampler:
        """Return the sampler of another space that knows which configurations were tried."""
        sampler = self.make(space)
        for trial_id, params in self._started.items():
            sampler.start(trial_id, params)
        return sampler

    def _call(self, call: Callable[[], None]) -> None:
        self._calls.append(call)
        call()

    def _start(self, trial_id: int, params: Params) -> None:
        if self._space is not self.space and not self.accepts_foreign:
            try:
                params = nearest(self._space, params)
            except SpaceError:
                self._untold.add(trial_id)
                return
        self.sampler.start(trial_id, params)

    def _note(self, trial_id: int, outcome: Outcome) -> None:
        if trial_id not in self._untold:
            self.sampler.note(trial_id, outcome)

    def _tell(self, trial_id: int, result: Mapping[str, Any]) -> None:
        if trial_id not in self._untold:
            self.sampler.tell(trial_id, **result)


def complete(space: Space, params: Mapping[str, Any], *, like: Params | None) -> Params:
    """Return a configuration of a space. Values that are missing come from `like`.

    Args:
        params: values by name; the names of nested ones may be dotted.

    Raises:
        SpaceError: it does not fit the space, or violates a constraint.
    """
    given = _nested(params)
    found = space.validate(given if like is None else _merged(like, given))
    if broken := space.broken_constraint(found):
        raise SpaceError(f"violates the constraint {broken!r}", value=found)
    return found


def _nested(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return `{"optimizer": {"lr": 0.1}}` for `{"optimizer.lr": 0.1}`."""
    nested: dict[str, Any] = {}
    for name, value in params.items():
        *groups, last = name.split(".")
        inner = nested
        for group in groups:
            found = inner.setdefault(group, {})
            if not isinstance(found, dict):
                found = inner[group] = {}
            inner = found
        inner[last] = json_constant(value)
    return nested


def _merged(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in given.items():
        before = base.get(name)
        both = isinstance(before, Mapping) and isinstance(value, Mapping)
        merged[name] = _merged(before, value) if both else value  # type: ignore[arg-type]
    return merged
