"""The part of the package that is stored with a model: complete, and no more than that."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import sysconfig
from pathlib import Path

import cloudpickle
import pytest

from spark_hpo.driver.served_code import copy_needed, possible_modules, write_loader
from spark_hpo.train.built_in import BUILT_IN_TASKS

PACKAGE = Path(__file__).parents[3] / "spark_hpo"
PREDICTOR = "spark_hpo.train.predictor"


def modules(folder: Path) -> set[str]:
    return {str(file.relative_to(folder).with_suffix("")) for file in folder.rglob("*.py")}


def first_line(program: str, folder: Path, *options: str) -> str:
    """Run a program as MLflow runs a model: with the folder of its code in front."""
    lines = f"import sys; sys.path.insert(0, {str(folder)!r})\n{program}"
    done = subprocess.run(
        [sys.executable, *options, "-c", lines], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_loader_takes_its_own_part_of_the_package_where_none_is_installed(tmp_path: Path) -> None:
    write_loader(PACKAGE, [PREDICTOR], [], tmp_path)
    tasks = {reference.partition(":")[0] for reference in BUILT_IN_TASKS.values()}
    site = sysconfig.get_path("purelib")
    if Path(site, "spark_hpo").exists():
        pytest.skip("the package is installed as a whole beside torch")
    program = (
        f"sys.path.append({site!r})\nimport spark_hpo_model\nimport {', '.join(sorted(tasks))}\n"
        f"print(sys.modules[spark_hpo_model._load_pyfunc.__module__].__file__)"
    )
    # Without site, the editable package is not found.
    found = first_line(program, tmp_path, "-I", "-S")
    assert found == str(tmp_path / "spark_hpo_parts/spark_hpo/train/predictor.py")


def test_loader_leaves_the_installed_package_whole(tmp_path: Path) -> None:
    write_loader(PACKAGE, [PREDICTOR], [], tmp_path)
    program = (
        "import spark_hpo_model\nfrom spark_hpo import tune\nprint(sys.modules[tune.__module__].__file__)"
    )
    assert first_line(program, tmp_path) == str(PACKAGE / "tuning.py")


def test_copy_leaves_out_what_only_a_study_needs(tmp_path: Path) -> None:
    copy = copy_needed(PACKAGE, [PREDICTOR, "spark_hpo.train.tasks.tabular"], [], tmp_path)
    found = modules(copy)
    assert {"train/predictor", "train/tasks/tabular", "data/raw_rows", "errors"} <= found
    assert {name.split("/")[0] for name in found}.isdisjoint({"search", "study", "tracking", "cli", "driver"})
    assert "train/loop" not in found
    assert len(found) < len(modules(PACKAGE)) / 4


def test_copy_has_what_the_users_code_imports(tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "mine.py").write_text(
        "from spark_hpo import Space\n\ndef forward():\n    from spark_hpo.train.tasks import sequence\n"
    )
    found = modules(copy_needed(PACKAGE, [PREDICTOR], [code], tmp_path / "copy"))
    assert {"search/space/space", "train/tasks/sequence"} <= found


def test_possible_modules_are_those_of_globals_and_of_imports_in_functions() -> None:
    program = (
        "from spark_hpo.objective import Objective\n"
        "def build():\n"
        "    from spark_hpo.train.tasks.image import ImageTask\n"
        "    return ImageTask, Objective\n"
    )
    spec = importlib.util.spec_from_loader("__main__", loader=None)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)  # a notebook: pickled by value
    exec(program, module.__dict__)
    names = possible_modules(cloudpickle.dumps(module.build))
    assert {"spark_hpo.objective", "spark_hpo.train.tasks.image"} <= names
