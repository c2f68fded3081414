"""The contract of samplers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from spark_hpo.search.sampler import Sampler
from spark_hpo.search.space import Space
from spark_hpo.trial import Params

SPACE = Space.from_config(
    {
        "lr": {"type": "loguniform", "low": 1e-4, "high": 1e-1},
        "layers": {"type": "int", "low": 1, "high": 3},
        "dropout": {"type": "quniform", "low": 0, "high": 0.5, "q": 0.1},
        "noise": {"type": "lognormal", "mu": 0, "sigma": 1},
        "batch": {"type": "choice", "options": [32, 64], "weights": [0.25, 0.75]},
        "epochs": 3,
        "optimizer": {
            "type": "choice",
            "options": [
                "adam",
                None,
                {
                    "name": "sgd",
                    "momentum": {"type": "uniform", "low": 0, "high": 0.99},
                    "decay": {
                        "type": "choice",
                        "options": [0, {"rate": {"type": "normal", "mu": 0, "sigma": 1}}],
                    },
                },
            ],
        },
    }
)
"""Has every kind of parameter, a constant and conditional parameters."""

Event = tuple[str, int, Any]
"""("start", trial, params) or ("tell", trial, (resource, loss, further losses))."""


class SamplerContract:
    """Tests that every sampler passes. A subclass implements `build`.

    A sampler for several objectives is tested with as many losses as `num_objectives` says.
    """

    num_objectives = 1

    def build(self, space: Space, seed: int) -> Sampler:
        """Return a new sampler. Called several times per test."""
        raise NotImplementedError

    def losses(self, params: Params, trial_id: int) -> tuple[float, ...]:
        """Losses of a trial, one for each objective; the second decreases where the first increases."""
        first = math.inf if trial_id % 7 == 3 else abs(math.log(params["lr"] / 0.003)) + params["layers"]
        second = math.inf if trial_id % 11 == 5 else -params["layers"] - math.log(params["lr"])
        return (first, *[second] * (self.num_objectives - 1))

    def run(self, num_trials: int = 30, seed: int = 1) -> tuple[Sampler, list[Event]]:
        """Run some trials, two in flight at a time and some promoted. Returns sampler and events."""
        sampler, events = self.build(SPACE, seed), list[Event]()
        proposals: dict[int, Params] = {}
        for trial_id in range(num_trials):
            params = proposals[trial_id] = sampler.ask(trial_id)
            sampler.start(trial_id, params)
            events.append(("start", trial_id, params))
            reported = trial_id - 2
            if reported >= 0:
                for resource in (1, 3) if reported % 3 == 0 else (1,):
                    loss, *others = self.losses(proposals[reported], reported)
                    sampler.tell(reported, resource=resource, loss=loss, others=tuple(others))
                    events.append(("tell", reported, (resource, loss, others)))
        return sampler, events

    def play(self, sampler: Sampler, trial_id: int, params: Params, *losses: float) -> None:
        """Start a trial and report these losses, or its own."""
        sampler.start(trial_id, params)
        loss, *others = losses or self.losses(params, trial_id)
        sampler.tell(trial_id, resource=1, loss=loss, others=tuple(others))

    def test_ask_returns_plain_json_that_fits_the_space(self) -> None:
        _, events = self.run()
        for params in [what for event, _, what in events if event == "start"]:
            assert SPACE.validate(params) == params
            assert is_plain_json(params)
            assert json.loads(json.dumps(params)) == params

    def test_ask_is_repeatable(self) -> None:
        sampler, _ = self.run()
        assert sampler.ask(30) == sampler.ask(30)

    def test_ask_changes_nothing(self) -> None:
        sampler, _ = self.run()
        before = sampler.ask(31)
        for trial_id in range(30, 40):
            sampler.ask(trial_id)
        assert sampler.ask(31) == before

    def test_same_seed_gives_the_same_proposals(self) -> None:
        assert self.run()[1] == self.run()[1]

    def test_replay_without_ask_gives_the_same_next_proposal(self) -> None:
        sampler, events = self.run()
        resumed = self.build(SPACE, 1)
        for event, trial_id, what in json.loads(json.dumps(events)):
            if event == "start":
                resumed.start(trial_id, what)
            else:
                resource, loss, others = what
                resumed.tell(trial_id, resource=resource, loss=loss, others=tuple(others))
        assert resumed.ask(30) == sampler.ask(30)

    def test_study_in_which_every_trial_fails(self) -> None:
        sampler = self.build(SPACE, 1)
        for trial_id in range(30):
            params = sampler.ask(trial_id)
            SPACE.validate(params)
            further = (math.inf,) * (self.num_objectives - 1)
            self.play(sampler, trial_id, params, math.nan if trial_id % 2 else math.inf, *further)
        SPACE.validate(sampler.ask(30))

    def test_proposals_differ_while_no_trial_reports(self) -> None:
        sampler = self.build(SPACE, 1)
        proposals = []
        for trial_id in range(20):
            proposals.append(sampler.ask(trial_id))
            sampler.start(trial_id, proposals[-1])
        assert len({json.dumps(params) for params in proposals}) == 20

    def test_start_accepts_parameters_that_were_not_proposed(self) -> None:
        sampler = self.build(SPACE, 1)
        rng = np.random.default_rng(5)
        for trial_id in range(30):
            self.play(sampler, trial_id, SPACE.sample(rng))
        SPACE.validate(sampler.ask(30))

    def test_tell_accepts_losses_of_further_objectives(self) -> None:
        sampler = self.build(SPACE, 1)
        for trial_id in range(30):
            params = sampler.ask(trial_id)
            first, further = self.losses(params, trial_id)[0], (-math.log(params["lr"]), 1.0)
            self.play(sampler, trial_id, params, first, *further)
        SPACE.validate(sampler.ask(30))

    def test_constraints_hold_if_it_handles_them(self) -> None:
        space = SPACE.constrained(["layers < 3 or lr < 0.01", "batch == 64"])
        sampler = self.build(space, 1)
        if not getattr(sampler, "handles_constraints", Sampler.handles_constraints):
            return  # the study repairs its proposals
        for trial_id in range(30):
            params = sampler.ask(trial_id)
            assert space.allows(params)
            self.play(sampler, trial_id, params)

    def test_global_random_generator_is_not_used(self) -> None:
        np.random.seed(0)
        before = np.random.get_state()[1].tolist()  # type: ignore[index]
        self.run(20)
        assert np.random.get_state()[1].tolist() == before  # type: ignore[index]

    @pytest.mark.parametrize(
        "config",
        [
            {"a": 1},
            {"a": {"type": "choice", "options": ["only"]}},
            {"a": {"type": "choice", "options": [{"type": "choice", "options": [1, 2]}, {"b": {"c": [1]}}]}},
        ],
    )
    def test_space_without_numbers(self, config: dict[str, Any]) -> None:
        space = Space.from_config(config)
        sampler = self.build(space, 1)
        for trial_id in range(1 if space.grid_size(1) == 1 else 2):
            self.play(sampler, trial_id, space.validate(sampler.ask(trial_id)), 1.0, 1.0)


def is_plain_json(value: Any) -> bool:
    """Return whether a value has only the types that `json.loads` returns, no subclasses of them."""
    if isinstance(value, Mapping):
        return type(value) is dict and all(type(k) is str and is_plain_json(v) for k, v in value.items())
    if type(value) is list:
        return all(map(is_plain_json, value))
    return value is None or type(value) in (bool, int, float, str)
