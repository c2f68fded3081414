"""The reason in the output of a JVM that did not start."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from pyspark.java_gateway import launch_gateway

from spark_hpo.backend.spark.start_errors import explained_start, telling_line
from spark_hpo.errors import ConfigError

NO_HOST = """WARNING: Using incubator modules: jdk.incubator.vector
Exception in thread "main" java.lang.ExceptionInInitializerError
\tat org.apache.spark.deploy.SparkSubmit.main(SparkSubmit.scala)
Caused by: java.net.UnknownHostException: a: a: Name or service not known
\tat org.apache.spark.util.Utils$.findLocalInetAddress(Utils.scala:879)
\t... 10 more
Caused by: java.net.UnknownHostException: a: Name or service not known
\tat java.base/java.net.Inet6AddressImpl.lookupAllHostAddr(Native Method)
\t... 17 more
"""
OLD_JAVA = """Exception in thread "main" java.lang.UnsupportedClassVersionError: class file version 61.0
\tat java.lang.ClassLoader.defineClass1(Native Method)
"""
NO_JAVA = """/spark/bin/spark-class: line 71: /jdk/bin/java: No such file or directory
/spark/bin/spark-class: line 97: CMD: bad array subscript
"""


@pytest.mark.parametrize(
    ("output", "line"),
    [
        (NO_HOST, "java.net.UnknownHostException: a: Name or service not known"),
        (
            OLD_JAVA,
            "java.lang.UnsupportedClassVersionError: class file version 61.0",
        ),
        (NO_JAVA, "/spark/bin/spark-class: line 71: /jdk/bin/java: No such file or directory"),
        ("", "its JVM exits without a message"),
    ],
)
def test_telling_line_names_the_innermost_cause(output: str, line: str) -> None:
    assert telling_line(output) == line


@pytest.mark.spark
@pytest.mark.medium
def test_reason_of_a_java_that_lacks_a_module_is_its_own_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it runs any code, a JVM prints errors to its standard output."""
    home = os.environ.get("JAVA_HOME")
    real = shutil.which(f"{home}/bin/java" if home else "java")
    java = tmp_path / "bin/java"
    java.parent.mkdir()
    java.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *launcher.Main*) exec "{real}" "$@" ;; esac\n'
        "echo Error occurred during initialization of boot layer\n"
        "echo java.lang.module.FindException: Module jdk.incubator.vector not found\n"
        "exit 1\n"
    )
    java.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with (
        pytest.raises(ConfigError, match=r"FindException: Module jdk\.incubator\.vector not found"),
        explained_start(),
    ):
        launch_gateway()
