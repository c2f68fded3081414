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


def test_defaults_fill_what_is_not_written(tmp_path: Path) -> None:
    config = load(tmp_path, SMALL)
    assert config.search.method == "default"
    assert config.search.sampler is None
    assert config.resources.world_size == 1
    assert config.data is not None
    assert config.data.reader == "auto"


def test_overrides_replace_and_add(tmp_path: Path) -> None:
    config = load(tmp_path, SMALL, "budget.trials=20", "resources.world_size=2", "training={clip_norm: 1e-1}")
    assert config.budget.trials == 20
    assert config.resources.world_size == 2
    assert config.training.clip_norm == 0.1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("search.shceduler=full", r"search\.shceduler: there is no such key. Did you mean 'scheduler'\?"),
        ("bugdet.trials=3", r"bugdet: there is no such key. Did you mean 'budget'\?"),
        ("budget.trials=many", r"budget\.trials is 'many'; it must be an integer"),
        ("budget.trials=0", r"budget\.trials is 0; it must be at least 1"),
        ("budget.trials=2.5", r"budget\.trials is 2\.5; it must be an integer"),
        ("search.reduction_factor=1", r"search\.reduction_factor is 1; it must be at least 2"),
        ("search.min_resource=10", r"min_resource is 10; it must be at most max_resource, 9"),
        ("objective.mode=maximum", r"objective\.mode is 'maximum'; it must be 'min' or 'max'"),
        ("study_dir=s3://me:hush@bucket/x", r"study_dir: it holds a password"),
        ("data.path=s3://me:hush@bucket/x", r"data\.path: it holds a password"),
        ("name=a/b", r"name is 'a/b'; it must be 1 to 100 letters"),
        ("data=3", r"data is 3; it must be a section"),
        ("training.clip_norm=-1", r"training\.clip_norm is -1; it must be above 0"),
        ("training.clip_norm=.nan", r"training\.clip_norm is NaN; it must be"),
        ("seed=true", r"seed is True; it must be an integer"),
        ("budget={}", r"budget: set at least one of trials, resource and seconds"),
        ("budget", r"override 'budget' must be key=value"),
        ("name.first=3", r"name is no section"),
        ("objective.limits=[{metric: size}]", r"the limit on 'size' has neither at_least nor at_most"),
        (
            "objective.also={latency_ms: least}",
            r"objective\.also\.latency_ms is 'least'; it must be 'min' or",
        ),
        ("objective.also=[latency_ms]", r"objective\.also is \['latency_ms'\]; it must be a section"),
        ("objective.also={accuracy: max}", r"objective: also names 'accuracy', which is the metric already"),
        ("objective.also={a: min, b: min, c: min, d: min}", r"also names 4 metrics; it may name at most 3"),
        ("stopping.cost=3", r"stopping: cost and price_per_slot_hour belong together"),
        ("space=[1", r"override 'space=\[1', line 1: this is not valid YAML"),
    ],
)
def test_a_mistake_gets_one_line_with_place_value_and_rule(
    tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(tmp_path, SMALL, override)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_dbfs_address_is_the_path_that_python_sees(tmp_path: Path) -> None:
    config = load(tmp_path, SMALL, "study_dir=dbfs:/mnt/studies/x", "data.path=dbfs:///mnt/table")
    assert config.data is not None
    assert (config.study_dir, config.data.path) == ("/dbfs/mnt/studies/x", "/dbfs/mnt/table")


def test_every_mistake_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, SMALL, "budget.trials=0", "task=3", "objective.metrik=loss")
    assert len(str(caught.value).splitlines()) == 3


def test_what_has_no_default_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tune\.yaml: objective is missing"):
        load(tmp_path, SMALL.replace("objective: {metric: accuracy, mode: max}\n", ""))


def test_a_key_that_stands_twice_is_refused_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"line 12: this is not valid YAML: 'seed' stands twice"):
        load(tmp_path, SMALL + "seed: 1\nseed: 2\n")


