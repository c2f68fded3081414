"""Search spaces: what is tuned, where it lies, and which values it may take."""

from spark_hpo.search.space.space import Dimension, Key, Point, Space

__all__ = ["Dimension", "Key", "Point", "Space"]
