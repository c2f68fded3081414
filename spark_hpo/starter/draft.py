"""The study file that `init` writes: YAML with a reason beside each choice, validated."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from spark_hpo.config import StudyConfig, build_config
from spark_hpo.data import files
from spark_hpo.data.readers import resolve_reader
from spark_hpo.driver.build import build_table
from spark_hpo.driver.build_search import build_search
from spark_hpo.driver.plan import plan_study
from spark_hpo.driver.rehearsal import measure_pace
from spark_hpo.errors import ConfigError, SparkHpoError
from spark_hpo.redact import has_credentials
from spark_hpo.search.registry import build_space
from spark_hpo.starter.choices import Choices, Speed, choose
from spark_hpo.starter.table_facts import FEW_ROWS, TableFacts, look

_MEASURE_LIMIT_S = 60.0
_LOCAL_MLFLOW = "sqlite:///studies/mlflow.db"


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A study file, and notes for the user."""

    text: str
    config: StudyConfig
    remarks: tuple[str, ...]


def start_study(
    table: str,
    *,
    label: str | Sequence[str] | None = None,
    windows: Mapping[str, Any] | None = None,
    name: str | None = None,
    study_dir: str | None = None,
    tracking_uri: str | None = None,
    world_size: int = 1,
    trust_petastorm_metadata: bool = False,
    measure: bool = False,
) -> Start:
    """Draft a study of a table that runs as it is.

    Args:
        table: a path or fsspec URL of a prepared table, other Parquet, a Delta or Iceberg table, or a CSV; a
            name in Spark's catalog; or a query in SQL.
        label: the column to predict, or several; not needed for a prepared table.
        windows: the section `data.windows`, to forecast the label of a table with a row per series and step.
            If the table has one column of times, `time` may be left out.
        name: the name of the study; None: that of the table.
        study_dir: None: `studies/<name>`.
        tracking_uri: of MLflow; None: MLFLOW_TRACKING_URI, or a database beside the studies.
        world_size: ranks that train one trial together.
        trust_petastorm_metadata: whether to unpickle what Petastorm wrote about the columns.
        measure: train the first trial of a prepared table for some batches, and choose the budget by its
            pace. Takes some seconds, mostly to import torch.

    Raises:
        ConfigError: a label is missing or invalid.
        DataError: the table is missing or cannot be used.
    """
    name = name or _name(table)
    facts = look(
        table,
        labels=[label] if isinstance(label, str) else list(label or ()),
        windows=windows,
        data_path=f"data/{name}-prepared",
        trust_petastorm_metadata=trust_petastorm_metadata,
    )
    places = {"study_dir": study_dir or f"studies/{name}", "tracking_uri": tracking_uri or _tracking_uri()}

    def draft(speed: Speed | None) -> str:
        lines = _lines(facts, choose(facts, speed), name=name, world_size=world_size, **places)
        return "\n".join(lines)

    text = draft(None)
    if measure and not facts.settings:
        text = draft(_speed(yaml.safe_load(text)))
    config = build_config(yaml.safe_load(text), place="the study file")
    build_search(config, build_space(config.space))
    return Start(text=text + "\n", config=config, remarks=(*facts.remarks, *_remarks(facts, world_size)))


