"""The parent process of Spark's Python workers."""

from __future__ import annotations

import importlib
import sys
import zipfile
import zipimport
from pathlib import Path

import pytest

from spark_hpo import daemon


def test_drop_zip_importers_leaves_zip_files_importable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "modules.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("spark_hpo_early.py", "")
        file.writestr("spark_hpo_late.py", "value = 3")
    monkeypatch.syspath_prepend(archive)
    importlib.import_module("spark_hpo_early")
    assert isinstance(sys.path_importer_cache[str(archive)], zipimport.zipimporter)
    daemon._drop_zip_importers()
    assert not any(isinstance(one, zipimport.zipimporter) for one in sys.path_importer_cache.values())
    assert importlib.import_module("spark_hpo_late").value == 3
