"""A sampler that people steer: they add configurations, and change the ranges of the space."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from spark_hpo.errors import SpaceError
from spark_hpo.search.sampler import Sampler
from spark_hpo.search.samplers.wrappers import EnqueuedSampler, WrappedSampler
from spark_hpo.search.space import Space
from spark_hpo.search.space.ranges import nearest
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

    make: Callable[[Space], Sampler] | None = None  # None: the sampler cannot be made for another space

    def __post_init__(self) -> None:
        super().__post_init__()
        self.added: deque[Params] = deque()
        self._space: Space | None = None  # None: as the study began with it
        self._calls: list[Callable[[], None]] = []
        self._untold: set[int] = set()  # trials

    @property
    def _num_enqueued(self) -> int:
        return len(self.sampler.enqueued) if isinstance(self.sampler, EnqueuedSampler) else 0

    def add(self, params: Params) -> None:
        """Let one of the next trials have this configuration, which must fit the space."""
        self.added.append(params)

    def change_space(self, space: Space) -> None:
        """Propose from another space from now on."""
        assert self.make is not None, "the caller has checked that the space can change"
        sampler = self.make(space)
        if isinstance(self.sampler, EnqueuedSampler):
            sampler = EnqueuedSampler(sampler, self.sampler.enqueued)
        self.sampler, self._space = sampler, space
        self._untold.clear()
        for call in self._calls:
            call()

    def ask(self, trial_id: int) -> Params:
        if self.added and trial_id >= self._num_enqueued:
            return self.added[0]
        return self.sampler.ask(trial_id)

    def start(self, trial_id: int, params: Params) -> None:
        if self.added and params == self.added[0]:
            self.added.popleft()
        self._call(lambda: self._start(trial_id, params))

    def tell(self, trial_id: int, **result: Any) -> None:
        self._call(lambda: self._tell(trial_id, result))

    def resolve_params(self, trial_id: int, params: Params, notes: Mapping[str, Any]) -> None:
        self.sampler.resolve_params(trial_id, params, notes)

    def _call(self, call: Callable[[], None]) -> None:
        if self.make is not None:
            self._calls.append(call)
        call()

    def _start(self, trial_id: int, params: Params) -> None:
        if self._space is not None and not self.accepts_foreign:
            try:
                params = nearest(self._space, params)
            except SpaceError:
                self._untold.add(trial_id)
                return
        self.sampler.start(trial_id, params)

    def _tell(self, trial_id: int, result: Mapping[str, Any]) -> None:
        if trial_id not in self._untold:
            self.sampler.tell(trial_id, **result)
