"""The commands of docs/first-study.md on a new table."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from spark_hpo.cli import main
from tests.support.command_line import Done, output, run_in_process, spark_hpo

pytestmark = [pytest.mark.spark, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
COMMANDS = "\n".join(re.findall(r"```sh\n(.*?)```", (ROOT / "docs/first-study.md").read_text(), re.DOTALL))
QUICKER = ["budget.trials=6"]  # make test-first-studies runs studies to the end of their budgets


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CSV: the 442 patients of scikit-learn, with pandas' index and a text column."""
    from sklearn.datasets import load_diabetes

    folder = tmp_path_factory.mktemp("user")
    frame = load_diabetes(as_frame=True, scaled=False).frame.rename(columns={"target": "price"})
    frame["sex"] = frame["sex"].map({1.0: "f", 2.0: "m"})
    frame["name"] = [f"patient {i * 7919 % 1009}" for i in range(len(frame))]
    frame.to_csv(folder / "my.csv")
    return folder


def command(name: str, folder: Path, *more: str) -> Done:
    """Run the last command of the page with this subcommand: the one for a CSV."""
    *_, line = [line for line in COMMANDS.splitlines() if line.startswith(f"spark-hpo {name} ")]
    _, *words = shlex.split(line)
    return spark_hpo(folder, *words, *more)


@pytest.fixture(scope="module")
def begun(home: Path) -> tuple[Done, Done]:
    """The output of `prepare` and `init`."""
    return command("prepare", home), command("init", home)


def split(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers and the label of a split."""
    table = pq.read_table(folder / "data" / "my" / name)
    label = np.asarray(table["price"])
    return np.stack([np.asarray(table[c]) for c in table.column_names if c != "price"], axis=1), label


@pytest.mark.timeout(600)
def test_first_study_commands_produce_a_good_model_of_an_unknown_csv(
    home: Path, begun: tuple[Done, Done]
) -> None:
    done, started = begun
    assert output(done).startswith(f"{home}/data/my: train ")
    assert "column '_c0' is left out: it numbers the rows, from 0 to 441" in done.stderr
    assert "column 'name' is left out" in done.stderr
    assert "next: spark-hpo doctor my_study.yaml" in output(started)
    answer = json.loads(output(command("run", home, *QUICKER, "--json")).splitlines()[-1])
    found = answer["test"]["squared_error"]
    train, test = split(home, "train"), split(home, "test")
    assert found < 0.75 * np.mean((test[1] - train[1].mean()) ** 2), "hardly better than the mean"
    from sklearn.linear_model import Ridge

    linear = np.mean((Ridge().fit(*train).predict(test[0]) - test[1]) ** 2)
    assert found < 1.3 * linear
    page = (home / "studies" / "my" / "report.html").read_text()
    assert "squared_error" in page


@pytest.mark.usefixtures("begun")
def test_doctor_passes_the_first_study_and_leaves_no_files(home: Path) -> None:
    before = sorted(path for path in home.rglob("*") if "studies" not in path.parts)
    done = command("doctor", home, "study_dir=elsewhere/study")
    assert output(done).endswith("no check failed\n")
    assert "FAIL" not in done.stdout
    assert "one step: 1 rank, one batch, squared_error" in done.stdout
    assert sorted(path for path in home.rglob("*") if "studies" not in path.parts) == before


def run_here(folder: Path, *words: str) -> Done:
    return run_in_process(main, words, folder)


@pytest.mark.usefixtures("begun", "spark")
def test_first_mistakes_get_a_message_with_a_fix(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*words: str, run: Callable[..., Done] = run_here) -> str:
        done = run(home, *words)
        assert done.returncode in (2, 3)
        assert "Traceback" not in done.stderr
        return done.stderr

    assert "my.csv has _c0, age, sex" in fails("prepare", "csv", "--input", "my.csv", "--output", "x")
    assert "no such file or folder" in fails(
        "prepare", "csv", "--input", "no.csv", "--label", "y", "--output", "x"
    )
    assert "my.csv has the columns" in fails("init", "my.csv", "--output", "other.yaml")
    assert "the study file cannot be read" in fails("run", "no.yaml")
    monkeypatch.setenv("JAVA_HOME", str(home / "jdk"))
    # In a new process, which would start a JVM.
    assert f"JAVA_HOME is {home}/jdk)" in fails("run", "my_study.yaml", "study_dir=x", run=spark_hpo)
