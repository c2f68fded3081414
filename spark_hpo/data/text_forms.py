"""The forms in which text spells numbers and dates. `prepare` finds them; models parse raw rows by them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

WHITESPACE = "".join(filter(str.isspace, map(chr, range(0x3001))))  # all that Arrow trims, too


class TextForm(StrEnum):
    """How the texts of a column were read."""

    NONE = ""  # as categories; or the column holds no text
    NUMBER = "number"  # 1200.5 or 1e3, in all rows
    NUMBER_OR_WORD = "number_or_word"  # the same; other texts count as missing
    SIGNS = "signs"  # $1,200.50 or 12 %
    COMMA = "comma"  # 1.200,50 €
    ISO = "iso"
    DAY_MONTH_YEAR = "day_month_year"
    MONTH_DAY_YEAR = "month_day_year"
    DAY_SLASH_MONTH = "day_slash_month"

    @property
    def is_date(self) -> bool:
        return self in DATES or self is TextForm.ISO


@dataclass(frozen=True, slots=True, kw_only=True)
class DateForm:
    """A date without a time."""

    pattern: str  # regular expression, in the common subset of Java and RE2
    order: str  # of year, month and day
    spark: str  # Spark's format
    readable: str


DATES = {
    TextForm.DAY_MONTH_YEAR: DateForm(
        pattern=r"^\d{1,2}\.\d{1,2}\.\d{4}$", order="dmy", spark="d.M.yyyy", readable="day.month.year"
    ),
    TextForm.MONTH_DAY_YEAR: DateForm(
        pattern=r"^\d{1,2}/\d{1,2}/\d{4}$", order="mdy", spark="M/d/yyyy", readable="month/day/year"
    ),
    TextForm.DAY_SLASH_MONTH: DateForm(
        pattern=r"^\d{1,2}/\d{1,2}/\d{4}$", order="dmy", spark="d/M/yyyy", readable="day/month/year"
    ),
}

PATTERNS = {
    TextForm.NUMBER: r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$",
    TextForm.SIGNS: r"^[+-]?[$€£]?\s?(\d{1,3}(,\d{3})+|\d+)(\.\d+)?\s?[%$€£]?$",
    TextForm.COMMA: r"^[+-]?[€]?\s?(\d{1,3}(\.\d{3})+|\d+)(,\d+)?\s?[%€]?$",
    TextForm.ISO: r"^\d{4}-\d{1,2}-\d{1,2}([ T]\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?)?(Z|[+-]\d{2}:?\d{2})?$",
}
IGNORED = {TextForm.SIGNS: r"[$€£%,\s]", TextForm.COMMA: r"[€%\s.]"}
"""The characters that are removed before a number is parsed; a comma that is left is the decimal point."""
