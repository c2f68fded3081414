"""What stands in a study file, a space, a definition or a journal: a study, or an error with its place."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from spark_hpo.config import build_config, defaults, load_config
from spark_hpo.driver.earlier_studies import read_earlier_trials
from spark_hpo.errors import ConfigError, JournalError, SpaceError
from spark_hpo.objective import Mode, Objective
from spark_hpo.search.registry import build_space
from spark_hpo.study_dir.definition import Definition
from spark_hpo.study_dir.journal import Journal
from spark_hpo.study_dir.storage import Storage
from tests.support.mutations import mutated

ROOT = Path(__file__).parents[2]
QUICKSTART = (ROOT / "conf" / "quickstart.yaml").read_text()
KEPT = ROOT / "tests" / "data" / "journals" / "0.1"
LAUGHS = "\n".join(["a0: &a0 [lol, lol]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60))])
ODD = [
    *("\t", "\0", "\ufeff", "\u2028", "💥", "'", '"', "{", "]", ": ", "- ", "&a ", "*a", "<<: "),
    "!!python/name:os.system ",
]


@st.composite
def broken(draw: st.DrawFn, text: str) -> str:
    """A text with some pieces cut out, doubled or put in."""
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        stop = min(len(text), start + draw(st.integers(0, 12)))
        piece = draw(st.sampled_from([*ODD, "", text[start:stop] * 2]) | st.text(max_size=4))
        text = text[:start] + piece + text[stop:]
    return text


def refusal(kind: type[Exception], read: Callable[[], object]) -> str | None:
    """The message of the one error that reading may raise; None: there was none."""
    try:
        read()
    except kind as exc:
        return str(exc)
    return None


def outcome(data: bytes) -> str | None:
    """The message that a study file gets; None: it is a study."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "broken.yaml"
        path.write_bytes(data)
        message = refusal(ConfigError, lambda: load_config(path))
    return message and message.replace(str(path), "broken.yaml")


@pytest.mark.medium
@given(broken(QUICKSTART))
@example(LAUGHS)
@example("a: &a [*a]")
@example("[" * 5_000)
@example("1: 2\n")
@example("{[1]: 2}")
@example("name: !!python/object/apply:os.system [exit]")
@example("")
@example("seed: 99999999999999999999999999999999999999")
@example("budget: {seconds: .inf}")
@example("a: !!timestamp x")
@example("a: !!int ''")
@example("a: !!bool x")
@example("? !!set {a}\n: 1")
@example("a:\tb\n\tc: d")
def test_broken_study_file_is_named(text: str) -> None:
    message = outcome(text.encode(errors="surrogatepass"))
    assert message is None or message.startswith("broken.yaml")


@given(st.binary(max_size=60))
def test_study_file_of_any_bytes_is_read_or_named(data: bytes) -> None:
    message = outcome(data)
    assert message is not None
    assert message.startswith("broken.yaml")


def test_invalid_yaml_value_is_reported_with_its_line() -> None:
    for value in ("!!timestamp x", "!!int ''", "!!bool x", "2020-99-99", "0x" + "f" * 5_000, str(2**63)):
        message = outcome(f"name: a\nseed: {value}\n".encode())
        assert message is not None
        assert message.startswith("broken.yaml: line 2:"), message
        assert len(message) < 200


SETTINGS_OF_ALL = build_config(
    {**yaml.safe_load(QUICKSTART), "study_dir": "study"}, place="quickstart.yaml"
).model_dump(mode="json")


@given(mutated(SETTINGS_OF_ALL))
def test_any_settings_are_a_study_or_an_error_with_a_place(record: dict[str, Any]) -> None:
    text = yaml.safe_dump(record, allow_unicode=True)
    message = outcome(text.encode())
    assert message is None or all(
        line.startswith("broken.yaml") for line in message.splitlines() if line.strip()
    ), message


def test_aliases_of_aliases_are_refused_before_they_are_written_out() -> None:
    assert "anchors and aliases expand" in (outcome(LAUGHS.encode()) or "")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "low", "high", "options", "when", "q"]), inner, max_size=4)
    ),
    max_leaves=6,
)
TYPES = st.sampled_from(["uniform", "loguniform", "int", "logint", "normal", "choice", "quniform", "nothing"])
SETTINGS = {"low": VALUES, "high": VALUES, "options": VALUES}
PARAMETERS = st.fixed_dictionaries({"type": TYPES}, optional=SETTINGS)


@given(st.dictionaries(st.text(min_size=1, max_size=4), PARAMETERS | VALUES, max_size=3))
def test_build_space_returns_a_space_or_names_the_key(record: dict[str, Any]) -> None:
    message = refusal(SpaceError, lambda: build_space(record))
    assert message is None or message.startswith(("space", "constraints"))


