import logging
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from spark_hpo.config import StudyConfig, build_config, load_config
from spark_hpo.errors import ConfigError

ROOT = Path(__file__).parents[3]

SMALL = """
name: small
study_dir: studies/small
task: tabular
data: {path: data/small}
objective: {metric: accuracy, mode: max}
space:
  learning_rate: {type: loguniform, low: 1e-4, high: 1e-1}
search: {max_resource: 9}
budget: {trials: 10}
"""


def load(tmp_path: Path, text: str, *overrides: str) -> StudyConfig:
    path = tmp_path / "tune.yaml"
    path.write_text(text)
    return load_config(path, overrides)


def test_load_config_fills_in_defaults(tmp_path: Path) -> None:
    config = load(tmp_path, SMALL)
    assert config.search.method == "default"
    assert config.search.sampler is None
    assert config.resources.world_size == 1
    assert config.data is not None
    assert config.data.reader == "auto"


def test_folds_of_the_data_cross_validate_for_the_epochs_of_the_search(tmp_path: Path) -> None:
    short = load(tmp_path, SMALL, "data.folds=5")
    long = load(tmp_path, SMALL, "search={resource: folds, max_resource: 5, epochs: 9}")
    assert short == long
    assert short.search.has_folds
    assert (short.search.parts, short.search.amount(1), short.search.amount(5)) == (1, "1 fold", "5 folds")


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["data.folds=1"], "search.max_resource"),
        (["data.folds=many"], "search.max_resource"),
        (["data.folds=5", "search.resource=rows"], "data.folds"),
        (["search.epochs=2"], "search.epochs"),
    ],
)
def test_folds_that_do_not_fit_are_refused(tmp_path: Path, overrides: list[str], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, SMALL, *overrides)
    assert caught.value.key == key


def test_driver_backend_refuses_gpus_of_ranks(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, SMALL, "backend=driver", "resources.gpus_per_rank=1")
    assert caught.value.key == "resources.gpus_per_rank"


def test_override_replaces_and_adds_settings(tmp_path: Path) -> None:
    config = load(tmp_path, SMALL, "budget.trials=20", "resources.world_size=2", "training={clip_norm: 1e-1}")
    assert config.budget.trials == 20
    assert config.resources.world_size == 2
    assert config.training.clip_norm == 0.1


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("budget.trials=many", "budget.trials", "many"),
        ("budget.trials=0", "budget.trials", 0),
        ("budget.trials=2.5", "budget.trials", 2.5),
        ("search.reduction_factor=1", "search.reduction_factor", 1),
        ("search.min_resource=10", "search.min_resource", 10),
        ("objective.mode=maximum", "objective.mode", "maximum"),
        ("study_dir=s3://me:hush@bucket/x", "study_dir", None),
        ("data.path=s3://me:hush@bucket/x", "data.path", None),
        ("name=a/b", "name", "a/b"),
        ("data=3", "data", 3),
        ("training.clip_norm=-1", "training.clip_norm", -1),
        ("training.clip_norm=.inf", "training.clip_norm", math.inf),
        ("seed=true", "seed", True),
        ("resources.share=0", "resources.share", 0),
        ("resources.share=-1", "resources.share", -1),
        ("resources.share=.inf", "resources.share", math.inf),
        ("resources.share=.nan", "resources.share", None),
        ("resources.share=most", "resources.share", "most"),
        ("budget={}", "budget", None),
        ("name.first=3", "name", "small"),
        ("objective.limits=[{metric: size}]", "objective.limits.0", None),
        ("objective.also={latency_ms: least}", "objective.also.latency_ms", "least"),
        ("objective.also=[latency_ms]", "objective.also", ["latency_ms"]),
        ("objective.also={accuracy: max}", "objective.also", None),
        ("objective.also={a: min, b: min, c: min, d: min}", "objective.also", None),
        ("stopping.cost=3", "stopping.cost", None),
        ("backend=inline", "resources.world_size", 2),
        ("backend=driver", "resources.world_size", 2),
        ("resources={slots_per_trial: 2}", "resources.slots_per_trial", 2),
        ("mlflow.tracking_uri=databricks", "mlflow.registered_model", "small"),
    ],
)
def test_build_config_names_key_and_value_of_a_mistake(
    tmp_path: Path, override: str, key: str, value: object
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, SMALL, "resources.world_size=2", override)
    error = caught.value
    assert error.key == key
    assert (error.value == value) if value is not None else ("hush" not in str(error))
    assert error.place == (f"override {override!r}" if "first" in override else str(tmp_path / "tune.yaml"))
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("override", "key", "valid"),
    [
        ("search.shceduler=full", "search.shceduler", "'scheduler'"),
        ("bugdet.trials=3", "bugdet", "'budget'"),
    ],
)
def test_build_config_suggests_the_nearest_key(tmp_path: Path, override: str, key: str, valid: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, SMALL, override)
    assert caught.value.key == key
    assert valid in caught.value.cure


