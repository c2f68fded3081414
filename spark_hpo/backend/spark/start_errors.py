"""Turns the errors of a Spark that does not start into one line with Spark's reason and a cure."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkRuntimeError
from pyspark.errors.exceptions.captured import CapturedException
from pyspark.java_gateway import launch_gateway

from spark_hpo.backend.spark.cluster import first_line
from spark_hpo.errors import ConfigError

_GATEWAY_EXITED = "JAVA_GATEWAY_EXITED"
_OF_THE_HOST = ("UnknownHostException", "UnresolvedAddressException", "java.net.BindException")
_HOST_CURE = (
    "This machine's name or address is not usable: correct SPARK_LOCAL_HOSTNAME or SPARK_LOCAL_IP if it is "
    "set; otherwise add the name that `hostname` prints to /etc/hosts, or set SPARK_LOCAL_IP=127.0.0.1 if "
    "Spark runs on this machine alone"
)
_JAVA_CURE = (
    "Install Java 17 or 21 (apt-get install openjdk-17-jre-headless, brew install openjdk@17), and set "
    "JAVA_HOME to it"
)
# Lines without a reason: of a stack trace, and of Spark's launcher after it has found no java.
_SKIPPED = re.compile(r"\s*(at .*\(.*\)|\.\.\. \d+ more|.*CMD: bad array subscript)\s*")


@contextlib.contextmanager
def explained_start() -> Iterator[None]:
    """Translate the errors of code that starts Spark's JVM and its application.

    Raises:
        ConfigError: Spark does not start; the message has the reason that Spark gives.
    """
    try:
        yield
    except PySparkRuntimeError as exc:
        if _GATEWAY_EXITED not in str(exc):
            raise
        raise _error(_reason_of_the_jvm()) from exc
    except Py4JJavaError as exc:
        raise _error(_root_cause(exc)) from exc
    except CapturedException as exc:  # of a process that has had a session before
        raise _error(f"{type(exc).__name__}: {first_line(exc)}") from exc
    except FileNotFoundError as exc:  # spark-submit itself is missing
        raise _error(f"{exc.filename}: {exc.strerror}", cure="Correct SPARK_HOME") from exc


def _error(reason: str, *, cure: str = "") -> ConfigError:
    is_host = any(name in reason for name in _OF_THE_HOST)
    is_other = "Exception" in reason and not is_host  # of Spark's own code, so Java works
    home = os.environ.get("JAVA_HOME")
    where = f"JAVA_HOME is {home}" if home else "JAVA_HOME is not set, so Spark uses the java on the path"
    java = "" if is_host or is_other or cure else f" ({where})"
    if not cure:
        cure = _HOST_CURE if is_host else "Spark's output has the details" if is_other else _JAVA_CURE
    return ConfigError(f"Spark does not start: {reason}{java}", cure=cure)


def _reason_of_the_jvm() -> str:
    """Start the JVM again, and return the last line that it prints before it exits.

    The output of the first attempt went to the standard error of this process, where it cannot be read. What
    a JVM finds before it runs any code, such as a missing module, it prints to its standard output.
    """
    with tempfile.TemporaryFile("w+") as output:
        try:
            gateway = launch_gateway(popen_kwargs={"stdout": output, "stderr": output})  # type: ignore[no-untyped-call]
        except (PySparkRuntimeError, OSError):
            output.seek(0)
            return telling_line(output.read())
        gateway.shutdown()
        gateway.proc.stdin.close()  # its JVM exits
        return "its JVM exited once, and started when it was tried again"


def telling_line(output: str) -> str:
    """Return the last line of a JVM's output that names the reason: the innermost cause of an exception."""
    lines = [line.strip() for line in output.splitlines() if line.strip() and not _SKIPPED.fullmatch(line)]
    causes = [line.removeprefix("Caused by: ") for line in lines if line.startswith("Caused by: ")]
    if not lines:
        return "its JVM exits without a message"
    return [*lines, *causes][-1].removeprefix('Exception in thread "main" ')


def _root_cause(exc: Py4JJavaError) -> str:
    cause = exc.java_exception
    while (inner := cause.getCause()) is not None:
        cause = inner
    return str(cause.toString())
