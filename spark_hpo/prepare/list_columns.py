"""Facts of columns of lists, bytes and texts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from spark_hpo.errors import DataError
from spark_hpo.prepare.column_facts import BytesFacts, ListFacts, ProseFacts


def list_facts(facts: Mapping[str, Any], i: int, name: str, vocabulary: tuple[str, ...] | None) -> ListFacts:
    """The facts of lists of texts with this vocabulary, or of numbers (None)."""
    bad, longest = facts[f"bad_{i}"], facts[f"longest_{i}"]
    if bad:
        fault = "null, NaN or infinite" if vocabulary is None else "null"
        raise DataError(
            f"column {name!r} has elements that are {fault}, in {bad} of {facts['rows']} rows. Remove them, "
            f"or leave the column out (--drop {name})"
        )
    if not longest or vocabulary == ():
        raise DataError(
            f"column {name!r} has only empty lists{' in the training split' if longest else ''}. Leave it "
            f"out (--drop {name})"
        )
    mean, deviation = (0.0, 1.0) if vocabulary is not None else _moments(facts, i)
    is_array = vocabulary is None and longest == facts[f"shortest_{i}"]
    missing = facts["rows"] - facts[f"present_{i}"]
    if is_array and missing:
        raise DataError(
            f"column {name!r} is null in {missing} of {facts['rows']} rows, and an array of {longest} "
            f"elements in all others. Fill these rows, or leave the column out (--drop {name})"
        )
    return ListFacts(
        name=name,
        longest=longest,
        is_array=is_array,
        values=vocabulary or (),
        mean=mean,
        deviation=deviation,
    )


def _moments(facts: Mapping[str, Any], i: int) -> tuple[float, float]:
    """Return mean and deviation of all elements of the training split; (0, 1) if they cannot be computed."""
    elements = facts[f"elements_{i}"]
    if not elements:
        return 0.0, 1.0
    mean = facts[f"sum_{i}"] / elements
    variance = max(facts[f"squares_{i}"] / elements - mean * mean, 0.0)
    if not math.isfinite(variance):
        return 0.0, 1.0
    # Rounding leaves a part of the square, also of a constant.
    deviation = math.sqrt(variance) if variance > 1e-12 * mean * mean else 1.0
    return rounded(mean), rounded(deviation)


def rounded(value: float) -> float:
    """Return twelve digits, because the last ones depend on the order in which Spark's tasks end."""
    return float(f"{value:.12g}")


def bytes_facts(facts: Mapping[str, Any], i: int, name: str) -> BytesFacts:
    """Return the facts of bytes, which must not be missing."""
    missing = facts["rows"] - facts[f"present_{i}"]
    if missing:
        raise DataError(
            f"column {name!r} holds bytes, and is null in {missing} of {facts['rows']} rows. Drop these "
            f"rows, or leave the column out (--drop {name})"
        )
    return BytesFacts(name=name)


def prose_facts(facts: Mapping[str, Any], i: int, name: str) -> ProseFacts:
    """Return the facts of texts that a task reads."""
    if not facts[f"longest_{i}"]:
        raise DataError(f"column {name!r} has no texts. Leave it out (--drop {name})")
    return ProseFacts(name=name, longest=facts[f"longest_{i}"])
