"""Sweeps of W&B and experiments of Determined become studies, with a list of what has no counterpart.

The files are like those of the documentation of both: docs.wandb.ai/models/sweeps/sweep-config-keys, and
Determined's experiment configuration reference.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from spark_hpo.config import load_config
from spark_hpo.errors import ConfigError
from spark_hpo.porting.import_file import import_file
from spark_hpo.porting.imported import Imported
from spark_hpo.search.space import Space


def imported(text: str, folder: Path, name: str = "file.yaml") -> Imported:
    (folder / name).write_text(text)
    result = import_file(folder / name)
    study = folder / "study.yaml"
    study.write_text(result.to_yaml(name))
    assert load_config(study).space == result.study["space"], "the file that is written can be run"
    return result


def keys(result: Imported) -> set[str]:
    return {note.key for note in result.notes}


SWEEP = """
program: train.py
method: bayes
name: sweep demo
project: prices
metric: {name: validation_loss, goal: minimize, target: 0.01}
parameters:
  learning_rate: {min: 0.0001, max: 0.1}
  batch_size: {values: [16, 32, 64]}
  epochs: {value: 27}
  optimizer: {values: [adam, sgd], probabilities: [0.75, 0.25]}
early_terminate: {type: hyperband, s: 2, eta: 3, max_iter: 27}
run_cap: 40
command: ["${env}", python, "${program}", "${args}"]
"""


def test_sweep_becomes_a_study(tmp_path: Path) -> None:
    result = imported(SWEEP, tmp_path)
    assert result.study == {
        "name": "sweep-demo",
        "study_dir": "studies/sweep-demo",
        "task": "train.py:train",
        "objective": {"metric": "validation_loss", "mode": "min"},
        "space": {
            "learning_rate": {"type": "uniform", "low": 0.0001, "high": 0.1},
            "batch_size": {"type": "choice", "options": [16, 32, 64]},
            "optimizer": {"type": "choice", "options": ["adam", "sgd"], "weights": [0.75, 0.25]},
        },
        # W&B has brackets at 27 / 3 and 27 / 9 iterations.
        "search": {
            "sampler": "tpe",
            "scheduler": "asha",
            "max_resource": 27,
            "min_resource": 3,
            "reduction_factor": 3,
        },
        "budget": {"trials": 40},
        "stopping": {"target": 0.01},
    }
    assert keys(result) == {
        "command",
        "early_terminate.type",
        "method",
        "parameters.epochs",
        "program",
        "project",
    }


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("{min: 1, max: 8}", {"type": "int", "low": 1, "high": 8}),
        ("{min: 1.0, max: 8}", {"type": "uniform", "low": 1.0, "high": 8}),
        ("{min: 1e-5, max: 1e-1}", {"type": "uniform", "low": 1e-5, "high": 0.1}),
        ("{distribution: int_uniform, min: 3, max: 3}", 3),
        ("{distribution: q_uniform, min: 0, max: 1, q: 0.1}", {"type": "quniform", "q": 0.1}),
        ("{distribution: q_uniform, min: 8, max: 64, q: 8}", {"type": "quniform", "q": 8, "integer": True}),
        ("{distribution: log_uniform, min: 0, max: 1}", {"type": "loguniform", "low": 1, "high": np.e}),
        ("{distribution: inv_log_uniform, min: 0, max: 1}", {"low": 1 / np.e, "high": 1}),
        ("{distribution: log_uniform_values, min: 1e-5, max: 0.1}", {"type": "loguniform", "low": 1e-5}),
        ("{distribution: inv_log_uniform_values, min: 1e-5, max: 0.1}", {"type": "loguniform", "low": 1e-5}),
        ("{distribution: q_log_uniform, min: 0, max: 5, q: 1}", {"type": "qloguniform", "high": np.e**5}),
        ("{distribution: q_log_uniform_values, min: 8, max: 512, q: 8}", {"type": "qloguniform", "q": 8}),
        ("{distribution: normal, mu: 2, sigma: 3}", {"type": "normal", "mu": 2, "sigma": 3}),
        ("{distribution: q_normal}", {"type": "qnormal", "mu": 0, "sigma": 1, "q": 1}),
        ("{distribution: log_normal}", {"type": "lognormal"}),
        ("{distribution: q_log_normal, q: 0.5}", {"type": "qlognormal", "q": 0.5}),
        ("{distribution: beta, a: 1, b: 2}", {"type": "uniform", "low": 0, "high": 1}),
        ("{distribution: constant, value: [1, 2]}", [1, 2]),
        ("{values: [1]}", 1),
    ],
)
def test_every_distribution_of_a_sweep_has_its_counterpart(entry: str, expected: Any, tmp_path: Path) -> None:
    text = f"method: random\nparameters: {{x: {entry}, y: {{min: 0.0, max: 1.0}}}}\n"
    found = imported(text, tmp_path).study["space"]["x"]
    assert _part(found, expected) == pytest.approx(expected)


def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path: Path) -> None:
    space = imported("method: random\nparameters: {x: {values: [1e-5, 1e-6]}}\n", tmp_path).study["space"]
    assert Space.from_config(space).sample(np.random.default_rng(0))["x"] in (1e-5, 1e-6)


def _part(found: Any, expected: Any) -> Any:
    return {key: found[key] for key in expected} if isinstance(expected, dict) else found


def test_nested_parameters_become_a_group(tmp_path: Path) -> None:
    text = """
