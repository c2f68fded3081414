"""The readers: one interface, Petastorm and plain pyarrow behind it."""

from spark_hpo.data.readers.base import Reader, ReaderName, open_reader, resolve_reader

__all__ = ["Reader", "ReaderName", "open_reader", "resolve_reader"]
