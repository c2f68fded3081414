"""Helpers for notebooks."""

from __future__ import annotations

import sys
from weakref import WeakKeyDictionary

_SHOWN: WeakKeyDictionary[object, int | None] = WeakKeyDictionary()  # cell in which an object was last shown


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook, not an IPython shell in a terminal."""
    ipython = sys.modules.get("IPython")  # a kernel has imported it
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


def first_show_in_cell(what: object) -> bool:
    """Return whether an object has not been shown in the current cell yet."""
    from IPython import get_ipython

    cell = getattr(get_ipython(), "execution_count", None)
    if cell is not None and _SHOWN.get(what) == cell:
        return False
    _SHOWN[what] = cell
    return True
