"""The task of the fault tests: its steps take a given time, write traces, and fail on request.

Shipped to executors like a user's file. Its settings are environment variables: `FAULTS`, the folder of
traces and requests, and `STEP_S`.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from spark_hpo.train.task import Batch
from spark_hpo.train.tasks.tabular import TabularTask

FOLDER = Path(os.environ["FAULTS"])
STEP_S = float(os.environ["STEP_S"])
_POLL_S = 0.02
_MEMORY_LIMIT = 6 << 30  # bytes of address space; torch alone uses 2 GiB


class FaultyTask(TabularTask):
    """The tabular task, with a fault for a trial (parameter `fate`) or for a step (a file in `FOLDER`)."""

    def build_model(self) -> nn.Module:
        _hold_writes()
        return super().build_model()

    def build_optimizer(self, model: nn.Module) -> Optimizer:
        self._model = model
        self._optimizer = super().build_optimizer(model)
        return self._optimizer

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        loss = super().loss(outputs, batch)
        if torch.is_grad_enabled():
            loss = self._inject(loss, self._trace(len(outputs)))
        return loss

    def _trace(self, rows: int) -> int:
        """Write down a step. Its number comes from the optimizer, whose state is in checkpoints."""
        states = list(self._optimizer.state.values())
        step = int(states[0]["step"]) if states else 0
        note = {
            "rate": self.params["learning_rate"],  # identifies the trial
            "rank": _rank(),
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "step": step,
            "rows": rows,
            "time": time.time(),
        }
        with (FOLDER / "traces" / f"{socket.gethostname()}-{os.getpid()}.jsonl").open("a") as file:
            file.write(json.dumps(note) + "\n")
        return step

    def _inject(self, loss: Tensor, step: int) -> Tensor:
        time.sleep(STEP_S)
        match self.params.get("fate"):
            case "raise" if step == 3:
                raise ValueError("as it must")
            case "nan":
                return loss * float("nan")
            case "infinity":
                return loss * float("inf")
            case "diverge":
                if step > 9:  # in the second epoch
                    for parameter in self._model.parameters():
                        parameter.data.mul_(1e30)
                return loss * 0  # learns nothing before, so it cannot be the best trial
            case "memory" if step == 3:
                resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_LIMIT, _MEMORY_LIMIT))
                torch.ones(_MEMORY_LIMIT // 4)
            case "killed" if step == 3 and _rank() == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            case "child" if step == 3:
                child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
                (FOLDER / "children" / str(child.pid)).touch()
                self._linger()
        if (FOLDER / "loop").exists() and _once("loop"):
            self._linger()
        return loss

    def _linger(self) -> None:
        """Hang: make no further step, and do not end."""
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            time.sleep(_POLL_S)


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _once(name: str) -> bool:
    """Return True in the first process that sees a request."""
    with contextlib.suppress(FileExistsError):
        (FOLDER / f"{name}-met").touch(exist_ok=False)
        return True
    return False


def _hold_writes() -> None:
    """Delay writes before their last step while there is a file `hold-writes`."""
    if hasattr(os.fsync, "__wrapped__"):
        return
    plain = os.fsync

    @functools.wraps(plain)
    def fsync(descriptor: Any) -> None:
        plain(descriptor)
        if (FOLDER / "hold-writes").exists() and _once("hold-writes"):
            (FOLDER / "held").write_text(str(os.getpid()))
            while (FOLDER / "hold-writes").exists():
                time.sleep(_POLL_S)

    os.fsync = fsync
