"""The identity of the rows of a DataFrame, from Spark's analysis of it: equal keys, equal rows.

The key covers the analysed plan, the columns, and the files that the plan reads, with the versions of Delta
tables. Spark Connect shows plans only as text, so classic Spark is read the same way.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame

from spark_hpo.data import files
from spark_hpo.errors import DataError
from spark_hpo.prepare.reading import cause_of, changed_settings
from spark_hpo.snapshots.frames import is_pandas, is_spark
from spark_hpo.snapshots.write import ROW_GROUP_ROWS, arrow_table

if TYPE_CHECKING:
    import pandas as pd

    from spark_hpo.snapshots.frames import Frame

_ALL_FIELDS = "spark.sql.debug.maxToStringFields"  # Spark cuts long plans
_FILE_FORMATS = ("avro", "binaryFile", "csv", "json", "orc", "parquet", "text", "xml")
# Leaves of a plan whose rows depend on nothing else than the files that Spark lists.
_KNOWN_LEAVES = re.compile(
    rf"Relation .*\] ({'|'.join(_FILE_FORMATS)})|(HiveTableRelation|Range|OneRowRelation|CTERelationRef)\b.*"
)
_CHANGING = re.compile(
    r"\b(rand|randn|randstr|uniform|uuid|shuffle|monotonically_increasing_id|spark_partition_id|now|"
    r"current_timestamp|current_date|current_time|localtimestamp|first|last|any_value|first_value|last_value)\("
)
_FOREIGN_CODE = re.compile(
    r"^[\s:+-]*\w*(Python|InPandas|InArrow|MapElements|MapPartitions)\w*\b|\bUDF\(", re.M
)
_RANDOM_NAME = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_ID = re.compile(r"#\d+")
_CTE_ID = re.compile(r"(CTERelation(?:Def|Ref)) \d+")
_COMMIT = re.compile(r"(\d{20})\.json")
_DELTA_LOG = "_delta_log"


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameIdentity:
    """The key of a DataFrame, and what it stands for."""

    key: str
    source: Mapping[str, Any] = field(default_factory=dict)  # JSON
    changing: str = (
        ""  # why the same call may give other rows, so that the key is new each time; "": it does not
    )

    def differences(self, before: Mapping[str, Any]) -> list[str]:
        """Describe how the source of an earlier key differs."""
        now, found = self.source, []
        if before.get("columns") != now.get("columns"):
            found.append(f"its columns were {_listed(before)} and are {_listed(now)}")
        elif before.get("plan") != now.get("plan"):
            found.append("its query is another one")
        if before.get("versions") != now.get("versions"):
            found.append(
                f"the versions of its tables were {before.get('versions')} and are {now.get('versions')}"
            )
        elif before.get("files") != now.get("files"):
            found.append(
                f"its input files have changed ({before.get('num_files')} then, {now.get('num_files')} now)"
            )
        return found or ["its rows are others"]


def identify(frame: Frame, place: str) -> FrameIdentity:
    """Compute the key of a DataFrame. Runs no Spark job.

    Args:
        place: the name of the DataFrame in messages.

    Raises:
        DataError: Spark cannot analyse or plan it, or a column cannot be stored as Parquet.
    """
    if is_pandas(frame):
        return _identify_pandas(frame)
    assert is_spark(frame), "there is no third kind"
    try:
        return _identify_spark(frame)
    except (PySparkException, Py4JJavaError) as exc:
        raise DataError(f"{place}: Spark cannot plan it: {cause_of(exc)}") from exc


def _identify_spark(frame: DataFrame) -> FrameIdentity:
    explained = _explain(frame)
    analysed = _section(explained, "Analyzed Logical Plan")
    reason = _changing(explained, analysed)
    inputs = sorted(frame.inputFiles())
    described, cause = _describe(inputs)
    columns = [f"{column.name} {column.dataType.simpleString()}" for column in frame.schema]
    source: dict[str, Any] = {"plan": _hash(_without_ids(analysed)), "columns": columns, **described}
    reason = reason or cause
    return FrameIdentity(key=_key(source, reason), source=source, changing=reason)


def _identify_pandas(frame: pd.DataFrame) -> FrameIdentity:
    table = arrow_table(frame)
    digest = hashlib.sha256()
    for batch in table.combine_chunks().to_batches(ROW_GROUP_ROWS):
        digest.update(batch.serialize())
    columns = [f"{column.name} {column.type}" for column in table.schema]
    source = {"plan": digest.hexdigest()[:32], "columns": columns, "rows": table.num_rows}
    return FrameIdentity(key=_key(source, ""), source=source)


def _explain(frame: DataFrame) -> str:
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(PySparkException):  # managed platforms refuse; `_changing` sees a cut plan
            stack.enter_context(changed_settings(frame.sparkSession, {_ALL_FIELDS: "100000"}))
        text = stack.enter_context(io.StringIO())
        with contextlib.redirect_stdout(text):
            frame.explain(mode="extended")
        return text.getvalue()


def _section(explained: str, title: str) -> str:
    """Return the tree below a title, without the line of column types before it."""
    _, _, rest = explained.partition(f"== {title} ==\n")
    return rest.partition("\n== ")[0].partition("\n")[2]


def _changing(explained: str, analysed: str) -> str:
    """Say why equal plans may give other rows; "" if they do not."""
    if call := _CHANGING.search(analysed):
        return f"it calls {call[1]}()"
    if _FOREIGN_CODE.search(explained):
        return "it calls a function in Python or Scala, whose code may change"
    if " more fields" in analysed or not analysed:
        return "Spark does not show its whole plan"
    lines = [line for line in analysed.splitlines() if line.strip()]
    depths = [len(line) - len(line.lstrip(" :+-")) for line in lines]
    for line, depth, below in zip(lines, depths, [*depths[1:], 0], strict=True):
        node = line.strip(" :+-")
        if below <= depth and not _KNOWN_LEAVES.fullmatch(node):
            return f"Spark does not tell the version of {node.partition(' ')[0]}"
    for line, following in pairwise(lines):
        if "LocalLimit" in line and not following.strip(" :+-").startswith("Sort"):
            return "it has a LIMIT without ORDER BY"
    return ""


def _without_ids(plan: str) -> str:
    """Number the ids of expressions in the order in which they occur: Spark counts them per process."""
    seen: dict[str, str] = {}
    text = _ID.sub(lambda match: seen.setdefault(match[0], f"#{len(seen)}"), plan)
    return _CTE_ID.sub(lambda match: match[1], text)


def _describe(inputs: Sequence[str]) -> tuple[dict[str, Any], str]:
    """Return facts about the files that a plan reads, and why these do not tell their contents, or ""."""
    folders: dict[str, list[str]] = {}
    for uri in inputs:
        path = unquote(uri)
        path = f"/{path.removeprefix('file:').lstrip('/')}" if path.startswith("file:") else path
        path = re.sub(r"^dbfs:/+", "/dbfs/", path)
        folder, _, name = path.rpartition("/")
        folders.setdefault(folder, []).append(name)
    found: list[list[Any]] = []
    versions: dict[str, int] = {}
    reason = ""
    for folder, names in folders.items():
        try:
            infos = _listing(folder)
            versions |= _delta_version(folder)
        except (DataError, OSError, ImportError):
            infos = {}
            if not all(_RANDOM_NAME.search(name) for name in names):
                reason = f"this process cannot list {folder}"
        found += [[folder, name, *infos.get(name, ())] for name in names]
    return {"files": _hash(json.dumps(found)), "num_files": len(found), "versions": versions}, reason


def _listing(folder: str) -> dict[str, tuple[int, float | None]]:
    """Return the size and the modification time of the files in a folder."""
    fs, path = files.filesystem(folder)
    with files.accessing(folder):
        entries = fs.ls(path, detail=True)
    return {entry["name"].rpartition("/")[2]: (entry["size"], files.modified(entry)) for entry in entries}


def _delta_version(folder: str) -> dict[str, int]:
    """Return the version of the Delta table that a folder belongs to: a deletion may change no file."""
    fs, path = files.filesystem(folder)
    with files.accessing(folder):
        while not fs.isdir(f"{path}/{_DELTA_LOG}"):
            path, _, name = path.rpartition("/")
            if "=" not in name or not path:
                return {}
        names = (name.rpartition("/")[2] for name in fs.ls(f"{path}/{_DELTA_LOG}", detail=False))
        return {path: max((int(match[1]) for match in map(_COMMIT.fullmatch, names) if match), default=-1)}


def _key(source: Mapping[str, Any], reason: str) -> str:
    return uuid.uuid4().hex[:24] if reason else _hash(json.dumps(source, sort_keys=True))[:24]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _listed(source: Mapping[str, Any]) -> str:
    return ", ".join(column.partition(" ")[0] for column in source.get("columns", ()))
