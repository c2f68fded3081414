"""The readers: one interface, Petastorm and plain pyarrow behind it."""

from spark_hpo.data.readers.reader import KeepsBlocks, Reader, ReaderName, open_reader, resolve_reader

__all__ = ["KeepsBlocks", "Reader", "ReaderName", "open_reader", "resolve_reader"]
