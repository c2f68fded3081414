"""How CSVs are written, as their first lines show."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from spark_hpo.errors import ConfigError, DataError
from spark_hpo.prepare.csv_request import request
from spark_hpo.prepare.dialect import Dialect, find_dialect
from spark_hpo.prepare.output import fingerprint


def look(path: Path, content: bytes | str, *, separator: str | None = None, header: bool = True) -> Dialect:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return find_dialect(str(path), fingerprint(str(path)), separator, header=header)


@pytest.mark.parametrize(
    ("text", "separator"),
    [
        ("a,b,y\n1,2,3\n", ","),
        ("a;b;y\n1,5;2,25;3\n4,5;6,1;7\n", ";"),
        ("a\tb\n1\t2\n", "\t"),
        ("a|b|c\n1|2|3\n", "|"),
        ("y\n1\n2\n", ","),
        ('name,y\n"Smith; John; Paul",1\n"Fox; Ann; Mary",2\n', ","),
    ],
)
def test_separator_is_the_one_that_gives_lines_of_equal_length(
    tmp_path: Path, text: str, separator: str
) -> None:
    assert look(tmp_path / "t.csv", text).separator == separator


def test_given_separator_is_used(tmp_path: Path) -> None:
    found = look(tmp_path / "t.csv", "a;b,c\n1;2,3\n", separator=";")
    assert (found.separator, found.columns) == (";", ("a", "b,c"))


def test_byte_order_mark_and_spaces_are_removed_from_names(tmp_path: Path) -> None:
    assert look(tmp_path / "t.csv", "\ufeff a , y\n1,2\n").columns == ("a", "y")


@pytest.mark.parametrize(("header", "names"), [("a,b,a", ["'a'"]), ("Day,y,day ", ["'Day'", "'day'"])])
def test_columns_of_one_name_are_refused_by_name(tmp_path: Path, header: str, names: list[str]) -> None:
    with pytest.raises(DataError, match="columns 1 and 3") as refused:
        look(tmp_path / "t.csv", f"{header}\n1,2,3\n")
    assert all(name in str(refused.value) for name in names)


def test_columns_without_a_name_are_not_duplicates(tmp_path: Path) -> None:
    assert look(tmp_path / "t.csv", ",y,\n1,2,3\n").columns == ("", "y", "")


def test_text_that_is_not_utf_8_is_read_as_windows_1252(tmp_path: Path) -> None:
    assert look(tmp_path / "t.csv", "größe,y\n1,2\n").encoding == "UTF-8"
    assert look(tmp_path / "t.csv", "größe,y\n1,2\n".encode("windows-1252")).encoding == "windows-1252"
    # A character that is cut off at the end of the first megabyte is whole.
    assert look(tmp_path / "t.csv", "a,y\n1" + "ö" * 2**19 + ",2\n").encoding == "UTF-8"


def test_fields_with_line_breaks_are_seen(tmp_path: Path) -> None:
    padding = "1,2\n" * 5_000_000  # more than is read in one go anyway
    assert not look(tmp_path / "t.csv", "a,y\n" + padding).many_lines
    assert look(tmp_path / "t.csv", 'a,y\n"two\nlines",2\n' + padding).many_lines


def test_compressed_files_are_looked_into(tmp_path: Path) -> None:
    assert look(tmp_path / "t.csv.gz", gzip.compress(b"a;y\n1;2\n")).columns == ("a", "y")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"5.1,3.5,1.4\n4.9,3.0,1.4\n",
            r"the first line has values \(5.1, 3.5, 1.4\).*--no-header",
        ),
        ("a,y\n1,2\n".encode("utf-16"), "is UTF-16"),
        (b"PK\x03\x04\x00\x00\x00", "is not a text file"),
        (b"", "is empty"),
    ],
    ids=["no header", "UTF-16", "Excel", "empty"],
)
def test_file_that_is_not_a_csv_is_refused_with_one_message(
    tmp_path: Path, content: bytes, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        look(tmp_path / "t.csv", content)


def test_first_line_without_a_header_is_a_row(tmp_path: Path) -> None:
    assert look(tmp_path / "t.csv", "5.1,3.5\n", header=False).columns == ("5.1", "3.5")


def test_missing_label_lists_the_columns(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("size;rooms;price\n1;2;3\n")
    with pytest.raises(ConfigError, match=r"t\.csv has size, rooms, price"):
        request(str(tmp_path / "out"), input=str(tmp_path / "t.csv"))
    with pytest.raises(ConfigError, match="has column1, column2, column3"):
        request(str(tmp_path / "out"), input=str(tmp_path / "t.csv"), header=False)


@pytest.mark.parametrize("options", [{"label": "pirce"}, {"label": "y", "drop": ["pirce"]}])
def test_a_column_that_does_not_exist_is_refused_before_spark_starts(
    tmp_path: Path, options: dict[str, object]
) -> None:
    (tmp_path / "t.csv").write_text("price,y\n1,2\n3,4\n")
    with pytest.raises(DataError, match=r"no column 'pirce'.*'price'"):
        request(str(tmp_path / "out"), input=str(tmp_path / "t.csv"), **options)
