"""The command line: a table on standard output, rows in a file, a picture beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks.replay.cli import main


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert isinstance(exit_.value.code, int)
    return exit_.value.code


def test_replay_command_writes_rows_and_a_plot(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    rows = tmp_path / "rows.json"
    methods = ["--method", "random", "--method", "random+successive_halving:num_trials=9"]
    code = run(
        "--curves",
        str(folder),
        *methods,
        "--slots",
        "2",
        "--seeds",
        "2",
        "--budget",
        "3",
        "--json",
        str(rows),
    )
    assert code == 0
    found = json.loads(rows.read_text())
    assert [(row["task"], row["method"]) for row in found] == [
        (task, method) for task in "ab" for method in methods[1::2]
    ]
    wanted = {"task", "method", "slots", "seeds", "regret", "busy", "proposals_per_s"}
    for row in found:
        assert wanted <= row.keys()
        assert list(row["regret"]) == ["0.1", "0.25", "0.5", "1.0"]
        assert (row["slots"], row["seeds"]) == (2, 2)
    assert rows.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "| a | 2 | random |" in printed
    assert "average rank" in printed


def test_replay_command_uses_the_default_method(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--curves", str(folder), "--task", "a", "--slots", "2", "--seeds", "1", "--budget", "1") == 0
    assert "| a | 2 | default |" in capsys.readouterr().out


def test_replay_command_refuses_wrong_options(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--curves", str(tmp_path / "none")) == 3
    assert run("--curves", str(folder), "--method", "tpee") == 2
    assert run("--curves", str(folder), "--task", "c") == 2
    assert "it has a, b" in capsys.readouterr().err
