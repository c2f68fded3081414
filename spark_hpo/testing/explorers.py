"""The contract of explorers."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np
import pytest

from spark_hpo.search.explorer import Explorer
from spark_hpo.search.scheduler import Slot
from spark_hpo.search.space import Space
from spark_hpo.testing.samplers import SPACE, is_plain_json
from spark_hpo.trial import Params

STEP = 3  # epochs of a slot
NUM_MEMBERS = 10


def slot_of(trial_id: int, step: int, *, parent: int | None = None) -> Slot:
    """Return the slot in which a trial trains from epoch `STEP * step`."""
    start = STEP * step
    return Slot(
        trial_id=trial_id,
        bracket=0,
        rung=step,
        resource_from=start,
        resource_to=start + STEP,
        parent=parent,
    )


class ExplorerContract:
    """Tests that every explorer passes. A subclass implements `build`."""

    def build(self, space: Space, seed: int) -> Explorer:
        """Return a new explorer. Called several times per test."""
        raise NotImplementedError

    def population(
        self, space: Space = SPACE, seed: int = 1, *, failed: Sequence[int] = (9,)
    ) -> tuple[Explorer, list[Params]]:
        """Train ten members for three slots each, and start two more trials, which stay in flight.

        Args:
            failed: members whose last slot fails.

        Returns:
            The explorer and the parameters of the ten members.
        """
        explorer = self.build(space, seed)
        rng = np.random.default_rng(seed)
        members = [space.sample(rng) for _ in range(NUM_MEMBERS + 2)]
        for step in range(3):
            for trial_id, params in enumerate(members[:NUM_MEMBERS]):
                slot = slot_of(trial_id, step)
                explorer.start(slot, params)
                loss = 1 / (step + 1) + trial_id / NUM_MEMBERS
                explorer.tell(slot, math.inf if step == 2 and trial_id in failed else loss)
        for trial_id in (NUM_MEMBERS, NUM_MEMBERS + 1):
            explorer.start(slot_of(trial_id, 3, parent=0), members[trial_id])
        return explorer, members[:NUM_MEMBERS]

    def children(self, explorer: Explorer, members: Sequence[Params]) -> list[Params]:
        """Return a child of each member."""
        births = [slot_of(20 + i, 3, parent=i) for i in range(len(members))]
        return [explorer.explore(slot, parent) for slot, parent in zip(births, members, strict=True)]

    def test_explore_returns_plain_json_that_fits_the_space(self) -> None:
        for child in self.children(*self.population()):
            assert SPACE.validate(child) == child
            assert is_plain_json(child)

    def test_explore_is_repeatable_and_changes_nothing(self) -> None:
        explorer, members = self.population()
        first = self.children(explorer, members)
        self.children(explorer, members[::-1])
        assert self.children(explorer, members) == first

    def test_replay_without_explore_gives_the_same_children(self) -> None:
        explorer, members = self.population()
        child = explorer.explore(slot_of(20, 3, parent=3), members[3])
        explorer.start(slot_of(20, 3, parent=3), child)
        resumed, _ = self.population()
        resumed.start(slot_of(20, 3, parent=3), json.loads(json.dumps(child)))
        birth = slot_of(21, 3, parent=3)
        assert resumed.explore(birth, members[3]) == explorer.explore(birth, members[3])

    def test_children_of_two_trials_differ(self) -> None:
        explorer, members = self.population()
        children = [explorer.explore(slot_of(20 + i, 3, parent=3), members[3]) for i in range(8)]
        assert len({json.dumps(child) for child in children}) > 1

    def test_children_satisfy_the_constraints(self) -> None:
        unit = {"type": "uniform", "low": 0, "high": 1}
        space = Space.from_config({"x": unit, "y": unit}, constraints=["x < y", "x < 0.3"])
        explorer = self.build(space, 1)
        rng = np.random.default_rng(0)
        for trial_id in range(30):  # the loss decreases fastest where the constraints are violated
            params = space.sample(rng)
            for step, loss in enumerate((1.0, 1.0 - params["x"] + params["y"])):
                explorer.start(slot_of(trial_id, step), params)
                explorer.tell(slot_of(trial_id, step), loss)
        for trial_id in range(30, 60):
            assert space.allows(explorer.explore(slot_of(trial_id, 3, parent=0), {"x": 0.25, "y": 0.28}))

    @pytest.mark.parametrize("loss", [math.inf, math.nan])
    def test_population_in_which_every_member_fails(self, loss: float) -> None:
        explorer, members = self.population(failed=range(NUM_MEMBERS))
        for trial_id, params in enumerate(members):
            explorer.start(slot_of(trial_id, 3), params)
            explorer.tell(slot_of(trial_id, 3), loss)
        for child in self.children(explorer, members):
            SPACE.validate(child)

    def test_tell_accepts_violations_if_it_handles_limits(self) -> None:
        explorer, members = self.population()
        if not getattr(explorer, "handles_limits", Explorer.handles_limits):
            return  # the study reports a trial that violates a limit as failed
        for trial_id, params in enumerate(members):
            explorer.start(slot_of(trial_id, 3), params)
            explorer.tell(slot_of(trial_id, 3), 0.1, violation=trial_id / 2)
        for child in self.children(explorer, members):
            SPACE.validate(child)

    def test_global_random_generator_is_not_used(self) -> None:
        np.random.seed(0)
        before = np.random.get_state()[1].tolist()  # type: ignore[index]
        self.children(*self.population())
        assert np.random.get_state()[1].tolist() == before  # type: ignore[index]

    def test_space_without_numbers(self) -> None:
        space = Space.from_config({"a": {"type": "choice", "options": [1, 2, 3]}, "b": 1})
        for child in self.children(*self.population(space)):
            space.validate(child)
