"""Search spaces: parameters, their ranges, and the structure that holds them."""

from spark_hpo.search.space.space import Dimension, Key, Point, Space

__all__ = ["Dimension", "Key", "Point", "Space"]
