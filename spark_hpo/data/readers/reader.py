"""The seam of readers: planned segments in, checked columns out."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Generator, Sequence
from enum import StrEnum
from typing import Protocol, runtime_checkable

from spark_hpo.data.blocks import Blocks
from spark_hpo.data.decode import Columns
from spark_hpo.data.plan.manifest import Manifest
from spark_hpo.data.plan.shards import Segment
from spark_hpo.data.schema import TableSchema
from spark_hpo.errors import ConfigError
from spark_hpo.plugins import load_plugin, plugin_names


class ReaderName(StrEnum):
    """What a study file may say under `reader`, beside what packages bring."""

    PETASTORM = "petastorm"
    ARROW = "arrow"
    AUTO = "auto"


class Reader(Protocol):
    """Reads the columns of a table. It never shuffles, drops or adds a row.

    A trace: read([a, b]) -> the columns of a; the columns of b.
    """

    def read(self, segments: Sequence[Segment]) -> Generator[Columns, None, None]:
        """The columns of each segment, in the order asked for. Closing the generator ends its threads.

        Raises:
            DataError: a file cannot be read, or does not hold what its footer said.
        """
        ...


@runtime_checkable
class KeepsBlocks(Reader, Protocol):
    """A reader that holds what it has read as blocks: rows of several segments are gathered in one go."""

    def locate(self, segments: Sequence[Segment]) -> Generator[tuple[Blocks, range], None, None]:
        """Blocks, and which of their rows are the segment's. Nobody may write to them."""
        ...


def resolve_reader(name: str) -> str:
    """The reader that `name` means here: `auto` is Petastorm wherever it can be imported.

    Raises:
        ConfigError: there is no such reader, or what is asked for cannot be imported.
    """
    if name not in list(ReaderName):
        _plugin(name)
        return name
    if name == ReaderName.ARROW:
        return ReaderName.ARROW
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Petastorm announces what it will one day lose
            importlib.import_module("petastorm.reader")
    except Exception as exc:  # under a newer pyarrow it fails with whatever it misses first
        if name == ReaderName.AUTO:
            return ReaderName.ARROW
        raise ConfigError(
            f"reader is 'petastorm', which cannot be imported here ({exc}): "
            "`pip install 'spark_hpo[petastorm]'`, or choose reader: arrow"
        ) from exc
    return ReaderName.PETASTORM


def open_reader(name: str, manifest: Manifest, schema: TableSchema) -> Reader:
    """The reader called `name` over the files of a manifest."""
    if name not in list(ReaderName):
        reader: Reader = _plugin(name)(manifest, schema)
        return reader
    if resolve_reader(name) == ReaderName.PETASTORM:
        from spark_hpo.data.readers.petastorm_reader import PetastormReader

        return PetastormReader(manifest, schema)
    from spark_hpo.data.readers.arrow_reader import ArrowReader

    return ArrowReader(manifest, schema)


def _plugin(name: str) -> Callable[[Manifest, TableSchema], Reader]:
    """The reader of that name that a package brings."""
    try:
        make: Callable[[Manifest, TableSchema], Reader] | None = load_plugin("reader", name)
    except ConfigError as exc:
        raise ConfigError(f"reader is {exc}") from exc
    if make is None:
        names = dict.fromkeys([*ReaderName, *plugin_names("reader")])
        raise ConfigError(f"reader is {name!r}; it must be one of {', '.join(names)}")
    return make
