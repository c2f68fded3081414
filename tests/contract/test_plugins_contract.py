"""The example plugins, installed with pip, pass the contract suites."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from spark_hpo.cli import tune
from spark_hpo.data.plan.manifest import Manifest
from spark_hpo.data.readers import Reader, open_reader
from spark_hpo.data.schema import TableSchema
from spark_hpo.search.registry import build_sampler, build_scheduler
from spark_hpo.search.sampler import Sampler
from spark_hpo.search.samplers.random import RandomSampler
from spark_hpo.search.scheduler import Scheduler
from spark_hpo.search.space import Space
from spark_hpo.testing import ReaderContract, SamplerContract, SchedulerContract
from spark_hpo.testing.samplers import SPACE
from spark_hpo.trial import Params
from spark_hpo.user_code.plugins import plugin_names
from tests.support.asked import best_of
from tests.support.command_line import output, run_in_process
from tests.support.workspace import Workspace

PACKAGE = Path(__file__).parents[1] / "data/plugin_package"


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that pip has installed the package to."""
    folder = tmp_path_factory.mktemp("plugins")
    # A copy, because the build leaves files beside the sources.
    shutil.copytree(PACKAGE, folder / "source", ignore=shutil.ignore_patterns("__pycache__"))
    command = [
        *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"),
        *("--disable-pip-version-check", "--no-index", "--target", "site", "./source"),
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder / "site"))
        importlib.invalidate_caches()
        yield folder / "site"
    for name in [name for name in sys.modules if name.startswith("example_plugins")]:
        del sys.modules[name]


def test_plugins_are_found_by_their_entry_points(installed: Path) -> None:
    names = [plugin_names(noun) for noun in ("sampler", "scheduler", "reader")]
    assert names == [["crossover"], ["audition"], ["logged"]]
    assert type(build_sampler("crossover", SPACE, 0)).__module__ == "example_plugins.crossover"


class TestCrossoverSampler(SamplerContract):
    def build(self, space: Space, seed: int) -> Sampler:
        return build_sampler("crossover", space, seed)


class TestAuditionScheduler(SchedulerContract):
    def build(self, max_trials: int | None) -> Scheduler:
        return build_scheduler("audition", max_resource=9, max_trials=max_trials)


class TestLoggedReader(ReaderContract):
    def build(self, manifest: Manifest, schema: TableSchema) -> Reader:
        return open_reader("logged", manifest, schema)


def loss_of(params: Params) -> float:
    return sum((value - 0.3) ** 2 for value in params.values())


def test_plugin_sampler_beats_random_search() -> None:
    space = Space.from_config({f"x{i}": {"type": "uniform", "low": 0, "high": 1} for i in range(6)})
    seeds = range(5)
    here = sorted(best_of(build_sampler("crossover", space, seed), loss_of, 200) for seed in seeds)
    random = sorted(best_of(RandomSampler(space, seed), loss_of, 200) for seed in seeds)
    assert here[2] < random[2] / 2


def test_study_uses_all_three_plugins(tmp_path: Path) -> None:
    Workspace(tmp_path)
    (tmp_path / "loop.py").write_text(
        "def train(ctx):\n"
        "    rows = sum(len(batch['side']) for batch in ctx.batches(ctx.split))\n"
        "    for _ in range(*ctx.resource):\n"
        "        ctx.report({'accuracy': rows * ctx.params['learning_rate']}, checkpoint={})\n"
        "    if ctx.is_evaluation:\n"
        "        ctx.report({'accuracy': rows * ctx.params['learning_rate']})\n"
    )
    words = [
        *("--config", "tune.yaml", "task=loop.py:train", "backend=inline"),
        *("resources.world_size=1", "budget.trials=8"),
        *("search.sampler=crossover", "search.sampler_settings={num_parents: 2}"),
        *("search.scheduler=audition", "search.scheduler_settings={group: 4}", "data.reader=logged"),
    ]
    done = run_in_process(tune, words, tmp_path)
    answer = output(done).splitlines()[-1]
    assert re.search(r"INFO reading \d+ segments from ", done.stderr)
    assert '"resource": 9' in answer
    assert '"segments": {"run": 10' in answer, "eight auditions, and the best of each four to the end"
