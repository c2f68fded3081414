"""Models compiled with torch.compile: the same results, code that trials share, and training without it."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spark_hpo.data.cache.cache_folder import CacheSettings
from spark_hpo.data.table import open_table
from spark_hpo.objective import Mode, Objective
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train.compiled import stop_compiling
from spark_hpo.train.rank import RankSpec
from spark_hpo.train.rendezvous.world import RendezvousServer
from spark_hpo.train.task import Batch, LabelledTask
from spark_hpo.train.training_settings import TrainingSettings
from spark_hpo.train.worker import run_rank
from spark_hpo.trial import Assignment
from tests.support.gloo_ranks import run_ranks
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


class Product(torch.autograd.Function):
    """Needs compiled code in its backward pass only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(x, weights)
        return x.mm(weights)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weights = ctx.saved_tensors
        bounded = gradient.sin() + gradient
        return bounded.mm(weights.t()), x.t().mm(bounded)


class ProductNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.eye(2))

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = Product.apply(x, self.weights)
        return outputs


class ProductTask(LabelledTask):
    def build_model(self) -> nn.Module:
        return ProductNet()

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        outputs: Tensor = model(torch.stack([batch["x"], batch["y"]], dim=1))
        return outputs


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


@pytest.fixture
def _no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "code"))
    import torch._inductor.config  # names a cache folder of its own when it is imported

    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
        yield


@pytest.mark.medium
@pytest.mark.usefixtures("_no_compiler")
def test_training_goes_on_without_a_compiler(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_clusters(tmp_path / "table")
    with caplog.at_level(logging.WARNING, logger="spark_hpo"):
        compiled = run_rank(spec_in(tmp_path), ASSIGNMENT, rank=0, world_size=1)
    eager = replace(spec_in(tmp_path), settings=TrainingSettings(batch_size=120))
    expected = run_rank(eager, replace(ASSIGNMENT, trial_id=5), rank=0, world_size=1)
    assert compiled.failure is None, compiled.failure.traceback
    assert compiled.metrics == expected.metrics
    [record] = [record for record in caplog.records if record.name.startswith("spark_hpo")]
    assert "torch.compile" in record.message


@pytest.mark.medium
@pytest.mark.usefixtures("_no_compiler")
@pytest.mark.parametrize("ranks", [1, 2])
def test_training_goes_on_if_the_backward_pass_cannot_be_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, ranks: int
) -> None:
    write_clusters(tmp_path / "table")
    spec = replace(spec_in(tmp_path), trainable=ProductTask)
    failed: list[type[BaseException]] = []
    monkeypatch.setattr(
        "spark_hpo.train.optimizer_step.stop_compiling",
        lambda model, error: (failed.append(type(error)), stop_compiling(model, error)),
    )
    with caplog.at_level(logging.WARNING, logger="spark_hpo"):
        if ranks == 1:
            compiled = run_rank(spec, ASSIGNMENT, rank=0, world_size=1)
            assert len(failed) == 1, "the forward pass was compiled"
        else:
            server = RendezvousServer("127.0.0.1", timeout_s=60.0)
            compiled = run_ranks(replace(spec, rendezvous=server.address), ASSIGNMENT, ranks)
            server.close()
    assert compiled.failure is None, compiled.failure.traceback
    eager = replace(spec, settings=TrainingSettings(batch_size=120))
    expected = run_rank(eager, replace(ASSIGNMENT, trial_id=5), rank=0, world_size=1)
    assert compiled.metrics == pytest.approx(expected.metrics, rel=1e-5)
    if ranks == 1:
        assert ["torch.compile" in record.message for record in caplog.records] == [True]
