"""Folders of curves become benchmarks: tables as finite pools, surrogates for any configuration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from spark_hpo.errors import ConfigError, DataError
from spark_hpo.search.space.parameter import Uniform
from tests.benchmarks.replay.benchmark import references_of
from tests.benchmarks.replay.curves import open_benchmarks, space_of

CURVES = Path(__file__).parents[4] / "shared" / "curves"
needs_curves = pytest.mark.skipif(not CURVES.is_dir(), reason="the real learning curves are not here")


def test_folder_has_a_benchmark_for_each_task(folder: Path) -> None:
    assert [benchmark.task for benchmark in open_benchmarks(folder)] == ["a", "b"]
    assert [benchmark.task for benchmark in open_benchmarks(folder, ["b"])] == ["b"]


def test_table_returns_the_curves_of_its_configurations(folder: Path) -> None:
    benchmark = open_benchmarks(folder)[0]
    assert benchmark.pool is not None
    params = benchmark.pool.configurations[0]
    curve = benchmark.curve(0, params)
    final = 1.0 - abs(np.log10(params["lr"]) + 2.0) / 2.0
    np.testing.assert_allclose(curve.metrics["accuracy"], final * np.arange(1, 5) / 4)
    np.testing.assert_allclose(curve.elapsed_s, [10, 20, 30, 40])


def test_diverged_run_takes_no_further_time(folder: Path) -> None:
    benchmark = open_benchmarks(folder)[0]
    assert benchmark.pool is not None
    curve = benchmark.curve(0, benchmark.pool.configurations[-1])
    assert curve.diverges_at == 3
    np.testing.assert_allclose(curve.elapsed_s, [10, 20, 20, 20])


def test_regret_is_0_at_the_best_of_the_table_and_1_at_the_median(folder: Path) -> None:
    benchmark = open_benchmarks(folder)[0]
    assert benchmark.pool is not None
    curves = [benchmark.curve(0, params) for params in benchmark.pool.configurations]
    losses = [np.inf if c.diverges_at else -c.metrics["accuracy"][-1] for c in curves]
    assert benchmark.reference.regret(min(losses)) == 0.0
    assert benchmark.reference.regret(float(np.median(losses))) == pytest.approx(1.0)
    assert benchmark.reference.full_s == 40.0
    assert (benchmark.reference, benchmark.unseen_reference) == references_of(benchmark.objective, curves)


def test_missing_space_is_derived_from_the_configurations() -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "lr": np.exp(rng.uniform(np.log(1e-4), 0.0, 500)),
            "momentum": rng.uniform(0.5, 1.0, 500),
            "layers": rng.integers(1, 9, 500),
            "seed": np.ones(500, int),
        }
    )
    space = space_of(table)
    found = {str(d.key[0]): d.parameter for d in space.dimensions()}
    assert set(found) == {"lr", "momentum", "layers"}  # a single value is a constant
    kinds = {name: (p.log, p.integer) for name, p in found.items() if isinstance(p, Uniform)}
    assert kinds == {"lr": (True, False), "momentum": (False, False), "layers": (False, True)}
    for row in table.to_dict("records")[:20]:
        space.validate(row)


def test_unknown_task_is_refused_with_the_known_ones(folder: Path) -> None:
    with pytest.raises(ConfigError, match="no task 'c'; it has a, b"):
        open_benchmarks(folder, ["c"])


def test_folder_of_other_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder of learning curves"):
        open_benchmarks(tmp_path)


@needs_curves
def test_surrogate_agrees_with_the_table_made_from_it() -> None:
    pytest.importorskip("onnxruntime")
    (benchmark,) = open_benchmarks(CURVES / "lcbench", ["3945"])
    configs = pd.read_parquet(CURVES / "lcbench" / "configs.parquet").set_index("config_id")
    table = pd.read_parquet(CURVES / "lcbench" / "curves.parquet").query("task == '3945'")
    for config_id in (0, 17, 999):
        rows = table[table["config_id"] == config_id].sort_values("resource")
        curve = benchmark.curve(0, configs.loc[config_id].to_dict())
        np.testing.assert_allclose(curve.metrics["val_accuracy"], rows["val_accuracy"], atol=0.02)
        np.testing.assert_allclose(curve.elapsed_s[-1], rows["elapsed_s"].max(), rtol=1e-3)
        assert (np.diff(curve.elapsed_s) >= 0).all()


@needs_curves
def test_measured_runs_that_diverge_are_the_147_that_are_known() -> None:
    (benchmark,) = open_benchmarks(CURVES / "alexnet_imagenet")
    assert benchmark.pool is not None
    curves = [benchmark.curve(0, params) for params in benchmark.pool.configurations]
    assert sum(curve.diverges_at is not None for curve in curves) == 147
