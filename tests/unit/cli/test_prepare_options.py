"""The options of `spark-hpo prepare csv` become those of `prepare.csv`."""

from __future__ import annotations

from typing import Any

import pytest
from click.testing import CliRunner

from spark_hpo.cli import prepare

COMMAND = ["csv", "--input", "a.csv", "--label", "y", "--output", "out"]


def options_of(monkeypatch: pytest.MonkeyPatch, *words: str) -> dict[str, Any]:
    """What the command passes on, without its other arguments."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(prepare, "_prepare", lambda source, options: given.update(options))
    result = CliRunner().invoke(prepare.command, [*COMMAND, *words])
    assert result.exit_code == 0, result.output
    return given


def test_prepare_collects_the_options_of_the_split(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--split-column", "fold", "--split-values", "train:0,train:1,validation:2,test:last"]
    assert options_of(monkeypatch, *words)["split"] == {
        "column": "fold",
        "values": {"train": [0, 1], "validation": [2], "test": ["last"]},
    }
    assert options_of(monkeypatch, "--split-group", "a,b", "--split-time", "day")["split"] == {
        "group": ["a", "b"],
        "time": "day",
    }
    assert options_of(monkeypatch)["split"] is None


def test_prepare_refuses_values_without_a_split() -> None:
    words = ["--split-column", "fold", "--split-values", "0"]
    assert CliRunner().invoke(prepare.command, [*COMMAND, *words]).exit_code == 2
