"""Five commands from an unknown CSV to an HTTP answer for one of its rows, as docs/models.md shows them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from tests.support.command_line import output, spark_hpo
from tests.support.model_server import ModelServer

pytestmark = [pytest.mark.spark, pytest.mark.slow, pytest.mark.timeout(900)]


def command(folder: Path, *words: str) -> str:
    done = spark_hpo(folder, *words)
    for noise in ("log4j", "NativeCodeLoader", "log level", "loopback"):
        assert noise not in done.stderr, "Spark's messages are shown with --verbose only"
    return output(done)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CSV of numbers, texts, dates, amounts and missing values."""
    from sklearn.datasets import load_diabetes

    folder = tmp_path_factory.mktemp("user")
    frame = load_diabetes(as_frame=True, scaled=False).frame
    frame["sex"] = frame["sex"].map({1.0: "f", 2.0: "m"})
    frame["bp"] = frame["bp"].where(frame.index % 20 != 3)
    frame["seen"] = [f"{1 + i % 28}.{1 + i % 12}.{1990 + i % 30}" for i in range(len(frame))]
    frame["paid"] = [f"${37 * i:,}" for i in range(len(frame))]
    frame["ill"] = (frame.pop("target") > 140).map({True: "yes", False: "no"})
    frame.to_csv(folder / "my.csv", index=False)
    return folder


def test_five_commands_lead_from_a_csv_to_an_answer_over_http(home: Path) -> None:
    command(home, "prepare", "csv", "--input", "my.csv", "--label", "ill", "--output", "data/my")
    command(home, "init", "data/my")
    answer = json.loads(command(home, "run", "my_study.yaml", "budget.trials=2", "--json").splitlines()[-1])
    row = pd.read_csv(home / "my.csv").drop(columns="ill").astype(object).iloc[3]
    record = {name: None if pd.isna(value) else value for name, value in row.items()}
    uri = f"sqlite:///{home}/studies/mlflow.db"  # as init has chosen it
    with ModelServer(answer["model"]["uri"], tracking_uri=uri, folder=home) as server:
        body = json.dumps({"dataframe_records": [record]})
        url = f"http://127.0.0.1:{server.port}/invocations"
        asked = subprocess.run(
            ["curl", "-sS", url, "-H", "Content-Type: application/json", "-d", body],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    [predicted] = json.loads(asked.stdout)["predictions"]
    assert predicted["prediction"] in ("yes", "no")
    assert predicted["probability_no"] + predicted["probability_yes"] == pytest.approx(1)
    # The same model, asked through Spark from the study directory, gives the same answer.
    command(home, "predict", "studies/my", "--input", "my.csv", "--output", "predicted", "--columns", "paid")
    scored = pd.read_parquet(home / "predicted").set_index("paid").loc[record["paid"]]
    assert scored["prediction"] == predicted["prediction"]
    assert scored["probability_yes"] == pytest.approx(predicted["probability_yes"], rel=1e-6)