@given(broken((KEPT / "default-killed" / "study.json").read_text()))
@example("[]")
@example("null")
@example("[" * 5_000)
@example('{"study_id": "a", "created_at": 0, "config": 1}')
def test_broken_definition_is_named(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage(folder)
        storage.write("study.json", text.encode(errors="surrogatepass"))
        message = refusal(JournalError, lambda: Definition.load(storage))
        assert message is None or f"{folder}/study.json" in message


@given(broken((KEPT / "default-killed" / "journal" / "000001.jsonl").read_text()))
def test_broken_journal_is_named(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage(folder)
        storage.write("journal/000001.jsonl", text.encode(errors="surrogatepass"))
        message = refusal(JournalError, lambda: Journal(storage, Objective(metric="loss", mode=Mode.MIN)))
        assert message is None or f"{folder}/journal" in message


OBJECTIVE = Objective(metric="loss", mode=Mode.MIN)
RECORDS = [
    json.loads(line)
    for line in (KEPT / "default-killed" / "journal" / "000001.jsonl").read_text().splitlines()
]


def journal_of(folder: str, records: list[Any], epoch: int = 1) -> Journal:
    lines = [json.dumps(record) + "\n" for record in records]
    Storage(folder).write(f"journal/{epoch:06d}.jsonl", "".join(lines).encode())
    return Journal(Storage(folder), OBJECTIVE)


@given(mutated(RECORDS[:6]))
def test_damaged_journal_records_are_named(records: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        message = refusal(JournalError, lambda: journal_of(folder, [*records, *RECORDS[-1:]]))
        assert message is None or f"{folder}/journal" in message


def test_log_without_the_counts_of_earlier_logs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="000001: line 1 is damaged"):
        journal_of(str(tmp_path), RECORDS[1:])


def test_missing_events_of_an_earlier_log_are_detected(tmp_path: Path) -> None:
    """The next driver says how many events it has seen: fewer of them are no smaller study."""
    opened = {**RECORDS[0], "sequence": len(RECORDS) + 1, "after": {"1": len(RECORDS)}}
    journal_of(str(tmp_path), RECORDS)
    assert len(journal_of(str(tmp_path), [opened], epoch=2).past) == len(RECORDS) + 1
    with pytest.raises(JournalError, match=rf"000001: has 5 records, .* {len(RECORDS)}"):
        journal_of(str(tmp_path), RECORDS[:5])
    (tmp_path / "journal" / "000001.jsonl").unlink()
    with pytest.raises(JournalError, match="000001: has 0 records"):
        Journal(Storage(tmp_path), OBJECTIVE)


@pytest.mark.parametrize("wrong", ['{"a": 1}', "[" * 5_000, '[[{"params": {}}]]', '[[{"loss": "x"}]]', "["])
def test_broken_transfer_file_is_named(tmp_path: Path, wrong: str) -> None:
    Storage(tmp_path).write("transfer.json", wrong.encode())
    record = {**yaml.safe_load(QUICKSTART), "study_dir": str(tmp_path)}
    record["search"]["transfer"] = {"studies": ["earlier"]}
    config = build_config(record, place="study.yaml")
    with pytest.raises(JournalError, match=r"transfer\.json is damaged"):
        read_earlier_trials(config, Storage(tmp_path))


def test_definition_of_a_newer_version_is_refused_with_a_fix(tmp_path: Path) -> None:
    record = json.loads((KEPT / "default-killed" / "study.json").read_text())
    Storage(tmp_path).write("study.json", json.dumps({**record, "version": 2}).encode())
    with pytest.raises(JournalError, match=r"newer spark_hpo \(version 2\)"):
        Definition.load(Storage(tmp_path))


def test_settings_that_an_older_version_did_not_know_count_as_not_set() -> None:
    record = {**yaml.safe_load(QUICKSTART), "study_dir": "x"}
    config = build_config(record, place="study.yaml").model_dump(mode="json")
    older = json.loads(json.dumps(config))
    del older["search"]["resource"]
    del older["stopping"]
    del older["training"]["patience"]
    definition = Definition.create(older)
    definition.check(config, defaults=defaults())
    config["training"]["patience"] = 3
    with pytest.raises(ConfigError) as caught:
        definition.check(config, defaults=defaults())
    assert [(error.key, error.value) for error in caught.value.errors] == [("training.patience", 3)]


def test_defaults_are_those_of_a_study_that_sets_nothing() -> None:
    record = yaml.safe_load(QUICKSTART)
    config = build_config({**record, "study_dir": "x"}, place="study.yaml").model_dump(mode="json")
    unset = [key for key in defaults() if key.startswith(("stopping.", "spark", "resources.rank"))]
    assert len(unset) > 5
    for key in unset:
        value: Any = config
        for name in key.split("."):
            value = value[name]
        assert value == defaults()[key], key
