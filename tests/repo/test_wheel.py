"""The wheel, built without the network: the package's files and no others, and what it says of itself."""

from __future__ import annotations

import email
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.message import Message
from itertools import chain
from pathlib import Path

import pytest

import spark_hpo

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    # A copy, because the build leaves files beside the sources, and takes some that an earlier one has left.
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, folder / name)
    for name in ("spark_hpo", "tests/unit/report", "jobs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [
        *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"),
        *("--disable-pip-version-check", "--wheel-dir", "dist", "."),
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    [file] = (folder / "dist").iterdir()
    assert file.name == f"spark_hpo-{spark_hpo.__version__}-py3-none-any.whl"
    return zipfile.ZipFile(file)


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    [name] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return email.message_from_bytes(wheel.read(name))


def test_wheel_contains_the_files_of_the_package_only(wheel: zipfile.ZipFile) -> None:
    files = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "spark_hpo").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert "spark_hpo/py.typed" in files
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert shipped == files, (
        "what is not Python has to be named in pyproject.toml: tool.setuptools.package-data"
    )


def test_wheel_has_its_metadata(metadata: Message) -> None:
    assert metadata["Version"] == spark_hpo.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["License-File"] == "LICENSE"
    assert metadata["Author"] == "spark_hpo contributors"
    assert "Typing :: Typed" in metadata.get_all("Classifier", [])
    assert metadata["Keywords"]
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload().startswith("# spark_hpo\n")


def test_wheel_needs_no_extra_index(metadata: Message) -> None:
    """`pip install` finds everything on PyPI: no direct addresses, no local versions such as +cpu."""
    required = metadata.get_all("Requires-Dist", [])
    assert any(line.startswith("torch") for line in required)
    assert not [line for line in required if "@" in line or "+" in line]


def test_wheel_has_the_documented_extras(metadata: Message) -> None:
    assert {"petastorm", "s3", "optuna", "connect"} <= set(metadata.get_all("Provides-Extra", []))


def test_wheel_contains_the_license(wheel: zipfile.ZipFile) -> None:
    [name] = [name for name in wheel.namelist() if name.endswith("licenses/LICENSE")]
    text = wheel.read(name).decode()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_constraints_pin_every_requirement() -> None:
    """The extras that `make setup` takes, each in one exact version of constraints.txt."""
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines(ROOT / "constraints.txt")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    names = {re.split(r"[^\w-]", line)[0].lower().replace("_", "-") for line in wanted}
    assert names <= pinned


def lines(file: Path) -> list[str]:
    return [line for line in file.read_text().splitlines() if not line.startswith("#")]
