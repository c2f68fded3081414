"""A Spark installation in a folder of its own, for `local-cluster`."""

from __future__ import annotations

from pathlib import Path

from tests.support import class_archive
from tests.support.standalone import SPARK


class SparkHome:
    """The installed Spark, with its own folder for the files that `local-cluster` puts beside the jars.

    Its JVMs, including those of executors, start from an archive of classes.
    """

    def __init__(self, folder: Path) -> None:
        home = folder / "spark"
        home.mkdir()
        for path in SPARK.iterdir():
            if path.name != "work":
                (home / path.name).symlink_to(path)
        archive = folder / "classes.jsa"
        self.environment = {
            "SPARK_HOME": str(home),
            "SPARK_LOCAL_IP": "127.0.0.1",
            "JDK_JAVA_OPTIONS": class_archive.java_options(archive),
        }
        class_archive.write(archive, master="local-cluster[1,1,1024]", environment=self.environment)
        self.environment["JDK_JAVA_OPTIONS"] = class_archive.java_options(archive)
