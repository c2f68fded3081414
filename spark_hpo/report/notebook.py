"""What depends on running in a notebook."""

from __future__ import annotations

import sys
from weakref import WeakKeyDictionary

_SHOWN: WeakKeyDictionary[object, int | None] = WeakKeyDictionary()  # in which cell it was shown last


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook: IPython's shell of a terminal is none."""
    ipython = sys.modules.get("IPython")  # in a kernel it has been imported long since
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


def first_show_in_cell(what: object) -> bool:
    """Whether it is shown for the first time in the notebook's cell that runs now."""
    from IPython import get_ipython

    cell = getattr(get_ipython(), "execution_count", None)
    if cell is not None and _SHOWN.get(what) == cell:
        return False
    _SHOWN[what] = cell
    return True
