"""The output folder: whole or not there at all, and not made twice."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spark_hpo.data import files
from spark_hpo.data.plan.listing import refuse_table_format
from spark_hpo.data.schema import TableSchema
from spark_hpo.data.table import SCHEMA_FILE
from spark_hpo.errors import ConfigError, DataError
from spark_hpo.trial import Split

PREPARED_FILE = "prepared.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A prepared table: where it is and what is in it."""

    output: str
    rows: Mapping[str, int]  # by split
    fresh: bool  # written now; False: it was there already, made with the same arguments
    answer: Mapping[str, Any] = field(default_factory=dict)  # synthetic: what a perfect model would reach
    remarks: Sequence[str] = ()  # what was left out of the table, or read otherwise than it stands there


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked for. Two equal requests give the same table."""

    output: str  # local path or fsspec URL
    arguments: Mapping[str, Any]  # of JSON types
    overwrite: bool = False

    def found(self) -> Prepared | None:
        """The table that an earlier run has made of the same request, or None.

        Raises:
            ConfigError: the output is another table, which `overwrite` replaces, or no table.
        """
        output = files.absolute(self.output)
        fs, path = files.filesystem(output)
        place = files.join(path, PREPARED_FILE)
        if not fs.exists(place):
            if fs.exists(path) and fs.ls(path):
                # Not even with --overwrite: it may be somebody's home.
                raise ConfigError(f"{output} exists and is not a prepared table: name another --output")
            return None
        if self.overwrite:
            return None
        try:
            record = json.loads(fs.cat_file(place))
        except ValueError as exc:
            raise DataError(f"{place}: not JSON ({exc}): use --overwrite") from exc
        wanted = json.loads(json.dumps(self.arguments))
        if record["arguments"] != wanted:
            other = sorted(k for k in wanted if record["arguments"].get(k) != wanted[k])
            raise ConfigError(
                f"{output} was prepared from another {', '.join(other) or 'request'}: "
                "name another --output, or use --overwrite"
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
        """A folder to write to. It becomes the output when `finish` has been called and nothing failed."""
        output = files.absolute(self.output)
        if not files.is_local(output):
            # An object store renames nothing: schema.json comes last, and nothing reads without it.
            fs, path = files.filesystem(output)
            if fs.exists(path):
                fs.rm(path, recursive=True)
            yield output
            return
        parent, name = os.path.split(output.rstrip("/"))
        os.makedirs(parent, exist_ok=True)
        working = tempfile.mkdtemp(dir=parent, prefix=f".{name}.")
        os.chmod(working, 0o777 & ~_umask())  # mkdtemp's is for its owner alone; executors may be others
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
    ) -> Prepared:
        """Write what is known of the table beside its splits.

        Raises:
            DataError: a split has no rows.
        """
        empty = [str(split) for split in Split if not rows.get(split)]
        if empty:
            raise DataError(
                f"{self.output}: no rows fell into {', '.join(empty)} "
                f"({sum(rows.values())} rows in all): use more rows, or other --fractions"
            )
        counts = {str(split): rows[split] for split in Split}
        answer = dict(answer or {})
        record = {"version": 1, "arguments": self.arguments, "rows": counts, "answer": answer}
        record |= {"remarks": list(remarks)} if remarks else {}
        for name, content in ((PREPARED_FILE, record), (SCHEMA_FILE, schema.to_json())):
            fs, path = files.filesystem(files.join(folder, name))
            fs.pipe_file(path, json.dumps(content, indent=1).encode())
        output = files.absolute(self.output)
        return Prepared(output=output, rows=counts, fresh=True, answer=answer, remarks=tuple(remarks))


def fingerprint(url: str) -> list[list[Any]]:
    """Names, sizes and modification times of the files at `url`: other input, other table.

    Raises:
        DataError: there is nothing at `url`, or its files hold deleted rows too (Delta, Iceberg, Hudi).
    """
    fs, path = files.filesystem(files.absolute(url))
    with files.accessing(url):
        refuse_table_format(fs, path, url)
        entries = [fs.info(path)] if fs.isfile(path) else list(fs.find(path, detail=True).values())
    if not entries:
        raise DataError(f"{url}: no such file or folder, or an empty one: check --input")
    base = os.path.dirname(path)
    return [[e["name"].removeprefix(base), e["size"], files.modified(e)] for e in entries]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _swap(new: str, output: str) -> None:
    """Put `new` in the place of `output`. Between the two renames there is no output, never half of one."""
    old = f"{new}.old"
    if os.path.exists(output):
        os.rename(output, old)
    Path(new).rename(output)
    shutil.rmtree(old, ignore_errors=True)
