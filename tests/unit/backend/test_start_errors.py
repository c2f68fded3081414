"""The reason in the output of a JVM that did not start."""

from __future__ import annotations

import pytest

from spark_hpo.backend.spark.start_errors import telling_line

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
