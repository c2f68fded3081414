"""Tells DataFrames apart without importing Spark or pandas."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeGuard

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql import DataFrame

    Frame = DataFrame | pd.DataFrame


def is_spark(value: object) -> TypeGuard[DataFrame]:
    """Return True for a DataFrame of classic Spark or of Spark Connect."""
    return _is_frame(value, "pyspark.sql")


def is_pandas(value: object) -> TypeGuard[pd.DataFrame]:
    return _is_frame(value, "pandas")


def _is_frame(value: object, package: str) -> bool:
    kinds = type(value).__mro__
    # From pandas 3 on, the class names the package itself as its module.
    return any(
        kind.__name__ == "DataFrame" and f"{kind.__module__}.".startswith(f"{package}.") for kind in kinds
    )
