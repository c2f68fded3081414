"""This package as a zip file and as a folder."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from spark_hpo.backend.spark import package

ROOT = Path(__file__).parents[3]


def test_write_zip_has_every_file_and_is_reproducible(tmp_path: Path) -> None:
    first, second = (package.write_zip(tmp_path / name / "spark_hpo.zip") for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    files = {file.relative_to(ROOT) for file in (ROOT / "spark_hpo").rglob("*") if file.is_file()}
    whole = {str(file) for file in files if "__pycache__" not in file.parts}
    assert set(zipfile.ZipFile(first).namelist()) == whole
    assert "spark_hpo/report/templates/page.html.jinja" in whole


def test_package_imported_from_a_zip_writes_the_same_zip_and_folder(tmp_path: Path) -> None:
    archive = package.write_zip(tmp_path / "spark_hpo.zip")
    program = """
import pathlib, sys
sys.path.insert(0, sys.argv[1])
from spark_hpo.backend.spark import package
assert ".zip" in package.__file__
here = pathlib.Path(sys.argv[2])
print(package.as_folder(here / "folder"))
package.write_zip(here / "again.zip")
"""
    command = [sys.executable, "-c", program, str(archive), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60, check=True)
    assert (tmp_path / "again.zip").read_bytes() == archive.read_bytes()
    folder = Path(done.stdout.strip())
    shipped = {file.relative_to(folder) for file in folder.rglob("*.py")}
    assert shipped == {file.relative_to(ROOT / "spark_hpo") for file in (ROOT / "spark_hpo").rglob("*.py")}
    assert package.as_folder(tmp_path) == ROOT / "spark_hpo"