method: random
parameters:
  optimizer:
    parameters:
      name: {value: sgd}
      decay: {distribution: beta, a: 1, b: 1}
"""
    result = imported(text, tmp_path)
    assert result.study["space"] == {
        "optimizer": {"name": "sgd", "decay": {"type": "uniform", "low": 0.0, "high": 1.0}}
    }
    assert "parameters.optimizer.parameters.decay" in keys(result)


def test_grid_sweep_runs_each_combination_once(tmp_path: Path) -> None:
    text = "method: grid\nparameters: {a: {values: [1, 2, 3]}, b: {values: [x, y]}, epochs: {value: 5}}\n"
    study = imported(text, tmp_path).study
    assert study["budget"] == {"trials": 6}
    assert study["search"] == {"sampler": "grid", "scheduler": "full", "max_resource": 5}


EXPERIMENT = """
name: mnist adaptive
workspace: vision
project: digits
labels: [demo]
data: {url: "https://example.com/mnist.tar.gz"}
hyperparameters:
  global_batch_size: 64
  learning_rate: {type: log, minval: -5.0, maxval: 1.0, base: 10.0}
  dropout: {type: double, minval: 0.2, maxval: 0.8}
  filters: {type: int, minval: 8, maxval: 64}
  optimizer:
    kind: {type: categorical, vals: [adam, sgd]}
    momentum: {type: const, val: 0.9}
records_per_epoch: 50000
searcher:
  name: adaptive_asha
  metric: validation_accuracy
  smaller_is_better: false
  max_trials: 64
  max_length: {batches: 12500}
  max_concurrent_trials: 8
  mode: aggressive
  divisor: 4
  max_rungs: 3
