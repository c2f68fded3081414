"""Defaults of a space as a first guess, and how far results confirm them."""

from __future__ import annotations

import numpy as np
import pytest

from spark_hpo.search.samplers.first_guess import FirstGuess
from spark_hpo.search.samplers.multifidelity_gp import MultifidelityGpSampler
from spark_hpo.search.samplers.multivariate_tpe import MultivariateTpeSampler
from spark_hpo.search.space import Space
from spark_hpo.search.space.axis import Axes
from spark_hpo.trial import Params

UNIT = {"type": "uniform", "low": 0, "high": 1}
PLACE = {"a": 0.3, "b": 0.7, "c": 0.5}  # of the lowest loss
FAR = {"a": 0.9, "b": 0.1, "c": 0.05}


def space_with(defaults: Params) -> Space:
    return Space.from_config({name: {**UNIT, "default": at} for name, at in defaults.items()})


def loss_of(params: Params) -> float:
    return float(sum((params[name] - at) ** 2 for name, at in PLACE.items()))


def test_trust_falls_where_the_best_trials_are_elsewhere() -> None:
    axes = Axes(space_with(FAR))
    default = axes.default_row()
    assert default is not None
    guess, rng = FirstGuess(axes, default), np.random.default_rng(0)
    near, far = np.array([guess.draw(rng) for _ in range(8)]), rng.random((8, 3)) * 0.5
    known = np.concatenate([near, far])
    assert guess.trust(near[:3], known) == 1.0
    assert guess.trust(far[:3], known) < 0.4
    assert guess.trust(far[:1], far[:2]) == 1.0  # too few to tell


def test_first_trial_has_exactly_the_defaults() -> None:
    config = {"x": {**UNIT, "default": 0.25}, "y": UNIT}
    kind = {"type": "choice", "options": ["flat", {"name": "curved", "m": UNIT}], "default": "curved"}
    sampler = MultivariateTpeSampler(Space.from_config({**config, "kind": kind}), 3, doubts_defaults=True)
    first = sampler.ask(0)
    assert (first["x"], first["kind"]["name"]) == (0.25, "curved")
    sampler.start(0, first)
    assert sampler.ask(1)["x"] != 0.25


@pytest.mark.parametrize("sampler_class", [MultivariateTpeSampler, MultifidelityGpSampler])
def test_start_up_trials_after_the_first_ignore_a_doubted_guess(
    sampler_class: type[MultivariateTpeSampler],
) -> None:
    guessing, plain = (
        sampler_class(space, 0, doubts_defaults=True)
        for space in (space_with(FAR), Space.from_config(dict.fromkeys(FAR, UNIT)))
    )
    for sampler in (guessing, plain):
        sampler.start(0, FAR)
    assert [guessing.ask(i) for i in range(1, 8)] == [plain.ask(i) for i in range(1, 8)]


@pytest.mark.medium
def test_good_guess_speeds_a_search_up_and_a_bad_one_costs_a_tenth_at_most() -> None:
    def trials_needed(space: Space) -> float:
        counts = []
        for seed in range(12):
            sampler = MultivariateTpeSampler(space, seed, enough=10, doubts_defaults=True)
            for trial_id in range(60):
                params = sampler.ask(trial_id)
                sampler.start(trial_id, params)
                loss = loss_of(params)
                sampler.tell(trial_id, resource=1, loss=loss)
                if loss < 0.005:
                    break
            counts.append(trial_id + 1)
        return float(np.mean(counts))

    none = trials_needed(Space.from_config(dict.fromkeys(PLACE, UNIT)))
    good = trials_needed(space_with({"a": 0.36, "b": 0.64, "c": 0.54}))
    bad = trials_needed(space_with(FAR))
    assert good < 0.8 * none
    assert bad < 1.1 * none
