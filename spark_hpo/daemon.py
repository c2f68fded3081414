"""The parent of Spark's Python workers, with torch loaded: `spark.python.daemon.module=spark_hpo.daemon`.

Workers are forked from it, so a rank finds torch and the readers imported already. With
`spark.python.worker.reuse=false` every rank is a fresh process that leaks nothing into the next trial,
at the price of a fork. Nothing here may start a thread: a fork would lose it.
"""

import contextlib

from pyspark.daemon import manager

with contextlib.suppress(ImportError):
    import spark_hpo.train.worker  # noqa: F401 - torch, numpy and pyarrow come with it
with contextlib.suppress(ImportError):
    # Every optimizer imports it when it is made, and that takes longer than a short rung.
    import torch._dynamo  # noqa: F401
with contextlib.suppress(ImportError):
    import petastorm.reader  # noqa: F401

if __name__ == "__main__":
    manager()  # type: ignore[no-untyped-call] # Spark's gap
