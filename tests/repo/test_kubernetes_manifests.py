"""conf/kubernetes*.yml: against Kubernetes' own schemas, and against each other."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from spark_hpo.config import ResourcesConfig

CONF = Path(__file__).parents[2] / "conf"
MANIFESTS: list[dict[str, Any]] = [
    manifest
    for file in ("kubernetes-account.yml", "kubernetes.yml")
    for manifest in yaml.safe_load_all((CONF / file).read_text())
]
EXECUTOR: dict[str, Any] = yaml.safe_load((CONF / "kubernetes-executor.yml").read_text())
JOB: dict[str, Any] = next(manifest for manifest in MANIFESTS if manifest["kind"] == "Job")
POD: dict[str, Any] = JOB["spec"]["template"]["spec"]


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda manifest: manifest["kind"])
@pytest.mark.parametrize("version", ["1.31", kubernetes_validate.latest_version()])
def test_kubernetes_knows_every_key(manifest: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


def test_executor_template_is_a_pod_without_what_spark_adds() -> None:
    [container] = EXECUTOR["spec"]["containers"]
    assert "image" not in container
    spec = {**EXECUTOR["spec"], "containers": [{**container, "image": "spark"}]}
    kubernetes_validate.validate({**EXECUTOR, "spec": spec}, "1.31", strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**EXECUTOR, "spec": {**spec, "tolerate": []}}, "1.31", strict=True)


def test_driver_pod_has_time_to_pause_its_study() -> None:
    grace_s = ResourcesConfig().grace_s + 15  # for journal and MLflow
    assert POD["terminationGracePeriodSeconds"] > grace_s


def test_job_forwards_signals_and_restarts_the_driver() -> None:
    [driver] = POD["containers"]
    assert driver["args"][0].startswith("exec spark-submit"), "a shell would keep the signal to itself"
    assert POD["restartPolicy"] == "Never", "another pod, on another machine"
    assert JOB["spec"]["backoffLimit"] > 1
    fail, ignore = JOB["spec"]["podFailurePolicy"]["rules"]
    assert (fail["action"], fail["onExitCodes"]["values"]) == ("FailJob", [3, 4])
    assert fail["onExitCodes"]["containerName"] == driver["name"]
    assert ignore == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}


def test_names_in_the_manifests_match() -> None:
    names = {manifest["kind"]: manifest["metadata"]["name"] for manifest in MANIFESTS}
    binding = next(manifest for manifest in MANIFESTS if manifest["kind"] == "RoleBinding")
    assert binding["roleRef"]["name"] == names["Role"]
    assert binding["subjects"][0]["name"] == POD["serviceAccountName"] == names["ServiceAccount"]
    [driver] = POD["containers"]
    assert f"executor.serviceAccountName={names['ServiceAccount']} " in driver["args"][0]
    [mount] = driver["volumeMounts"]
    assert mount["name"] == POD["volumes"][0]["name"]
    text = (CONF / "kubernetes.yml").read_text()
    for file in ("study.yaml", "executor.yml"):
        assert f"--from-file={file}=" in text
        assert f"{mount['mountPath']}/{file}" in driver["args"][0]


def test_discovery_script_lists_gpus_as_spark_expects(tmp_path: Path) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/bash\nprintf '0\\n1\\n'\n")
    smi.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    found = subprocess.run([CONF / "get_gpus.sh"], env={"PATH": path}, capture_output=True, check=True)
    assert json.loads(found.stdout) == {"name": "gpu", "addresses": ["0", "1"]}
