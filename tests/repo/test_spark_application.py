"""conf/spark-application.yml: its arguments are ours, and its names are those of conf/kubernetes*.yml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from spark_hpo.config import ResourcesConfig, load_config

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
APPLICATION: dict[str, Any] = yaml.safe_load((CONF / "spark-application.yml").read_text())["spec"]
KUBERNETES: list[dict[str, Any]] = [
    manifest
    for file in ("kubernetes-account.yml", "kubernetes.yml")
    for manifest in yaml.safe_load_all((CONF / file).read_text())
]


def test_arguments_are_settings_of_the_study() -> None:
    option, file, *overrides = APPLICATION["arguments"]
    assert option == "--config"
    [mount] = APPLICATION["driver"]["volumeMounts"]
    assert file == f"{mount['mountPath']}/study.yaml"
    load_config(CONF / "quickstart.yaml", overrides)


def test_files_are_those_of_the_image() -> None:
    path = APPLICATION["mainApplicationFile"].removeprefix("local:///opt/spark_hpo/")
    assert (ROOT / path).is_file()
    job = next(manifest for manifest in KUBERNETES if manifest["kind"] == "Job")
    [driver] = job["spec"]["template"]["spec"]["containers"]
    assert APPLICATION["image"] == driver["image"]
    accounts = [m["metadata"]["name"] for m in KUBERNETES if m["kind"] == "ServiceAccount"]
    assert [APPLICATION["driver"]["serviceAccount"]] == accounts
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    assert f"pyspark=={APPLICATION['sparkVersion']}" in pins


def test_session_has_the_settings_that_every_study_needs() -> None:
    lines = (CONF / "spark-defaults.conf").read_text().splitlines()
    defaults = dict(line.split(maxsplit=1) for line in lines if line.startswith("spark.python."))
    assert defaults.items() <= APPLICATION["sparkConf"].items()


def test_driver_has_time_to_pause_its_study() -> None:
    grace_s = ResourcesConfig().grace_s + 15  # for journal and MLflow
    assert APPLICATION["driver"]["terminationGracePeriodSeconds"] > grace_s
    assert APPLICATION["restartPolicy"]["onFailureRetries"] > 1
