"""The reader protocol: planned segments in, checked columns out."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Generator, Sequence
from enum import StrEnum
from typing import Protocol, runtime_checkable

from spark_hpo.data.blocks import Blocks
from spark_hpo.data.encode import Columns
from spark_hpo.data.plan.manifest import Manifest
from spark_hpo.data.plan.shards import Segment
from spark_hpo.data.schema import TableSchema
from spark_hpo.errors import ConfigError, suggestion
from spark_hpo.user_code.plugins import load_plugin, plugin_names


class ReaderName(StrEnum):
    """Built-in values of `data.reader`. Plugins can add more."""

    PETASTORM = "petastorm"
    ARROW = "arrow"
    AUTO = "auto"


class Reader(Protocol):
    """Reads the columns of a table without shuffling, dropping or adding rows.

    A trace: read([a, b]) -> the columns of a; the columns of b.
    """

    def read(self, segments: Sequence[Segment]) -> Generator[Columns, None, None]:
        """Yield the columns of each segment, in the order given. Closing the generator ends its threads.

        Raises:
            DataError: a file cannot be read, or its contents do not match its footer.
        """
        ...


@runtime_checkable
class KeepsBlocks(Reader, Protocol):
    """A reader that keeps its data as blocks, so that rows of several segments can be gathered at once."""

    def locate(self, segments: Sequence[Segment]) -> Generator[tuple[Blocks, range], None, None]:
        """Yield, for each segment, read-only blocks and the range of their rows that is the segment."""
        ...


def resolve_reader(name: str) -> str:
    """Return the reader that `name` selects here; `auto` selects Petastorm where it can be imported.

    Raises:
        ConfigError: the reader does not exist, or it cannot be imported.
    """
    if name not in list(ReaderName):
        _plugin(name)
        return name
    if name == ReaderName.ARROW:
        return ReaderName.ARROW
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Petastorm warns about future deprecations
            importlib.import_module("petastorm.reader")
    except Exception as exc:  # with a newer pyarrow, the import can raise any exception
        if name == ReaderName.AUTO:
            return ReaderName.ARROW
        raise ConfigError(
            f"cannot be imported here: {exc}",
            key="reader",
            value=name,
            cure="Run `pip install petastorm==0.12.1 'pyarrow<15' 'numpy<2'`, or use the reader arrow",
        ) from exc
    return ReaderName.PETASTORM


def open_reader(name: str, manifest: Manifest, schema: TableSchema) -> Reader:
    """Open the reader called `name` on the files of a manifest."""
    if name not in list(ReaderName):
        reader: Reader = _plugin(name)(manifest, schema)
        return reader
    if resolve_reader(name) == ReaderName.PETASTORM:
        from spark_hpo.data.readers.petastorm_reader import PetastormReader

        return PetastormReader(manifest, schema)
    from spark_hpo.data.readers.arrow_reader import ArrowReader

    return ArrowReader(manifest, schema)


def _plugin(name: str) -> Callable[[Manifest, TableSchema], Reader]:
    """Return the factory of a reader that a plugin provides."""
    make: Callable[[Manifest, TableSchema], Reader] | None = load_plugin("reader", name)
    if make is None:
        names = dict.fromkeys([*ReaderName, *plugin_names("reader")])
        raise ConfigError("is not a valid reader", key="reader", value=name, cure=suggestion(name, names))
    return make
