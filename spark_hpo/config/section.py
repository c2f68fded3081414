"""The base class of sections, and the types of their settings."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from spark_hpo.config.messages import mistake
from spark_hpo.redact import has_credentials, redact_all


def _number(value: Any) -> Any:
    """Convert text to a number where it is one: YAML 1.1 reads 1e-4 as text."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _from_list(value: Any) -> Any:
    """Convert a list to a tuple: strict mode distinguishes them, and YAML has only lists."""
    return tuple(value) if isinstance(value, list) else value


def divide_labels(record: Mapping[str, Any], refuse: Callable[..., Exception]) -> dict[str, Any]:
    """Divide a list of labels into `label`, the first one, and `extra_labels`.

    A trace: {"label": ["price", "sold"]} -> {"label": "price", "extra_labels": ["sold"]}

    Args:
        refuse: makes the error about a list that does not name one or several different columns.
    """
    label = record.get("label")
    if not isinstance(label, list | tuple):
        return dict(record)
    if not label or len(set(map(str, label))) < len(label):
        raise refuse("must name one or several different columns", key="label", value=list(label))
    return {**record, "label": label[0], **({"extra_labels": list(label[1:])} if label[1:] else {})}


def _url(value: Any) -> Any:
    """Refuse URLs with credentials, and convert `dbfs:/` to the mount that Python sees."""
    if not isinstance(value, str):
        return value
    if has_credentials(value):
        raise mistake(
            "contains a password or a key, which would be written to logs and to the study directory",
            cure="Pass it through the environment",
        )
    return re.sub(r"^dbfs:/+", "/dbfs/", value)


Url = Annotated[str, BeforeValidator(_url)]
PositiveInt = Annotated[int, Field(ge=1)]
Number = Annotated[float, Field(allow_inf_nan=False), BeforeValidator(_number)]
PositiveNumber = Annotated[float, Field(gt=0, allow_inf_nan=False), BeforeValidator(_number)]
NonNegativeNumber = Annotated[float, Field(ge=0, allow_inf_nan=False), BeforeValidator(_number)]
FromList = BeforeValidator(_from_list)


class Section(BaseModel):
    # Strict: "3" is not a number and 1.0 is not an integer. Unknown keys are errors.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            shown = redact_all({str(name): value})[str(name)] if not isinstance(value, BaseModel) else value
            yield name, shown
