"""The parent process of Spark's Python workers (`spark.python.daemon.module=spark_hpo.daemon`).

It imports torch and the readers once. Workers are forked from it, so ranks do not have to import them. With
`spark.python.worker.reuse=false` every rank is a new process that leaks nothing into the next trial, at the
price of a fork. Nothing here may start a thread, because a fork does not copy threads.
"""

import contextlib
import importlib
import os
import socket
import sys
import zipimport
from typing import BinaryIO

from spark_hpo.backend.collector import collector_off

if __name__ == "__main__":
    os.setpgid(0, 0)  # as PySpark does, but before the slow imports: Ctrl-C must not reach this process

with collector_off():
    import pyspark.worker
    from pyspark import daemon

    try:
        from spark_hpo.backend import strays
        from spark_hpo.backend.spark import orphans
    except ImportError:  # psutil is not installed on this executor
        orphans = None  # type: ignore[assignment]
    with contextlib.suppress(ImportError):
        import spark_hpo.backend.spark.task
    with contextlib.suppress(ImportError):
        import spark_hpo.train.preload  # noqa: F401
    with contextlib.suppress(ImportError):
        import petastorm.reader  # noqa: F401
    for _name in filter(None, os.environ.get("SPARK_HPO_PRELOAD", "").split(",")):
        # What only some studies need: the driver sets spark.executorEnv.SPARK_HPO_PRELOAD.
        with contextlib.suppress(ImportError):
            importlib.import_module(_name)

_worker_main = pyspark.worker.main


def _run_worker(infile: BinaryIO, outfile: BinaryIO) -> None:
    """Run Spark's own worker, with a socket that acknowledges at once.

    The JVM sends small pieces, each after the previous one was acknowledged (Nagle's algorithm). The kernel
    delays acknowledgements by 40 ms once the worker has sent something, such as its process id.
    """
    # AttributeError: not on Linux. OSError: not TCP; newer versions of Spark use Unix sockets.
    with contextlib.suppress(AttributeError, OSError), socket.socket(fileno=os.dup(infile.fileno())) as same:
        same.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
    if orphans is not None:
        strays.mark()
    _worker_main(infile, outfile)  # type: ignore[no-untyped-call] # Spark's gap


def _drop_zip_importers() -> None:
    """Save every worker from reading the directory of pyspark.zip, which takes 80 ms per rank.

    Workers call importlib.invalidate_caches(). Up to Python 3.11 that makes the importer of each package in a
    zip file read the whole directory again. An importer that is still needed is created again.
    """
    for path, finder in list(sys.path_importer_cache.items()):
        if isinstance(finder, zipimport.zipimporter):
            del sys.path_importer_cache[path]


if __name__ == "__main__":
    # Spark 3.5 and 4.0 have imported the worker by now; later versions import it in each worker.
    daemon.worker_main = pyspark.worker.main = _run_worker
    _drop_zip_importers()
    if orphans is not None:
        orphans.adopt(daemon)
    daemon.manager()  # type: ignore[no-untyped-call] # Spark's gap
