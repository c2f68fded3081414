"""The arguments `data` and `label` of `tune`, before anything is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from spark_hpo import tune
from spark_hpo.errors import ConfigError, DataError

FRAME = pd.DataFrame({"x": [1.0, 2.0], "y": [0, 1]})


@pytest.mark.parametrize(
    ("data", "label", "key"),
    [
        (FRAME, None, "label"),
        ({"dataframe": FRAME}, None, "label"),
        ({"table": "main.sales"}, None, "label"),
        ({"dataframe": FRAME, "path": "t"}, "y", "data.dataframe"),
        ({"dataframe": FRAME, "prepare": {"source": "digits"}}, "y", "data.dataframe"),
        (FRAME, "z", "data.label"),
        ({"dataframe": FRAME, "drop": ["z"]}, "y", "data.drop"),
        ({"dataframe": True}, "y", "data.dataframe"),
        (None, "y", "data.path"),
    ],
)
def test_tune_names_the_argument_of_a_wrong_table(
    tmp_path: Path, data: Any, label: str | None, key: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        _tune(tmp_path, data, label)
    assert caught.value.key == key


@pytest.mark.parametrize("data", [[1, 2], 3, {"dataframe": "orders"}])
def test_tune_takes_no_other_kind_of_data(tmp_path: Path, data: Any) -> None:
    with pytest.raises(ConfigError, match="DataFrame"):
        _tune(tmp_path, data, "y")


def test_tune_names_columns_of_one_name(tmp_path: Path) -> None:
    twice = pd.DataFrame([[1.0, 2.0, 0]], columns=["x", "x", "y"])
    with pytest.raises(DataError, match="'x'"):
        _tune(tmp_path, twice, "y")


def test_tune_takes_the_section_of_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOOK_URL", raising=False)
    with pytest.raises(ConfigError) as caught:
        _tune(tmp_path, FRAME, "y", notify={"url_variable": "HOOK_URL"})
    assert caught.value.key == "notify.url_variable"


def _tune(folder: Path, data: Any, label: str | None, **settings: Any) -> None:
    tune(
        *("tabular", {"dropout": {"type": "uniform", "low": 0, "high": 1}}),
        metric="accuracy",
        mode="max",
        data=data,
        label=label,
        storage=folder / "study",
        backend="inline",
        mlflow={"tracking_uri": f"sqlite:///{folder}/mlflow.db"},
        **settings,
    )
