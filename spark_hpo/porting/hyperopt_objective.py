"""HyperoptObjective: a training function that calls a hyperopt objective."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from spark_hpo.errors import TrialError
from spark_hpo.porting.hyperopt_sampler import domain_of

if TYPE_CHECKING:
    from spark_hpo.train.context import TrainContext

RESULT = "result"  # the note that holds the returned mapping


@dataclass(eq=False)
class HyperoptObjective:
    """Calls an objective with the point of the space that the trial's values select, as hyperopt does."""

    wrapped_function: Callable[[Any], Any]
    space: Any

    def __call__(self, ctx: TrainContext) -> None:
        domain = domain_of(self.space, self.wrapped_function)
        result = domain.evaluate(dict(ctx.params), ctrl=None, attach_attachments=False)
        result.pop("attachments", None)
        ctx.note(RESULT, as_json(result))
        loss = result.get("loss")
        if result["status"] != "ok":
            raise TrialError(f"the objective returned status {result['status']!r}")
        if not math.isfinite(loss):
            raise TrialError(f"the objective returned the loss {loss}")
        ctx.report({"loss": loss})


def as_json(value: Any) -> Any:
    """Return a value as JSON: arrays become lists; other objects, and numbers that are not finite, text."""
    if hasattr(value, "tolist"):  # numpy's
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [as_json(item) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else str(value)
    return str(value)
