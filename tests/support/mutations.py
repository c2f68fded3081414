"""Damaged records of JSON types, as Hypothesis strategies."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st

ODD = st.sampled_from(
    [
        *(None, True, -1, 0, 10**18, 1.5, float("nan"), float("inf"), "", "x", "../../up", "\ufeff", "💥"),
        *([], [None], [[[[]]]], {}, {"x": None}, {"": {"": {}}}),
    ]
).map(copy.deepcopy)  # a later mutation may change it


@st.composite
def mutated(draw: st.DrawFn, record: Any) -> Any:
    """Return the record with one to three places replaced, removed, or extended by an unknown key."""
    record = copy.deepcopy(record)
    for _ in range(draw(st.integers(1, 3))):
        inner = record
        while isinstance(inner, dict | list) and inner:
            keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
            key = draw(st.sampled_from(keys))
            if isinstance(inner[key], dict | list) and inner[key] and draw(st.integers(0, 3)):
                inner = inner[key]
                continue
            match draw(st.integers(0, 3)):
                case 0:
                    del inner[key]
                case 1 if isinstance(inner, dict):
                    inner[draw(st.text(max_size=3))] = draw(ODD)
                case _:
                    inner[key] = draw(ODD)
            break
    return record
