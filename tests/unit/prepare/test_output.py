import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from spark_hpo.errors import ConfigError, DataError
from spark_hpo.prepare.output import Request, fingerprint
from tests.support.tables import CLUSTERS

ROWS = {"train": 8, "validation": 1, "test": 1}


def ask(folder: Path, **arguments: object) -> Request:
    return Request(output=str(folder), arguments={"table": "digits", **arguments})


def make(request: Request, mark: str = "first") -> None:
    with request.writing() as folder:
        (Path(folder) / mark).touch()
        request.finish(folder, CLUSTERS, ROWS)


def test_equal_request_finds_the_existing_table(tmp_path: Path) -> None:
    request = ask(tmp_path / "out", fractions=(0.8, 0.1, 0.1))
    assert request.find() is None
    make(request)
    found = request.find()
    assert found is not None
    assert not found.fresh
    assert found.rows == ROWS


def test_another_request_is_refused_with_what_differs(tmp_path: Path) -> None:
    make(ask(tmp_path / "out", seed=0))
    with pytest.raises(ConfigError, match="another seed") as refused:
        ask(tmp_path / "out", seed=1).find()
    assert refused.value.key == "output"


def test_folder_with_other_files_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    for overwrite in (False, True):
        with pytest.raises(ConfigError) as refused:
            replace(ask(tmp_path), overwrite=overwrite).find()
        assert refused.value.key == "output"


def test_overwrite_replaces_the_whole_folder(tmp_path: Path) -> None:
    make(ask(tmp_path / "out", seed=0))
    again = replace(ask(tmp_path / "out", seed=1), overwrite=True)
    assert again.find() is None
    make(again, "second")
    assert sorted(os.listdir(tmp_path / "out")) == ["prepared.json", "schema.json", "second"]
    assert os.listdir(tmp_path) == ["out"]


def test_interrupted_request_keeps_the_old_table_only(tmp_path: Path) -> None:
    def interrupted(request: Request) -> None:
        with request.writing() as folder:
            (Path(folder) / "half").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted(ask(tmp_path / "out"))
    assert os.listdir(tmp_path) == []
    make(ask(tmp_path / "out"))
    with pytest.raises(KeyboardInterrupt):
        interrupted(ask(tmp_path / "out"))
    assert (tmp_path / "out" / "first").exists()
    assert os.listdir(tmp_path) == ["out"]


def test_empty_split_is_refused(tmp_path: Path) -> None:
    request = ask(tmp_path / "out")
    with pytest.raises(DataError, match=r"no rows.* validation, test \(3 rows"):
        request.finish(str(tmp_path), CLUSTERS, {"train": 3})


def test_request_is_written_beside_the_splits(tmp_path: Path) -> None:
    make(ask(tmp_path / "out", seed=7))
    record = json.loads((tmp_path / "out" / "prepared.json").read_text())
    assert record["arguments"] == {"table": "digits", "seed": 7}
    assert record["rows"] == ROWS


def test_fingerprint_of_the_input_depends_on_its_files(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a\n1\n")
    before = fingerprint(str(tmp_path / "t.csv"))
    assert fingerprint(str(tmp_path / "t.csv")) == before
    os.utime(tmp_path / "t.csv", (1, 1))
    assert fingerprint(str(tmp_path / "t.csv")) != before
    with pytest.raises(DataError, match=r"none\.csv: no such file or folder.*Check the path"):
        fingerprint(str(tmp_path / "none.csv"))
