"""What the kept studies have searched: a formula, without checkpoints."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def train(ctx: Any) -> None:
    for epoch in range(*ctx.resource):
        loss = (ctx.params["x"] - 0.3) ** 2 + (ctx.params["kind"] == "b") + 1 / (epoch + 1)
        ctx.report({"loss": loss, "size": abs(ctx.params["x"])})
    limit = os.environ.get("EXIT_AFTER")  # in the place of kill -9, after so many assignments
    if limit is not None:
        count = Path("count")
        done = int(count.read_text()) + 1 if count.exists() else 1
        count.write_text(str(done))
        if done == int(limit):
            os._exit(9)
