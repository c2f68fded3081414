"""Readers of Parquet row groups: one interface, implemented with Petastorm and with pyarrow."""

from spark_hpo.data.readers.reader import KeepsBlocks, Reader, ReaderName, open_reader, resolve_reader

__all__ = ["KeepsBlocks", "Reader", "ReaderName", "open_reader", "resolve_reader"]
