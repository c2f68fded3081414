"""The output folder of a prepared table: complete or absent, and written only once per request."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from spark_hpo.data import files
from spark_hpo.data.schema import TableSchema
from spark_hpo.data.table import EXAMPLE_FILE, SCHEMA_FILE
from spark_hpo.errors import ConfigError, DataError, cause
from spark_hpo.trial import Split

S = TypeVar("S")  # a Spark session, or None

PREPARED_FILE = "prepared.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A prepared table: its location and its contents."""

    output: str
    rows: Mapping[str, int]  # by split
    fresh: bool  # written by this call; False: an earlier call with the same arguments wrote it
    answer: Mapping[str, Any] = field(default_factory=dict)  # synthetic: the score of a perfect model
    remarks: Sequence[str] = ()  # columns and rows that were left out, or read in a special way


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The arguments of one preparation. Equal requests give the same table."""

    output: str  # local path or fsspec URL
    arguments: Mapping[str, Any]  # of JSON types
    overwrite: bool = False

    def fulfil(
        self,
        write: Callable[[S, Request], Prepared],
        start: Callable[[], S],
    ) -> Prepared:
        """Return the table that an earlier equal request wrote, or write it.

        Args:
            start: called only if the table has to be written, for the first argument of `write`.

        Raises:
            ConfigError: the output is another table, or cannot be written.
        """
        found = self.find()
        if found is not None:
            return found
        self._check_writable()
        return write(start(), self)

    def find(self) -> Prepared | None:
        """Return the table that an earlier equal request wrote; None: there is none.

        Raises:
            ConfigError: the output is a table of another request (and `overwrite` is not set), or something
                else than a prepared table.
        """
        output = files.absolute(self.output)
        fs, path = files.filesystem(output)
        record_path = files.join(path, PREPARED_FILE)
        with files.accessing(output):
            if not fs.exists(record_path):
                if fs.exists(path) and fs.ls(path):
                    # Not even with overwrite: it may be a home directory.
                    raise self._bad_output("exists and is not a prepared table")
                return None
            if self.overwrite:
                return None
            try:
                record = json.loads(fs.cat_file(record_path))
            except ValueError as exc:
                raise DataError(f"{record_path}: is not JSON ({exc}): use --overwrite") from exc
        wanted = json.loads(json.dumps(self.arguments))
        if record["arguments"] != wanted:
            changed = sorted(key for key in wanted if record["arguments"].get(key) != wanted[key])
            raise self._bad_output(
                f"holds a table that was prepared with another {', '.join(changed) or 'request'}",
                "Choose another output folder, or use --overwrite",
            )
        return Prepared(
            output=output,
            rows=record["rows"],
            fresh=False,
            answer=record["answer"],
            remarks=record.get("remarks", ()),
        )

    @contextlib.contextmanager
    def writing(self) -> Iterator[str]:
        """Yield a folder to write to, which becomes the output when the block ends without an error."""
        output = files.absolute(self.output)
        if not files.is_local(output):
            # Object stores cannot rename. schema.json is written last, and no reader does without it.
            fs, path = files.filesystem(output)
            if fs.exists(path):
                fs.rm(path, recursive=True)
            yield output
            return
        parent, name = os.path.split(output.rstrip("/"))
        os.makedirs(parent, exist_ok=True)
        working = tempfile.mkdtemp(dir=parent, prefix=f".{name}.")
        os.chmod(working, 0o777 & ~_umask())  # mkdtemp's is 0700; executors may be other users
        try:
            yield working
            _swap(working, output)
        finally:
            shutil.rmtree(working, ignore_errors=True)

    def finish(
        self,
        folder: str,
        schema: TableSchema,
        rows: Mapping[str, int],
        answer: Mapping[str, Any] | None = None,
        remarks: Sequence[str] = (),
        example: Sequence[Any] = (),
    ) -> Prepared:
        """Write `prepared.json` and `schema.json` beside the splits, and a few original rows.

        Raises:
            DataError: a split has no rows.
        """
        empty = [str(split) for split in Split if not rows.get(split)]
        if empty:
            raise DataError(
                f"{self.output}: no rows were assigned to {', '.join(empty)} "
                f"({sum(rows.values())} rows in total): use more rows, or other --fractions"
            )
        counts = {str(split): rows[split] for split in Split}
        answer = dict(answer or {})
        record = {"version": 1, "arguments": self.arguments, "rows": counts, "answer": answer}
        record |= {"remarks": list(remarks)} if remarks else {}
        contents: dict[str, Any] = {EXAMPLE_FILE: list(example)} if example else {}
        for name, content in {**contents, PREPARED_FILE: record, SCHEMA_FILE: schema.to_json()}.items():
            fs, path = files.filesystem(files.join(folder, name))
            fs.pipe_file(path, json.dumps(content, indent=1).encode())
        output = files.absolute(self.output)
        return Prepared(output=output, rows=counts, fresh=True, answer=answer, remarks=tuple(remarks))

    def _check_writable(self) -> None:
        """Create a file where the output will be, and delete it."""
        output = files.absolute(self.output)
        try:
            if files.is_local(output):
                _try_to_create(Path(output).parent)
                return
            fs, path = files.filesystem(files.join(output, f".{uuid.uuid4().hex}"))
            with files.accessing(output):
                fs.pipe_file(path, b"")
                fs.rm_file(path)
        except OSError as exc:
            raise self._bad_output(f"cannot be written: {exc.strerror}") from exc
        except DataError as exc:
            raise self._bad_output(f"cannot be written: {exc}") from cause(exc)

    def _bad_output(self, rule: str, cure: str = "Choose another output folder") -> ConfigError:
        return ConfigError(rule, key="output", value=self.output, cure=cure)


def fingerprint(url: str) -> list[list[Any]]:
    """Names, sizes and modification times of the files at `url`: if they change, the table is another one.

    Raises:
        DataError: there is nothing at `url`.
    """
    fs, path = files.filesystem(files.absolute(url))
    with files.accessing(url):
        entries = [fs.info(path)] if fs.isfile(path) else list(fs.find(path, detail=True).values())
    if not entries:
        raise DataError(f"{url}: no such file or folder, or it is empty. Check the path")
    base = os.path.dirname(path)
    return [[e["name"].removeprefix(base), e["size"], files.modified(e)] for e in entries]


def _try_to_create(folder: Path) -> None:
    """Create a folder and a file in it, and remove what was created.

    Raises:
        OSError: this is not possible.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    finally:
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _swap(new: str, output: str) -> None:
    """Replace `output` by `new`. Between the two renames the output is absent, but never incomplete."""
    old = f"{new}.old"
    if os.path.exists(output):
        os.rename(output, old)
    Path(new).rename(output)
    shutil.rmtree(old, ignore_errors=True)
