"""Files of users' code, imported under names of their own."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from spark_hpo.data.encoders import find_transform
from spark_hpo.driver.plan import load_transforms
from spark_hpo.errors import ConfigError
from spark_hpo.user_code.source_file import SourceFile, without_digest
from tests.support.tables import clusters_study


def load(path: Path) -> SourceFile:
    return SourceFile.load(path, key="task", value=f"{path.name}:Task")


def write(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "my_code.py"
    path.write_text(text)
    return path


def test_files_of_one_name_are_different_modules(tmp_path: Path) -> None:
    sources = [load(write(tmp_path / folder, f"value = {folder!r}")) for folder in ("a", "b")]
    modules = [importlib.import_module(source.module) for source in sources]
    assert [module.value for module in modules] == ["a", "b"]


def test_edited_file_is_a_new_module_and_an_equal_one_is_not(tmp_path: Path) -> None:
    first = load(write(tmp_path / "a", "value = 1"))
    assert load(tmp_path / "a/my_code.py") == first
    second = load(write(tmp_path / "a", "value = 2"))
    assert importlib.import_module(second.module).value == 2


def test_file_may_import_a_module_beside_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a", "from module_beside import value")
    (tmp_path / "a/module_beside.py").write_text("value = 3")
    assert importlib.import_module(load(path).module).value == 3


@pytest.mark.parametrize("text", [None, "import nothing_like_this", "1 / 0", "("])
def test_file_that_cannot_be_imported_is_refused_and_can_be_fixed(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "a/my_code.py"
    if text is not None:
        write(tmp_path / "a", text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert (caught.value.key, caught.value.value) == ("task", "my_code.py:Task")
    assert importlib.import_module(load(write(tmp_path / "a", "value = 4")).module).value == 4


def test_copy_is_importable_under_the_same_name(tmp_path: Path) -> None:
    source = load(write(tmp_path / "a", "value = 5"))
    assert source.copy_to(tmp_path) == tmp_path / f"{source.module}.py"


def test_transforms_in_files_of_one_name_are_different_functions(tmp_path: Path) -> None:
    decoded = []
    for folder in ("a", "b"):
        write(tmp_path / folder, f"def decode(value):\n    return {folder!r}")
        data = {"path": "table", "transforms": {"pixels": "my_code.py:decode"}}
        config = clusters_study(tmp_path, data=data).with_source(str(tmp_path / folder / "study.yaml"))
        references, [source] = load_transforms(config)
        decoded.append(find_transform(references["pixels"])(b""))
        assert without_digest(references["pixels"]) == "my_code:decode"
        assert source.path == tmp_path / folder / "my_code.py"
    assert decoded == ["a", "b"]