@pytest.mark.parametrize("text", ["", "- a\n- b", "just text", "a: [", "\x00", "? {a: b}\n: c", "a: &x [*x]"])
def test_what_is_no_study_file_gets_a_message(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"tune\.yaml"):
        load(tmp_path, text)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: the study file cannot be read: No such file"):
        load_config(tmp_path / "none.yaml")


def test_of_a_file_that_is_spelt_wrong_the_nearest_is_named() -> None:
    with pytest.raises(ConfigError, match=r"Did you mean .*conf/quickstart\.yaml\?"):
        load_config(ROOT / "conf/quikstart.yaml")


@pytest.mark.parametrize("file", sorted((ROOT / "conf").glob("*.yaml")), ids=lambda file: file.name)
def test_the_study_files_that_we_ship_are_valid(file: Path) -> None:
    load_config(file)


def test_a_frozen_configuration_reads_back(tmp_path: Path) -> None:
    config = load(tmp_path, SMALL, "data.prepare=[digits, --seed, 3]", "objective.also={latency_ms: min}")
    assert build_config(config.model_dump(mode="json"), place="study.json") == config


keys = st.sampled_from([*StudyConfig.model_fields, "trials", "low", "type", "nonsense"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=8,
)


@given(st.dictionaries(keys, values, max_size=4))
def test_any_yaml_is_a_study_or_an_error_with_a_place(changes: dict[str, Any]) -> None:
    record = {**yaml.safe_load(SMALL), **changes}
    message = ""
    try:
        build_config(record, place="any.yaml")
    except ConfigError as exc:
        message = str(exc)
    assert all(line.startswith("any.yaml: ") for line in message.splitlines())


@pytest.mark.parametrize("name", ["a/b", "../up", ".hidden", "a:1", "it's", 'a"b', "a\nb", "", "x" * 256])
def test_the_name_of_a_registered_model_is_no_path(name: str) -> None:
    with pytest.raises(ConfigError, match=r"mlflow\.registered_model: registered_model is "):
        build_config({**yaml.safe_load(SMALL), "mlflow": {"registered_model": name}}, place="x")


@pytest.mark.parametrize("name", ["clusters", "catalog.schema.model", "Größe 2", "a-b_c"])
def test_other_names_of_models_are_taken(name: str) -> None:
    config = build_config({**yaml.safe_load(SMALL), "mlflow": {"registered_model": name}}, place="x")
    assert config.mlflow.registered_model == name


class TestDatabricks:
    """Only what we decide: no workspace was asked."""

    def build(self, **mlflow: str) -> StudyConfig:
        return build_config({**yaml.safe_load(SMALL), "mlflow": mlflow}, place="x")

    def test_inside_of_it_runs_go_to_the_workspace_and_models_to_unity_catalog(
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

    def test_a_profile_of_the_workspace_is_one_of_its_catalog(self) -> None:
        config = self.build(tracking_uri="databricks://team", registered_model="main.models.digits")
        assert config.registry_uri == "databricks-uc://team"

    @pytest.mark.parametrize("name", ["digits", "models.digits", "main..digits", "a.b.c.d"])
    def test_a_model_in_unity_catalog_has_three_names(self, name: str) -> None:
        with pytest.raises(
            ConfigError, match=r"must be catalog\.schema\.model: set mlflow\.registered_model"
        ):
            self.build(tracking_uri="databricks", registered_model=name)
        legacy = self.build(tracking_uri="databricks", registry_uri="databricks", registered_model=name)
        assert legacy.registry_uri == "databricks"

    def test_an_experiment_is_a_path(self) -> None:
        with pytest.raises(ConfigError, match="must be a path in the workspace: /Shared/digits"):
            self.build(tracking_uri="databricks", experiment="digits", registered_model="a.b.c")
        path = "/Users/someone@example.com/digits"
        config = self.build(tracking_uri="databricks", experiment=path, registered_model="a.b.c")
        assert config.experiment == path
