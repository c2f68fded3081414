"""The parent of Spark's Python workers, with torch loaded: `spark.python.daemon.module=spark_hpo.daemon`.

Workers are forked from it, so a rank finds torch and the readers imported already. With
`spark.python.worker.reuse=false` every rank is a fresh process that leaks nothing into the next trial,
at the price of a fork. Nothing here may start a thread: a fork would lose it.
"""

import contextlib
import os
import socket
import sys
import zipimport
from typing import BinaryIO

if __name__ == "__main__":
    os.setpgid(0, 0)  # as PySpark does, but before the seconds that follow: Ctrl-C is not for us

import pyspark.worker
from pyspark import daemon

try:
    from spark_hpo.backend.spark import orphans
except ImportError:  # no psutil on this executor
    orphans = None  # type: ignore[assignment]
with contextlib.suppress(ImportError):
    import spark_hpo.backend.spark.task
with contextlib.suppress(ImportError):
    import spark_hpo.train.worker  # noqa: F401 - torch, numpy and pyarrow come with it
with contextlib.suppress(ImportError):
    # Every optimizer imports it when it is made, and that takes longer than a short rung.
    import torch._dynamo  # noqa: F401
with contextlib.suppress(ImportError):
    import petastorm.reader  # noqa: F401

_worker_main = pyspark.worker.main


def _run_worker(infile: BinaryIO, outfile: BinaryIO) -> None:
    """Spark's own worker, whose socket acknowledges at once.

    The JVM sends in small pieces, each when the one before is acknowledged (Nagle), and a kernel takes 40 ms
    for that once the worker has sent something: its process id, or that it knows the secret.
    """
    # AttributeError: not on Linux. OSError: no TCP, newer Sparks have Unix sockets.
    with contextlib.suppress(AttributeError, OSError), socket.socket(fileno=os.dup(infile.fileno())) as same:
        same.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
    if orphans is not None:
        orphans.mark()
    _worker_main(infile, outfile)  # type: ignore[no-untyped-call] # Spark's gap


def _forget_zips() -> None:
    """Spare every worker the directory of pyspark.zip.

    It calls importlib.invalidate_caches(), and up to Python 3.11 that makes the importer of each package in a
    zip read the whole directory again: 80 ms a rank. An importer that is needed once more is made once more.
    """
    for path, finder in list(sys.path_importer_cache.items()):
        if isinstance(finder, zipimport.zipimporter):
            del sys.path_importer_cache[path]


if __name__ == "__main__":
    # Spark 3.5 and 4.0 have imported it by now, later ones do in each worker.
    daemon.worker_main = pyspark.worker.main = _run_worker
    _forget_zips()
    if orphans is not None:
        orphans.adopt(daemon)
    daemon.manager()  # type: ignore[no-untyped-call] # Spark's gap