def _speed(record: Mapping[str, Any]) -> Speed | None:
    """Measure how fast the first trial of a study trains, in this process; None: it could not be measured."""
    with tempfile.TemporaryDirectory() as folder:
        here = {**record, "backend": "inline", "study_dir": folder, "resources": {"world_size": 1}}
        config = build_config(here, place="the study file")
        try:
            plan = plan_study(config)
            table = build_table(config, {})
            assert table is not None, "a study of a table"
            search = build_search(config, plan.space)
            pace = measure_pace(plan, search, table, timeout_s=_MEASURE_LIMIT_S)
        except SparkHpoError:  # doctor and run say what is wrong
            return None
    if pace is None:
        return None
    slots = max(1, (os.cpu_count() or 1) // int(record["resources"]["world_size"]))
    return Speed(step_s=pace.step_s, start_s=pace.start_s, slots=slots)


def _lines(
    facts: TableFacts, choices: Choices, *, name: str, study_dir: str, tracking_uri: str, world_size: int
) -> Iterator[str]:
    labels = ", ".join(
        f"{_comment(label.name)} ({'a number' if label.is_number else f'{label.classes} classes'})"
        for label in (facts.label, *facts.extra_labels)
    )
    about = f"{facts.train_rows:,} rows for training, {facts.validation_rows:,} for validation"
    yield f"# {_comment(name)}: {labels}; {'about ' if facts.settings else ''}{about}."
    yield f"name: {_flow(name)}"
    yield f"study_dir: {_flow(study_dir)}  # the state of the study; the same command resumes it"
    yield "seed: 1"
    yield f"task: {choices.task}  # {_comment(_about(facts))}; or your own: my_task.py:MyTask"
    yield ""
    yield "data:"
    if facts.path:
        yield f"  path: {_flow(facts.path)}"
    for key, value in facts.settings.items():
        comment = "  # creates it if it does not exist" if key == "prepare" else ""
        yield f"  {key}: {_flow(value)}{comment}"
    if facts.transforms:
        yield f"  transforms: {_flow(dict(facts.transforms))}  # decode bytes"
    yield f"  reader: auto  # {resolve_reader('auto')} here"
    yield ""
    yield f"# {choices.metric_reason[0].upper()}{choices.metric_reason[1:]}."
    yield f"objective: {{metric: {choices.metric}, mode: {choices.mode}}}"
    yield ""
    yield "space:"
    for parameter, values in choices.space.items():
        yield f"  {parameter}: {_flow(values)}"
    yield ""
    yield "search:"
    yield "  method: default  # docs/methods.md compares all methods"
    for i, (key, value) in enumerate(choices.search.items()):
        yield f"  {key}: {_flow(value)}" + (f"  # {choices.search_reason}" if i == 0 else "")
    yield "  enqueue:  # tried first: add the configuration that you use today"
    yield f"    - {_flow(choices.first)}"
    yield ""
    yield f"# {choices.budget_reason[0].upper()}{choices.budget_reason[1:]}."
    yield f"budget: {{trials: {choices.trials}, seconds: {choices.seconds}}}"
    weighted = (
        "  # rare classes count as much as frequent ones" if "class_weights" in choices.training else ""
    )
    yield f"training: {_flow(choices.training)}{weighted}"
    yield f"resources: {{world_size: {world_size}}}  # ranks per trial; with GPUs, add gpus_per_rank: 1"
    yield f"mlflow: {{tracking_uri: {_flow(tracking_uri)}}}"


def _about(facts: TableFacts) -> str:
    if facts.image:
        return "images"
    if facts.is_forecast:
        return "the next values of series"
    if named := facts.texts or facts.lists:
        return f"{'texts' if facts.texts else 'lists'} in {', '.join(named)}"
    categories = len(facts.categories)
    return f"{facts.numbers} numbers, {categories} column{'s' * (categories != 1)} of categories"


def _remarks(facts: TableFacts, world_size: int) -> Iterator[str]:
    if facts.validation_rows < FEW_ROWS and not facts.settings:
        yield (
            f"validation has {facts.validation_rows} rows, so its metric is noisy; cross-validate "
            "(data.folds: 5), or use more rows for validation (--fractions of prepare)"
        )
    if facts.validation_rows < world_size:
        raise ConfigError(
            f"must be at most {facts.validation_rows}, the number of validation rows",
            key="--world-size",
            value=world_size,
        )


def _name(table: str) -> str:
    """The name of the table, made valid for a study."""
    if source := files.catalog_source(table):
        table = "query" if "query" in source else table.rpartition(".")[2]
    last = files.absolute(table).rstrip("/").rpartition("/")[2]
    stem = re.sub(r"\.(parquet|pq|csv|tsv|txt)(\.gz)?$", "", last)
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", stem).strip("-_.")[:80] or "study"


def _tracking_uri() -> str:
    """The tracking URI that MLflow's own clients use. Credentials stay in the environment."""
    known = os.environ.get("MLFLOW_TRACKING_URI")
    if not known and "DATABRICKS_RUNTIME_VERSION" in os.environ:
        return "databricks"
    if known and has_credentials(known):
        raise ConfigError(
            "MLFLOW_TRACKING_URI contains a password, which would be written to the study file",
            cure="Pass --tracking-uri without it, and set MLFLOW_TRACKING_USERNAME and ..._PASSWORD",
        )
    return known or _LOCAL_MLFLOW


def _flow(value: Any) -> str:
    """Format a value as one line of YAML."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_flow(key)}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, float):
        return f"{value:g}" if "e" not in f"{value:g}" else f"{value:.1e}"
    # In a list, because commas need quotes only there.
    line: str = yaml.safe_dump([value], default_flow_style=True, width=1_000_000, allow_unicode=True)
    return line.strip()[1:-1]


def _comment(text: str) -> str:
    return text if text.isprintable() else repr(text)