@pytest.mark.parametrize("override", ["budget", "=3", "space=[1", "a..b=1"])
def test_override_that_is_malformed_is_quoted(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, SMALL, override)
    assert caught.value.place == f"override {override!r}"


def test_build_config_masks_the_value_of_a_secret_key() -> None:
    record = {**yaml.safe_load(SMALL), "mlflow": {"token": "hush-hush"}}
    with pytest.raises(ConfigError) as caught:
        build_config(record, place="x")
    assert "hush-hush" not in str(caught.value)


def test_config_knows_its_source_and_resolves_paths_beside_it(tmp_path: Path) -> None:
    config = load(tmp_path, SMALL)
    assert config.source == str(tmp_path / "tune.yaml")
    assert config.beside("task.py") == tmp_path.resolve() / "task.py"
    assert config.with_source("tune()").source == "tune()"
    assert config.source == str(tmp_path / "tune.yaml")


def test_build_config_converts_a_dbfs_url_to_its_mount(tmp_path: Path) -> None:
    config = load(tmp_path, SMALL, "study_dir=dbfs:/mnt/studies/x", "data.path=dbfs:///mnt/table")
    assert config.data is not None
    assert (config.study_dir, config.data.path) == ("/dbfs/mnt/studies/x", "/dbfs/mnt/table")


def test_build_config_reports_all_mistakes_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, SMALL, "budget.trials=0", "task=3", "objective.metrik=loss")
    assert len(str(caught.value).splitlines()) == 3


def test_build_config_asks_for_a_setting_without_a_default(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tune\.yaml: objective is missing"):
        load(tmp_path, SMALL.replace("objective: {metric: accuracy, mode: max}\n", ""))


def test_study_file_with_a_duplicate_key_is_refused_with_the_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"line 12: .*'seed'"):
        load(tmp_path, SMALL + "seed: 1\nseed: 2\n")


@pytest.mark.parametrize("text", ["", "- a\n- b", "just text", "a: [", "\x00", "? {a: b}\n: c", "a: &x [*x]"])
def test_study_file_that_is_not_a_mapping_is_refused_with_its_path(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"tune\.yaml"):
        load(tmp_path, text)


def test_study_file_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: the study file cannot be read: No such file"):
        load_config(tmp_path / "none.yaml")


def test_study_file_that_is_misspelt_gets_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"Did you mean .*conf/quickstart\.yaml\?"):
        load_config(ROOT / "conf/quikstart.yaml")


def test_study_file_unlike_all_others_gets_no_guess() -> None:
    with pytest.raises(ConfigError, match=r"cannot be read: No such file or directory\Z"):
        load_config(ROOT / "conf/nowhere.yaml")


@pytest.mark.parametrize(
    "file", sorted({*(ROOT / "conf").glob("*.yaml")} - {ROOT / "conf/dvc.yaml"}), ids=lambda file: file.name
)
def test_shipped_study_files_are_valid(file: Path) -> None:
    load_config(file)


