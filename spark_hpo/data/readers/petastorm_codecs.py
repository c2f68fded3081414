"""Columns that Petastorm has encoded: what its own metadata says of them, where that is trusted."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pyarrow.parquet as pq

from spark_hpo.data import files
from spark_hpo.errors import DataError

_METADATA = "_common_metadata"
_KEY = b"dataset-toolkit.unischema.v1"
_CODECS = ("NdarrayCodec", "CompressedNdarrayCodec", "CompressedImageCodec")  # those that make bytes


def has_metadata(url: str) -> bool:
    """Whether Petastorm has written about a dataset's columns. Nothing is unpickled."""
    fs, path = files.filesystem(files.join(url, _METADATA))
    if not fs.exists(path):
        return False
    with files.reading(path), files.opened(fs, path) as source:
        return _KEY in (pq.read_schema(source).metadata or {})


def trusted_codecs(url: str) -> dict[str, str]:
    """The codecs of a dataset's binary columns, as transforms by column.

    The metadata is unpickled: Petastorm admits classes of a few packages only, but a pickle is a program.

    Raises:
        DataError: there is no such metadata, or it cannot be read here.
    """
    place = files.join(url, _METADATA)
    fs, path = files.filesystem(place)
    with files.reading(place), files.opened(fs, path) as source:
        metadata = pq.read_schema(source).metadata or {}
    if _KEY not in metadata:
        raise DataError(f"{place}: holds no schema of Petastorm's: leave out data.trust_petastorm_metadata")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Petastorm announces what it will one day lose
            from petastorm.etl.legacy import depickle_legacy_package_name_compatible

            fields = depickle_legacy_package_name_compatible(metadata[_KEY]).fields
    except Exception as exc:  # unpickling raises whatever it likes
        raise DataError(f"{place}: Petastorm's schema cannot be read here: {exc}") from exc
    codecs = {name: type(field.codec).__name__ for name, field in fields.items()}
    return {name: f"petastorm:{codec}" for name, codec in codecs.items() if codec in _CODECS}


def find_codec(name: str) -> Callable[[bytes], Any]:
    """What decodes a value of Petastorm's codec of this name."""
    codec = getattr(field_codecs(), name)()
    return lambda value: codec.decode(None, value)


def field_codecs() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from petastorm import codecs
    return codecs
