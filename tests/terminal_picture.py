"""Runs a study and draws its terminal output as docs/images/run.svg: `make picture`, some minutes."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console, RenderableType
from rich.text import Text

from spark_hpo.errors import ConfigError
from spark_hpo.report.board import board
from spark_hpo.report.status import StudyState, StudyStatus
from spark_hpo.study_dir.storage import Storage

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs/images/run.svg"
_COMMAND = ["run", "conf/quickstart.yaml", "budget.trials=20"]
_WIDTH = 120  # as answers have it where there is no terminal
_ENOUGH = 8  # trials that are out when the board is drawn


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as told:
        study = f"{folder}/studies/quickstart"
        elsewhere = [f"study_dir={study}", f"data.path={folder}/digits"]
        elsewhere += [f"mlflow.tracking_uri=sqlite:///{folder}/mlflow.db"]
        process = subprocess.Popen(
            [sys.executable, "-m", "spark_hpo", *_COMMAND, *elsewhere],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": str(_WIDTH)},
            stdout=told,
        )
        drawn = _board_under_way(Storage(study), process)
        assert process.wait() == 0, "the study has failed"
        told.seek(0)
        answer = told.read().replace(f"{folder}/", "")
    console = Console(record=True, width=_WIDTH, file=io.StringIO())
    for line, shown in (
        ("spark-hpo watch studies/quickstart", drawn),
        ("spark-hpo " + " ".join(_COMMAND), Text(answer.strip("\n"))),
    ):
        console.print(Text.assemble(("$ ", "bright_black"), (line, "bold")), shown, "", sep="\n")
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    console.save_svg(str(PICTURE), title="spark-hpo")


def _board_under_way(storage: Storage, process: subprocess.Popen[bytes]) -> RenderableType:
    """Return what `watch` shows halfway through the study."""
    while process.poll() is None:
        try:
            status = StudyStatus.read(storage)
        except ConfigError:  # it has just been started
            time.sleep(0.2)
            continue
        out = sum(status.trials.get(state, 0) for state in ("stopped", "completed", "failed"))
        if status.state is StudyState.RUNNING and out >= _ENOUGH and status.running:
            return board(status)
        time.sleep(0.2)
    raise SystemExit("the study has ended before it could be drawn")


if __name__ == "__main__":
    main()
