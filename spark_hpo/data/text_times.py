"""Parses texts of dates and times as Spark does."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from spark_hpo.data.text_forms import DATES, TextForm

_FIELDS_OF_TIME = (
    r"^(?P<year>\d{4})-(?P<month>\d{1,2})-(?P<day>\d{1,2})"
    r"(?:[ T](?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second>\d{2})(?:\.(?P<fraction>\d+))?)?"
    r"(?P<zone>Z|[+-]\d{2}:?\d{2})?)?$"
)
_MAX_ZONE_S = 18 * 3600  # Java's limit


def micros_of_dates(texts: pa.Array, form: TextForm) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return microseconds since 1970, and which texts are null or dates of this form."""
    date = DATES[form]
    fits = pc.match_substring_regex(texts, date.pattern)
    names = {"d": "day", "m": "month", "y": "year"}
    groups = r"\D".join(rf"(?P<{names[part]}>\d+)" for part in date.order)
    parts = pc.extract_regex(pc.if_else(fits, texts, pa.scalar(None, pa.string())), f"^{groups}$")
    days, is_valid = _days(parts)
    is_valid &= _integers(parts, "year") > 0  # Spark reads the year of an era
    return days * 86_400_000_000, is_valid & pc.fill_null(fits, False).to_numpy(zero_copy_only=False) | (
        texts.is_null().to_numpy(zero_copy_only=False)
    )


def micros_of_times(texts: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return microseconds since 1970 of ISO dates with or without a time, and which texts are valid."""
    parts = pc.extract_regex(texts, _FIELDS_OF_TIME)
    days, is_valid = _days(parts)
    hour, minute, second = (_integers(parts, name) for name in ("hour", "minute", "second"))
    fraction = pc.utf8_rpad(pc.utf8_slice_codeunits(_part(parts, "fraction"), 0, 6), 6, "0")
    zone = pc.replace_substring(_part(parts, "zone"), ":", "")
    offset = pc.utf8_slice_codeunits(zone, 1, 5)  # empty for Z
    sign = np.where(pc.starts_with(zone, "-").to_numpy(zero_copy_only=False), -1, 1)
    zone_hour, zone_minute = (_whole(pc.utf8_slice_codeunits(offset, i, i + 2)) for i in (0, 2))
    shift = zone_hour * 3600 + zone_minute * 60
    is_valid &= (hour < 24) & (minute < 60) & (second < 60) & (zone_minute < 60) & (shift <= _MAX_ZONE_S)
    seconds = days * 86_400 + hour * 3600 + minute * 60 + second - sign * shift
    is_null = texts.is_null().to_numpy(zero_copy_only=False)
    fits = parts.is_valid().to_numpy(zero_copy_only=False)
    return seconds * 1_000_000 + _whole(fraction), (is_valid & fits) | is_null


def _days(parts: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return days since 1970, and which of them are in the calendar."""
    year, month, day = (_integers(parts, name) for name in ("year", "month", "day"))
    first = ((year - 1970) * 12 + month - 1).astype("datetime64[M]")
    date = first.astype("datetime64[D]") + (day - 1)
    is_valid = (month >= 1) & (month <= 12) & (day >= 1) & (date.astype("datetime64[M]") == first)
    return date.astype(np.int64), is_valid


def _part(parts: pa.Array, name: str) -> pa.Array:
    return pc.fill_null(pc.struct_field(parts, name), "")


def _integers(parts: pa.Array, name: str) -> npt.NDArray[np.int64]:
    return _whole(_part(parts, name))


def _whole(texts: pa.Array) -> npt.NDArray[np.int64]:
    """Return integers; an empty text is 0."""
    numbers = pc.cast(pc.if_else(pc.equal(texts, ""), "0", texts), pa.int64())
    whole: npt.NDArray[np.int64] = numbers.to_numpy(zero_copy_only=False)
    return whole
