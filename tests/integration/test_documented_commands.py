"""Checks every spark-submit in the documentation: its options, Spark settings and study."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from spark_hpo.cli.program import load_command
from spark_hpo.config import load_config
from spark_hpo.config.study_file import read_study_file
from tests.support.command_line_page import parse

pytestmark = pytest.mark.spark

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Spark makes these up from names of the user's.
MADE_UP = [
    re.compile(r"spark\.(driver|executor|task|worker)\.resource\.\w+\.(amount|discoveryScript|vendor)"),
    re.compile(r"spark\.(executorEnv|kubernetes\.driverEnv)\.\w+"),
    re.compile(r"spark\.kubernetes\.(driver|executor)\.volumes\.(emptyDir|hostPath|persistentVolumeClaim).*"),
]
# Where Spark declares its settings: they are known once their class is loaded.
DECLARED = (
    *(
        f"org.apache.spark.internal.config.{name}$"
        for name in ("package", "Python", "UI", "Worker", "Network")
    ),
    *("org.apache.spark.deploy.k8s.Config$", "org.apache.spark.sql.internal.SQLConf$"),
    *("org.apache.spark.sql.internal.StaticSQLConf$", "org.apache.spark.sql.connect.config.Connect$"),
)
# Read without an entry in the registry: by the client of Spark Connect, and by name.
ELSEWHERE = ("spark.master", "spark.remote", "spark.port.maxRetries")


def commands() -> list[tuple[str, str]]:
    """Yield each `spark-submit ...` of a shell block as one line, with its place."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL):
            lines = block.replace("\\\n", " ").splitlines()
            found += [(page.name, line) for line in lines if line.startswith("spark-submit ")]
    [job] = [m for m in yaml.safe_load_all((ROOT / "conf/kubernetes.yml").read_text()) if m["kind"] == "Job"]
    script = job["spec"]["template"]["spec"]["containers"][0]["args"][0]
    found.append(("kubernetes.yml", script.removeprefix("exec ").replace("\\\n", " ").strip()))
    return found


COMMANDS = commands()


@pytest.fixture(scope="module")
def jvm(spark: Any) -> Any:
    for name in DECLARED:
        spark._jvm.java.lang.Class.forName(name)
    return spark._jvm


def is_known(jvm: Any, key: str) -> bool:
    if key in ELSEWHERE or any(made_up.fullmatch(key) for made_up in MADE_UP):
        return True
    return bool(jvm.org.apache.spark.internal.config.ConfigEntry.findEntry(key) is not None)


def parsed(jvm: Any, line: str) -> Any:
    """Parse a command with spark-submit's own parser."""
    line = line.replace("...", "local").replace("/opt/spark_hpo/", f"{ROOT}/")
    listed = jvm.java.util.ArrayList()
    for word in shlex.split(line)[1:]:
        listed.add(f"{ROOT}/{word}" if word.startswith("conf/") else word)
    convert = jvm.scala.jdk.javaapi.CollectionConverters
    environment = jvm.java.util.HashMap()
    environment["HADOOP_CONF_DIR"] = "/etc/hadoop"  # which YARN asks for
    known = jvm.scala.collection.immutable.Map.__getattr__("from")(convert.asScala(environment))
    return jvm.org.apache.spark.deploy.SparkSubmitArguments(convert.asScala(listed).toSeq(), known)


def test_documents_contain_spark_submit_commands() -> None:
    assert {page for page, _ in COMMANDS} >= {
        "cluster.md",
        "command-line.md",
        "kubernetes.md",
        "kubernetes.yml",
    }


@pytest.mark.parametrize("line", [pytest.param(line, id=page) for page, line in COMMANDS])
def test_documented_spark_submit_command_is_valid(jvm: Any, line: str) -> None:
    arguments = parsed(jvm, line)
    given = dict(jvm.scala.jdk.javaapi.CollectionConverters.asJava(arguments.sparkProperties()))
    assert [key for key in given if not is_known(jvm, key)] == []
    job = Path(arguments.primaryResource()).name
    assert (ROOT / "jobs" / job).is_file()
    words = list(jvm.scala.jdk.javaapi.CollectionConverters.asJava(arguments.childArgs()))
    if job == "prepare_data.py":
        parse(load_command("prepare"), words)
        return
    command, file, *overrides = words
    assert command in ("--config", "run")
    path = Path(file) if Path(file).is_absolute() else ROOT / file
    study = path if path.is_file() else ROOT / "conf/quickstart.yaml"  # the reader's own
    read_study_file(study, overrides)
    load_config(study, overrides)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_documented_spark_settings_exist(jvm: Any, page: Path) -> None:
    named = {
        word.rstrip(".")
        for word in re.findall(r"(?<![\w./])spark\.[a-z][\w.]*\*?(?![\w.(])", page.read_text())
    }
    names = {key for key in named if not key.endswith((".conf", ".md", ".yaml", ".zip", ".py", "*"))}
    assert sorted(key for key in names if not is_known(jvm, key)) == []


def test_unknown_spark_setting_is_detected(jvm: Any) -> None:
    assert is_known(jvm, "spark.kubernetes.executor.podTemplateFile")
    assert not is_known(jvm, "spark.kubernetes.executor.podTemplate")
    assert not is_known(jvm, "spark.executor.resource.gpu.number")
    with pytest.raises(Exception, match="Unrecognized option"):
        parsed(jvm, "spark-submit --deploy client jobs/tune.py")
