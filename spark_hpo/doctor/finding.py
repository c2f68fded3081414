"""The result of a check: OK, WARN, FAIL or SKIP, in one line, with a fix."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from spark_hpo.redact import redact


class Status(StrEnum):
    OK = "OK"
    WARN = "WARN"  # the study runs, but not well
    FAIL = "FAIL"  # the study cannot run
    SKIP = "SKIP"  # not checked


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of one check, without credentials."""

    check: str
    status: Status
    message: str
    cure: str = ""
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "status": str(self.status), "seconds": round(self.seconds, 2)}

    def __str__(self) -> str:
        return f"{self.status:<4}  {self.check}: {self.message}" + (f"; {self.cure}" if self.cure else "")


@dataclass(frozen=True, slots=True)
class Verdict:
    """The return value of a check; a Finding adds the name and duration of the check."""

    status: Status
    message: str
    cure: str = ""

    def of(self, check: str, seconds: float) -> Finding:
        return Finding(
            check=check,
            status=self.status,
            message=redact(self.message),
            cure=redact(self.cure),
            seconds=seconds,
        )


def ok(message: str) -> Verdict:
    return Verdict(Status.OK, message)


def warn(message: str, cure: str = "") -> Verdict:
    return Verdict(Status.WARN, message, cure)


def fail(message: str, cure: str = "") -> Verdict:
    return Verdict(Status.FAIL, message, cure)


def skip(message: str) -> Verdict:
    return Verdict(Status.SKIP, message)