resources: {slots_per_trial: 2, resource_pool: gpu, weight: 2}
reproducibility: {experiment_seed: 42}
max_restarts: 0
min_validation_period: {batches: 500}
entrypoint: python3 -m determined.launch.torch_distributed --trial model_def:MNISTTrial
environment: {image: "determinedai/environments:latest"}
"""


def test_experiment_becomes_a_study(tmp_path: Path) -> None:
    result = imported(EXPERIMENT, tmp_path)
    assert result.study == {
        "name": "mnist-adaptive",
        "study_dir": "studies/mnist-adaptive",
        "seed": 42,
        "task": "model_def.py:MNISTTrial",
        "objective": {"metric": "validation_accuracy", "mode": "max"},
        "space": {
            "batch_size": 64,
            "learning_rate": {"type": "loguniform", "low": 1e-5, "high": 10.0},
            "dropout": {"type": "uniform", "low": 0.2, "high": 0.8},
            "filters": {"type": "int", "low": 8, "high": 64},
            "optimizer": {"kind": {"type": "choice", "options": ["adam", "sgd"]}, "momentum": 0.9},
        },
        "search": {
            "sampler": "random",
            "scheduler": "asha",
            "max_resource": 16,  # 12,500 batches of 64 rows of 50,000
            "min_resource": 1,
            "reduction_factor": 4,
        },
        "budget": {"trials": 64},
        "resources": {"world_size": 2, "max_concurrent": 8, "share": 2, "max_infra_retries": 0},
        "mlflow": {"experiment": "vision/digits"},
    }
    assert keys(result) >= {
        "data",
        "entrypoint",
        "environment",
        "hyperparameters.global_batch_size",
        "labels",
        "min_validation_period",
        "resources.resource_pool",
        "resources.slots_per_trial",
        "searcher.max_length",
    }


@pytest.mark.parametrize(
    ("searcher", "search", "trials"),
    [
        ("{name: single, max_length: {epochs: 3}}", {"sampler": "random", "scheduler": "full"}, 1),
        ("{name: random, max_trials: 9, max_length: {epochs: 3}}", {"max_resource": 3}, 9),
        ("{name: grid, max_length: {epochs: 3}}", {"sampler": "grid"}, 15),
        ("{name: adaptive_asha, max_trials: 9, time_metric: epochs, max_time: 64}", {"min_resource": 1}, 9),
        ("{name: adaptive_asha, max_trials: 9, max_length: {epochs: 256}}", {"reduction_factor": 4}, 9),
        ("{name: custom}", {"method": "default"}, 1),
    ],
)
def test_every_searcher_has_its_counterpart(
    searcher: str, search: dict[str, Any], trials: int, tmp_path: Path
) -> None:
    text = f"""
hyperparameters:
  a: {{type: int, minval: 1, maxval: 100, count: 5}}
  b: {{type: categorical, vals: [1, 2, 3]}}
searcher: {searcher}
"""
    study = imported(text, tmp_path).study
    assert _part(study["search"], search) == search
    assert study["budget"] == {"trials": trials}


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("method: random\nparameters: {x: {min: 1}}\n", "parameters.x"),
        ("method: grid\nparameters: {x: {distribution: z, min: 1, max: 2}}\n", "parameters.x.distribution"),
        ("method: random\nparameters: {x: {min: a, max: 2}}\n", "parameters.x.min"),
        ("method: random\nmetric: {goal: best}\nparameters: {x: {value: 2}}\n", "metric.goal"),
        ("searcher: {name: random}\nhyperparameters: {x: {type: double}}\n", "hyperparameters.x.minval"),
        ("searcher: {name: random}\nhyperparameters: {x: {type: zipf}}\n", "hyperparameters.x.type"),
        ("searcher: []\nhyperparameters: [1]\n", "hyperparameters"),
        ("a: 1\n", ""),
        ("- 1\n", ""),
        ("a: [\n", ""),
    ],
)
def test_invalid_file_is_refused_with_its_key(text: str, key: str, tmp_path: Path) -> None:
    (tmp_path / "file.yaml").write_text(text)
    with pytest.raises(ConfigError) as raised:
        import_file(tmp_path / "file.yaml")
    assert raised.value.key == key
    assert "file.yaml" in str(raised.value)


def test_notes_are_comments_of_the_study_file(tmp_path: Path) -> None:
    result = imported(SWEEP, tmp_path)
    lines = result.to_yaml("sweep.yaml").splitlines()
    assert "sweep.yaml" in lines[0]
    assert sum(line.startswith("# - ") for line in lines) == len(result.notes)
    assert yaml.safe_load("\n".join(lines)) == result.study
