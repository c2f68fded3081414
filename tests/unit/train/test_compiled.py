"""Models compiled with torch.compile: the same results, code that trials share, and training without it."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from spark_hpo.data.cache.cache_folder import CacheSettings
from spark_hpo.data.table import open_table
from spark_hpo.objective import Mode, Objective
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train.rank import RankSpec
from spark_hpo.train.training_settings import TrainingSettings
from spark_hpo.train.worker import run_rank
from spark_hpo.trial import Assignment
from tests.support.tables import write_clusters

ASSIGNMENT = Assignment(
    trial_id=4,
    attempt=1,
    params={"learning_rate": 0.01, "hidden_units": 8},
    bracket=0,
    rung=0,
    resource_from=0,
    resource_to=2,
    checkpoint=None,
    seed=11,
)
TWO_TRIALS = """
import json, sys
from tests.unit.train.test_compiled import train_compiled
print(json.dumps(train_compiled(*sys.argv[1:])))
"""


def spec_in(folder: Path) -> RankSpec:
    return RankSpec(
        study_id="study",
        storage=Storage(folder / "study"),
        trainable="tabular",
        table=open_table(str(folder / "table")),
        objective=Objective(metric="accuracy", mode=Mode.MAX),
        settings=TrainingSettings(batch_size=120, compile=True),
        max_resource=9,
        seed=0,
        reader="arrow",
        shuffle_window=1000,
        node_cache=CacheSettings(folder=str(folder / "cache")),
    )


def train_compiled(folder: str) -> dict[str, float]:
    """Train a trial, and return its metrics and how often it has found compiled code."""
    report = run_rank(spec_in(Path(folder)), ASSIGNMENT, rank=0, world_size=1)
    assert report.failure is None, report.failure.traceback
    counts = torch._dynamo.utils.counters
    found, made = (counts["inductor"][f"fxgraph_cache_{kind}"] for kind in ("hit", "miss"))
    return {**report.metrics, "found": found, "made": made, "graphs": counts["stats"]["unique_graphs"]}


@pytest.mark.slow
def test_trials_share_compiled_code(tmp_path: Path) -> None:
    write_clusters(tmp_path / "table")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[3])}
    environment.pop("TORCHINDUCTOR_CACHE_DIR", None)
    answers = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", TWO_TRIALS, str(tmp_path)],
            env=environment,
            stdout=subprocess.PIPE,
            timeout=300,
            check=True,
        )
        answers.append(json.loads(done.stdout))
    first, second = answers
    assert first["graphs"] > 0
    assert (first["found"], second["made"]) == (0, 0)
    assert second["found"] > 0
    eager = replace(spec_in(tmp_path), settings=TrainingSettings(batch_size=120))
    report = run_rank(eager, replace(ASSIGNMENT, trial_id=5), rank=0, world_size=1)
    for name, value in report.metrics.items():
        assert first[name] == pytest.approx(value, rel=1e-4)


@pytest.mark.medium
def test_training_goes_on_without_a_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_clusters(tmp_path / "table")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "code"))
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    with caplog.at_level(logging.WARNING, logger="spark_hpo"):
        compiled = run_rank(spec_in(tmp_path), ASSIGNMENT, rank=0, world_size=1)
    eager = replace(spec_in(tmp_path), settings=TrainingSettings(batch_size=120))
    expected = run_rank(eager, replace(ASSIGNMENT, trial_id=5), rank=0, world_size=1)
    assert compiled.failure is None, compiled.failure.traceback
    assert compiled.metrics == expected.metrics
    [record] = caplog.records
    assert "torch.compile" in record.message
