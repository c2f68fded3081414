"""`make gpu-check` without a GPU: what it compares, and what it does not need."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from spark_hpo.trial import Measurement
from tests.gpu_check import CPU, differences, main, places

CHECK = Path(__file__).parents[1] / "gpu_check.py"
# All that the package may import elsewhere, except what torch itself and reading Parquet need.
NOT_NEEDED = (
    *("hyperopt", "matplotlib", "mlflow", "onnxruntime", "optuna", "pandas", "petastorm", "plotly"),
    *("psutil", "py4j", "pydantic", "pyspark", "rich", "scipy", "sklearn", "threadpoolctl", "yaml"),
)


def measurement(loss: float, accuracy: float = 0.9) -> Measurement:
    metrics = {"loss": loss, "train_loss": loss, "accuracy": accuracy}
    return Measurement(resource=1, metrics=metrics, time=0.0, seconds=1.0, rows=10)


def test_gpu_check_on_the_cpu_agrees_with_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--rehearse", "--only-curves", "--rows", "1200"]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert answer["agrees"] is True
    for task in ("tabular", "image"):
        reference, again, bf16 = (
            answer["tasks"][task][name] for name in ("cpu fp32", "rehearsal fp32", "rehearsal bf16")
        )
        assert {**again, "rows_per_s": 0} == {**reference, "rows_per_s": 0}
        assert bf16["loss"] != reference["loss"], "bf16 is another arithmetic"
        assert bf16["rows_per_s"] > 0


def test_gpu_check_finds_a_place_with_other_results(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.gpu_check.places", lambda *_: [replace(CPU, name="far", gpus=(), loss=0.0)])
    monkeypatch.setattr("tests.gpu_check.differences", lambda *_: ["far, epoch 1: loss is 2"])
    assert main(["--rehearse", "--only-curves", "--rows", "200"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out.splitlines()[-1])["agrees"] is False
    assert "tabular on far, epoch 1: loss is 2" in captured.err


@pytest.mark.slow
def test_gpu_check_passes_all_parts_on_the_cpu(tmp_path: Path) -> None:
    page = tmp_path / "gpu.md"
    done = subprocess.run(
        [sys.executable, str(CHECK), "--rehearse", "--rows", "1200", "--page", str(page)],
        env={**os.environ, "PYTHONPATH": str(CHECK.parents[1]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=480,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    parts = json.loads(done.stdout.splitlines()[-1])["parts"]
    assert len(parts) == 7
    assert parts["out of memory, halved"]["halved"] > 0
    assert all(f"| {name} |" in page.read_text() for name in parts)


def test_differences_names_curves_beyond_the_tolerance() -> None:
    fp32, bf16 = places((0,), "gpu")
    assert differences(fp32, [measurement(1.0)], [measurement(1.04, 0.905)]) == []
    assert differences(bf16, [measurement(1.0)], [measurement(1.06)]) == []
    assert differences(fp32, [measurement(1.0)], [measurement(1.06)]) == [
        "gpu fp32, epoch 1: loss is 1.0600; it must be 1.0000 +- 0.0500",
        "gpu fp32, epoch 1: train_loss is 1.0600; it must be 1.0000 +- 0.0500",
    ]
    [line] = differences(bf16, [measurement(1.0)], [measurement(1.0, 0.87)])
    assert "accuracy is 0.8700" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_gpu_check_without_a_gpu_stops_with_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert capsys.readouterr().out == "no GPU\n"


def test_gpu_check_imports_torch_pyarrow_and_this_package_only() -> None:
    program = f"""
import runpy, sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        missing = name.partition(".")[0] in {NOT_NEEDED!r}
        return None if missing else self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Without, sys.meta_path)
sys.path.insert(0, {str(CHECK.parents[1])!r})
sys.argv = ["gpu_check", "--rehearse", "--only-curves", "--rows", "200"]
runpy.run_path({str(CHECK)!r}, run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    # So few rows need not agree: that it got to its end is what counts.
    last = (done.stdout.splitlines() or [""])[-1]
    assert last.startswith('{"device": "cpu"'), done.stderr[-3000:]
