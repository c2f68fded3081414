"""From nothing to a first result: `make bench-install`, which builds the wheel and calls this.

A new virtual environment gets `spark_hpo[petastorm]` without pip's cache, beside one that gets torch, pandas
and pyspark alone: what anybody needs who trains on Spark. Then a notebook's kernel starts in it and tunes a
network on a small DataFrame, first without Spark, then in another kernel on a Spark session with two ranks a
trial. Writes docs/benchmarks/install.md; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from nbclient import NotebookClient

from tests.benchmarks.page import FOLDER, Page, machine
from tests.support.notebook import from_cells, printed

ROOT = Path(__file__).parents[2]
INTRODUCTION = """# From nothing to a first result

The seconds that a new user waits: for pip, in a new virtual environment and without its cache, and for a
notebook, from the start of its kernel. The notebook tunes a network on a DataFrame of 2,000 rows. *First
trial* is the time at which the first trial has reported, and *result* the time at which the study of four
trials has ended with a registered model. The operating system has read the files before. `make bench-install`
writes this page.

"""
ROWS = """
import numpy as np, pandas as pd
x = np.random.default_rng(0).normal(size=(2000, 8))
frame = pd.DataFrame(x, columns=list("abcdefgh")).assign(y=np.where(x[:, 0] + x[:, 1] > 0, "yes", "no"))
"""
SESSION = """
from pyspark.sql import SparkSession
spark = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
"""
TUNE = """
import time, spark_hpo
space = {{"learning_rate": {{"type": "loguniform", "low": 1e-4, "high": 1e-1}}}}
result = spark_hpo.tune("tabular", space, data=frame, label="y", metric="accuracy", mode="max", trials=4,
                        max_resource=3, world_size={ranks}, storage="study")
ended = time.time()
"""
ANSWER = """
import json
first = min(trial.ended_at for trial in result.journal.trials.values())
print(json.dumps({"first": first, "result": ended, "accuracy": result.test["accuracy"]}))
"""


class _Environment:
    """A new virtual environment with pip, and a kernel for notebooks beside what is measured."""

    def __init__(self, folder: Path) -> None:
        self.python = folder / "bin/python"
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)

    def install(self, *packages: str) -> float:
        """Return the seconds that pip took."""
        begun = time.perf_counter()
        command = [self.python, "-m", "pip", "install", "--quiet", "--no-cache-dir"]
        subprocess.run([*command, "--constraint", ROOT / "constraints.txt", *packages], check=True)
        return time.perf_counter() - begun

    def run(self, notebook: nbformat.NotebookNode, folder: Path) -> dict[str, float]:
        """Run a notebook in a new kernel of this environment. Returns seconds since its start."""
        folder.mkdir()
        kernel = AsyncKernelManager()
        command = [str(self.python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        kernel._kernel_spec = KernelSpec(argv=command, language="python", display_name="new")
        begun = time.time()
        client = NotebookClient(
            notebook, km=kernel, timeout=240, resources={"metadata": {"path": str(folder)}}
        )
        done = client.execute()
        answer: dict[str, float] = json.loads(printed(done.cells[-1]).splitlines()[-1])
        assert answer["accuracy"] > 0.6
        return {name: answer[name] - begun for name in ("first", "result")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--output", type=Path, default=FOLDER / "install.md")
    arguments = parser.parse_args()

    page = Page(INTRODUCTION)
    page.say(machine(("pyspark", "torch", "mlflow")) + ".")
    page.say()
    with tempfile.TemporaryDirectory(prefix="spark_hpo-") as name:
        folder = Path(name)
        needed = _Environment(folder / "needed").install("torch", "pandas", "pyspark")
        environment = _Environment(folder / "new")
        installed = environment.install(f"{arguments.wheel.resolve()}[petastorm]")
        environment.install("ipykernel")
        alone = environment.run(from_cells(ROWS, TUNE.format(ranks=1), ANSWER), folder / "alone")
        session = environment.run(from_cells(SESSION, ROWS, TUNE.format(ranks=2), ANSWER), folder / "spark")

    page.heading("step", "seconds")
    page.row("`pip install torch pandas pyspark`", f"{needed:.0f}")
    page.row("`pip install 'spark_hpo[petastorm]'`, which includes them", f"{installed:.0f}")
    page.row("without Spark: first trial", f"{alone['first']:.0f}")
    page.row("without Spark: result", f"{alone['result']:.0f}")
    page.row("on `local[2]`, with the session and two ranks: first trial", f"{session['first']:.0f}")
    page.row("on `local[2]`: result", f"{session['result']:.0f}")
    page.write(arguments.output)
    print(json.dumps({"needed": needed, "installed": installed, "alone": alone, "spark": session}))


if __name__ == "__main__":
    main()
