"""Imports what ranks need. A process that ranks are forked from imports this module once, for all of them.

Nothing here may start a thread, because a fork does not copy threads.
"""

import contextlib

with contextlib.suppress(ImportError):
    import spark_hpo.train.worker  # noqa: F401 - imports torch, numpy and pyarrow
with contextlib.suppress(ImportError):
    # Every optimizer imports it when it is created, which takes longer than a short rung.
    import torch._dynamo  # noqa: F401
