"""Learning curves of real trainings, as problems to replay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks.replay.curves import open_benchmarks
from tests.benchmarks.replay.families import FAMILIES, FRESH
from tests.benchmarks.replay.train_curves import FAMILIES as TRAINED
from tests.benchmarks.replay.train_curves import MAX_RESOURCE, write


def test_fresh_families_of_the_judge_are_those_that_can_be_trained() -> None:
    assert set(FRESH) == set(TRAINED)
    assert set(FRESH) < set(FAMILIES)


@pytest.mark.medium
def test_trained_curves_can_be_replayed_and_a_stopped_run_goes_on(tmp_path: Path) -> None:
    write("digits_convolutions", tmp_path, 1)
    first = (tmp_path / "trained.jsonl").read_text()
    write("digits_convolutions", tmp_path, 3)
    assert (tmp_path / "trained.jsonl").read_text().startswith(first)
    (benchmark,) = open_benchmarks(tmp_path)
    assert benchmark.task == "digits_convolutions"
    assert benchmark.pool is not None
    assert len(benchmark.pool) == 3
    assert {"learning_rate", "optimizer", "channels"} <= benchmark.pool.configurations[0].keys()
    curves = [benchmark.curve(0, params) for params in benchmark.pool.configurations]
    for curve in curves:
        assert curve.unseen is not None
        losses = curve.metrics["val_loss"]
        assert len(losses) == len(curve.elapsed_s) == len(curve.unseen) == MAX_RESOURCE
        assert np.all(np.diff(curve.elapsed_s) >= 0)
    # Training helps: the best of three random configurations is better than chance, a loss of log 10.
    assert min(np.nanmin(curve.metrics["val_loss"]) for curve in curves) < 2.0
