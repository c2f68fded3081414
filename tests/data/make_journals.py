"""Writes the studies of this version that later ones must be able to go on with.

    python tests/data/make_journals.py tests/data/journals/<version>

Run it before what a journal holds is changed, and never change what it has written.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

HERE = Path(__file__).parent / "journals"
TUNE = Path(__file__).parents[2] / "jobs" / "tune.py"

COMMON = {
    "task": "task.py:train",
    "backend": "inline",
    "objective": {"metric": "loss", "mode": "min"},
    "space": {
        "x": {"type": "uniform", "low": -1.0, "high": 1.0},
        "kind": {"type": "choice", "options": ["a", "b"]},
    },
}
STUDIES = {
    "hyperband": {"search": {"sampler": "tpe", "scheduler": "hyperband", "max_resource": 9}},
    "default": {"search": {"max_resource": 9}},
    "population": {"search": {"method": "pbt", "max_resource": 6}},
    "objectives": {
        "objective": {"metric": "loss", "mode": "min", "also": {"size": "min"}, "penalties": {"size": 0.01}},
        "search": {"max_resource": 4},
    },
    "first": {
        "search": {
            "method": "asha",
            "max_resource": 9,
            "first": [{"x": 0.25, "kind": "a"}, {"x": -0.5, "kind": "b"}],
        },
        "stopping": {"target": -1.0, "max_trial_failures": 3},
    },
}


def study_file(name: str, trials: int = 12) -> dict[str, object]:
    """The study of this name, without its directory."""
    return {**COMMON, **STUDIES[name], "name": name, "budget": {"trials": trials}}


def main(target: Path) -> None:
    for name in STUDIES:
        for exit_after in (None, "7"):
            with tempfile.TemporaryDirectory() as work:
                shutil.copy(HERE / "task.py", work)
                (Path(work) / "study.yaml").write_text(yaml.safe_dump(study_file(name)))
                command = [sys.executable, str(TUNE), "--config", "study.yaml", "study_dir=study"]
                environment = {**os.environ, **({"EXIT_AFTER": exit_after} if exit_after else {})}
                done = subprocess.run(command, cwd=work, env=environment, check=False)
                assert done.returncode == (9 if exit_after else 0), done
                kept = target / f"{name}-{'killed' if exit_after else 'finished'}"
                shutil.rmtree(kept, ignore_errors=True)
                for part in ("journal", "study.json"):
                    source = Path(work) / "study" / part
                    (shutil.copytree if source.is_dir() else _copy)(source, kept / part)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
