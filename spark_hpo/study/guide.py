"""Lets the sampler choose which trial the scheduler promotes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from spark_hpo.search.sampler import Sampler


class Guide:
    """Chooses the trial with the lowest `Sampler.expected`. In a replay, it chooses what was chosen.

    A replay thus costs no predictions, and another version of numpy, whose predictions may differ in the last
    digit, decides as before. A copy, with which a forecast plays, always chooses the first.
    """

    def __init__(self, sampler: Sampler | None) -> None:
        self._sampler = sampler
        self._recorded: int | None = None

    def __call__(self, trial_ids: Sequence[int]) -> int:
        if self._recorded is not None:
            return self._recorded if self._recorded in trial_ids else trial_ids[0]
        expect = getattr(self._sampler, "expected", None)  # a plugin may have none
        expected = None if expect is None else expect(trial_ids)
        return trial_ids[0] if expected is None else trial_ids[int(np.argmin(expected))]

    @contextmanager
    def replaying(self, trial_id: int | None) -> Iterator[None]:
        """Choose this trial, if it is among the choices, instead of asking the sampler. None: ask it."""
        self._recorded = trial_id
        try:
            yield
        finally:
            self._recorded = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Guide:
        return Guide(None)