def test_config_survives_a_round_trip_through_json(tmp_path: Path) -> None:
    config = load(tmp_path, SMALL, "data.prepare=[digits, --seed, 3]", "objective.also={latency_ms: min}")
    assert build_config(config.model_dump(mode="json"), place="study.json") == config


keys = st.sampled_from([*StudyConfig.model_fields, "trials", "low", "type", "nonsense"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=8,
)


@given(st.dictionaries(keys, values, max_size=4))
def test_build_config_of_any_yaml_returns_or_raises_with_a_place(changes: dict[str, Any]) -> None:
    record = {**yaml.safe_load(SMALL), **changes}
    message = ""
    try:
        build_config(record, place="any.yaml")
    except ConfigError as exc:
        message = str(exc)
    assert all(line.startswith("any.yaml: ") for line in message.splitlines())


@pytest.mark.parametrize("name", ["a/b", "../up", ".hidden", "a:1", "it's", 'a"b', "a\nb", "", "x" * 256])
def test_registered_model_that_would_be_a_path_is_refused(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_config({**yaml.safe_load(SMALL), "mlflow": {"registered_model": name}}, place="x")
    assert (caught.value.key, caught.value.value) == ("mlflow.registered_model", name)


@pytest.mark.parametrize("name", ["clusters", "catalog.schema.model", "Größe 2", "a-b_c"])
def test_registered_model_accepts_other_names(name: str) -> None:
    config = build_config({**yaml.safe_load(SMALL), "mlflow": {"registered_model": name}}, place="x")
    assert config.mlflow.registered_model == name


class TestDatabricks:
    """Names and defaults only: no workspace is contacted."""

    def build(self, **mlflow: str) -> StudyConfig:
        return build_config({**yaml.safe_load(SMALL), "mlflow": mlflow}, place="x")

    def test_defaults_on_databricks_are_workspace_and_unity_catalog(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert self.build().mlflow.tracking_uri == "sqlite:///mlflow.db"
        assert self.build().registry_uri is None, "the tracking server's own"
        monkeypatch.setenv("DATABRICKS_RUNTIME_VERSION", "18.2")
        config = self.build(registered_model="main.models.digits")
        assert config.mlflow.tracking_uri == "databricks"
        assert config.registry_uri == "databricks-uc"
        assert config.experiment == f"/Shared/{config.name}"
        assert self.build(tracking_uri="http://mlflow:5000").registry_uri is None, "what is said counts"

    def test_registry_uri_keeps_the_profile_of_the_workspace(self) -> None:
        config = self.build(tracking_uri="databricks://team", registered_model="main.models.digits")
        assert config.registry_uri == "databricks-uc://team"

    @pytest.mark.parametrize("name", ["digits", "models.digits", "main..digits", "a.b.c.d"])
    def test_registered_model_in_unity_catalog_needs_three_parts(self, name: str) -> None:
        with pytest.raises(ConfigError) as caught:
            self.build(tracking_uri="databricks", registered_model=name)
        assert (caught.value.key, caught.value.value) == ("mlflow.registered_model", name)
        legacy = self.build(tracking_uri="databricks", registry_uri="databricks", registered_model=name)
        assert legacy.registry_uri == "databricks"

    def test_experiment_in_a_workspace_must_be_a_path(self) -> None:
        with pytest.raises(ConfigError) as caught:
            self.build(tracking_uri="databricks", experiment="digits", registered_model="a.b.c")
        assert (caught.value.key, caught.value.value) == ("mlflow.experiment", "digits")
        path = "/Users/someone@example.com/digits"
        config = self.build(tracking_uri="databricks", experiment=path, registered_model="a.b.c")
        assert config.experiment == path


class TestPrepare:
    @pytest.mark.parametrize(
        ("words", "section"),
        [
            (["digits"], {"source": "digits"}),
            (
                ["digits", "--fractions", "0.7,0.15,0.15", "--row-group-rows", "128", "--json"],
                {"source": "digits", "fractions": [0.7, 0.15, 0.15], "row_group_rows": 128},
            ),
            (
                ["csv", "--input=a.csv", "--label", "y", "--null-values", "?,-", "--as-is", "--drop", "id"],
                {
                    "source": "csv",
                    "input": "a.csv",
                    "label": "y",
                    "null_values": ["?", "-"],
                    "clean": False,
                    "drop": ["id"],
                },
            ),
            (
                "csv --input a.parquet --in-place --where-train 'a < 1' --no-header --separator tab",
                {
                    "source": "csv",
                    "input": "a.parquet",
                    "in_place": True,
                    "where_train": "a < 1",
                    "header": False,
                    "separator": "tab",
                },
            ),
            (
                ["synthetic", "--rows", 100, "--columns", 2, "--noise", 0.2],
                {"source": "synthetic", "rows": 100, "columns": 2, "noise": 0.2},
            ),
        ],
    )
    def test_prepare_as_a_command_line_is_read_with_a_warning(
        self,
        words: Any,
        section: dict[str, Any],
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(logging.getLogger("spark_hpo"), "propagate", True)
        old, new = (
            build_config({**yaml.safe_load(SMALL), "data": {"path": "t", "prepare": prepare}}, place="test")
            for prepare in (words, section)
        )
        assert old == new
        [record] = caplog.records
        assert yaml.safe_load(record.message.partition("section: ")[2]) == section

    @pytest.mark.parametrize(
        ("prepare", "key"),
        [
            ({"source": "excel"}, "source"),
            ({"input": "a.csv"}, "source"),
            ({"source": "csv"}, "input"),
            ({"source": "csv", "input": "a.csv", "lable": "y"}, "lable"),
            ({"source": "csv", "input": "a.csv", "rows": 3}, "rows"),
            ({"source": "digits", "row_group_rows": 0}, "row_group_rows"),
            (["digits", "--row-group-rows", "x"], "row_group_rows"),
            (["csv", "--input"], ""),
            (["csv", "input", "a.csv"], ""),
            ([], "source"),
        ],
    )
    def test_prepare_names_a_wrong_option(self, prepare: Any, key: str) -> None:
        record = {**yaml.safe_load(SMALL), "data": {"path": "t", "prepare": prepare}}
        with pytest.raises(ConfigError) as refused:
            build_config(record, place="test")
        assert refused.value.key == ".".join(filter(None, ("data.prepare", key)))


def test_search_accepts_the_old_name_of_enqueue(tmp_path: Path) -> None:
    config = load(tmp_path, SMALL, "search.first=[{learning_rate: 0.01}]")
    assert config.search.enqueue == ({"learning_rate": 0.01},)
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, SMALL, "search.first=[{learning_rate: 0.01}]", "search.enqueue=[]")
    assert caught.value.key == "search.first"


@pytest.mark.parametrize(
    ("data", "key"),
    [
        ({}, "data.path"),
        ({"label": "y"}, "data.path"),
        ({"path": "t", "table": "main.sales"}, "data.table"),
        ({"table": "main.sales", "query": "SELECT 1", "label": "y"}, "data.query"),
        ({"table": "main.sales"}, "data.label"),
        ({"query": "SELECT * FROM t", "label": "y", "version": 3}, "data.version"),
        ({"path": "t", "label": "y", "prepare": {"source": "digits"}}, "data.label"),
        ({"path": "t", "version": 3, "prepare": {"source": "digits"}}, "data.version"),
        ({"path": "t", "label": "y", "drop": ["y"]}, "data.drop"),
        ({"path": "t", "label": "y", "categorical": ["a"], "numeric": ["a"]}, "data.numeric"),
    ],
)
def test_data_has_one_source_and_settings_that_fit_it(data: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_config({**yaml.safe_load(SMALL), "data": data}, place="test")
    assert caught.value.key == key


def test_data_version_may_be_a_time_as_yaml_reads_it(tmp_path: Path) -> None:
    data = "data={table: main.sales, label: y, version: 2026-01-31 12:00:00}"
    config = load(tmp_path, SMALL, data)
    assert config.data is not None
    assert config.data.version == "2026-01-31T12:00:00"
