"""Injects faults into every Python process that has this folder first on its path, by environment variables.

- `SLOW_FSYNC_S`: seconds that each fsync takes longer.
- `DIE_AT_WRITE=7`: the process kills itself at its seventh write to a journal; `DIE_HOW` is `before`, `torn`
  (in the middle of the write) or `after`.
"""

import os
import signal
import time

_slow_s = float(os.environ.get("SLOW_FSYNC_S", "0"))
_last = int(os.environ.get("DIE_AT_WRITE", "0"))
_how = os.environ.get("DIE_HOW", "after")

if _slow_s:
    _fsync = os.fsync

    def _slow_fsync(descriptor: int) -> None:
        time.sleep(_slow_s)
        _fsync(descriptor)

    os.fsync = _slow_fsync

if _last:
    _write = os.write
    _count = 0

    def _deadly_write(descriptor: int, data: bytes) -> int:
        global _count
        if "/journal/" not in os.readlink(f"/proc/self/fd/{descriptor}"):
            return _write(descriptor, data)
        _count += 1
        if _count < _last:
            return _write(descriptor, data)
        part = {"before": 0, "torn": len(data) // 2, "after": len(data)}[_how]
        _write(descriptor, data[:part])
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("killed")

    os.write = _deadly_write
