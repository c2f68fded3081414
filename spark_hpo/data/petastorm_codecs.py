"""Codecs of columns that Petastorm encoded, read from its metadata when the user trusts that metadata."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pyarrow.parquet as pq

from spark_hpo.data import files
from spark_hpo.errors import DataError

_METADATA = "_common_metadata"
_KEY = b"dataset-toolkit.unischema.v1"
_CODECS = ("NdarrayCodec", "CompressedNdarrayCodec", "CompressedImageCodec")  # these encode to bytes


def has_metadata(url: str) -> bool:
    """Return True if the dataset has Petastorm metadata. Unpickles nothing."""
    fs, path = files.filesystem(files.join(url, _METADATA))
    if not fs.exists(path):
        return False
    with files.reading(path), files.opened(fs, path) as source:
        return _KEY in (pq.read_schema(source).metadata or {})


def trusted_codecs(url: str) -> dict[str, str]:
    """Return the codecs of a dataset's binary columns, as transforms by column name.

    This unpickles the metadata. Petastorm's unpickler admits classes of a few packages only, but a pickle can
    still run code.

    Raises:
        DataError: the dataset has no Petastorm metadata, or the metadata cannot be unpickled.
    """
    place = files.join(url, _METADATA)
    fs, path = files.filesystem(place)
    with files.reading(place), files.opened(fs, path) as source:
        metadata = pq.read_schema(source).metadata or {}
    if _KEY not in metadata:
        raise DataError(f"{place} has no Petastorm schema; remove data.trust_petastorm_metadata")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Petastorm warns about future deprecations
            from petastorm.etl.legacy import depickle_legacy_package_name_compatible

            fields = depickle_legacy_package_name_compatible(metadata[_KEY]).fields
    except Exception as exc:  # unpickling can raise any exception
        raise DataError(f"{place}: cannot read the Petastorm schema: {exc}") from exc
    codecs = {name: type(field.codec).__name__ for name, field in fields.items()}
    return {name: f"petastorm:{codec}" for name, codec in codecs.items() if codec in _CODECS}


def find_codec(name: str) -> Callable[[bytes], Any]:
    """Return a function that decodes one value with the Petastorm codec `name`."""
    codec = getattr(field_codecs(), name)()
    return lambda value: codec.decode(None, value)


def field_codecs() -> Any:
    """Import `petastorm.codecs` without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from petastorm import codecs
    return codecs
