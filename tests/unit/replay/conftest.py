"""A small folder of learning curves, in the format of real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

EPOCHS = 4
CONFIGS = 30


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two tasks of 30 configurations: accuracy rises to 1 - (lr's distance to 0.01), the last two diverge."""
    folder = tmp_path / "curves"
    folder.mkdir()
    (folder / "benchmark.yaml").write_text("name: small\nmetric: accuracy\nmode: max\nmax_resource: 4\n")
    rng = np.random.default_rng(0)
    configs = pd.DataFrame(
        {
            "config_id": np.arange(100, 100 + CONFIGS),
            "lr": np.exp(rng.uniform(np.log(1e-4), 0.0, CONFIGS)),
            "layers": rng.integers(1, 6, CONFIGS),
        }
    )
    configs.to_parquet(folder / "configs.parquet")
    rows = []
    for task in ("a", "b"):
        for number, (config_id, lr) in enumerate(zip(configs["config_id"], configs["lr"], strict=True)):
            final = 1.0 - abs(np.log10(lr) + 2.0) / 2.0
            for epoch in range(1, EPOCHS + 1):
                diverged = number >= CONFIGS - 2 and epoch >= 3
                rows.append(
                    {
                        "task": task,
                        "config_id": config_id,
                        "resource": epoch,
                        "elapsed_s": np.nan if diverged else 10.0 * epoch,
                        "accuracy": np.nan if diverged else final * epoch / EPOCHS,
                    }
                )
    pd.DataFrame(rows).to_parquet(folder / "curves.parquet")
    return folder
