"""The section `objective`: what a study optimizes."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import model_validator

from spark_hpo.config.messages import mistake
from spark_hpo.config.section import FromList, Number, Section
from spark_hpo.objective import Limit, Mode, Objective

_MAX_OBJECTIVES = 4


class LimitConfig(Section):
    """A constraint on another metric. A trial that violates it ranks below all trials that satisfy it."""

    metric: str
    """A metric that the task reports, or a metric of torchmetrics."""
    at_least: Number | None = None
    """Lower bound."""
    at_most: Number | None = None
    """Upper bound."""

    @model_validator(mode="after")
    def _bounded(self) -> LimitConfig:
        if self.at_least is None and self.at_most is None:
            raise mistake(
                f"the limit on {self.metric!r} has neither at_least nor at_most", cure="Set one of them"
            )
        return self


class ObjectiveConfig(Section):
    """What to optimize, measured on the validation split."""

    metric: str
    """`loss`, a metric that the task reports, or a metric of torchmetrics, such as `auroc`."""
    mode: Literal["min", "max"]
    """Whether a lower or a higher value is better."""
    also: dict[str, Literal["min", "max"]] = {}
    """Further objectives with their modes, at most three: `{latency_ms: min}`. The result is then a Pareto
    front."""
    penalties: dict[str, Number] = {}
    """Metrics with weights; weight times value is added to the loss: `{latency_ms: 0.01}`."""
    limits: Annotated[tuple[LimitConfig, ...], FromList] = ()
    """Constraints on other metrics: `[{metric: latency_ms, at_most: 20}]`. A trial that violates one ranks
    below all trials that satisfy them."""

    def build(self) -> Objective:
        """Build the objective that this section describes."""
        return Objective(
            metric=self.metric,
            mode=Mode(self.mode),
            penalties=tuple(self.penalties.items()),
            limits=tuple(
                Limit(
                    metric=limit.metric,
                    at_least=-math.inf if limit.at_least is None else limit.at_least,
                    at_most=math.inf if limit.at_most is None else limit.at_most,
                )
                for limit in self.limits
            ),
            extra_objectives=tuple((metric, Mode(mode)) for metric, mode in self.also.items()),
        )

    @property
    def all_metrics(self) -> tuple[str, ...]:
        """The metrics that the section names, also in penalties and limits, each once."""
        limits = (limit.metric for limit in self.limits)
        return tuple(dict.fromkeys((self.metric, *self.also, *self.penalties, *limits)))

    @model_validator(mode="after")
    def _distinct_and_few(self) -> ObjectiveConfig:
        if self.metric in self.also:
            raise mistake(
                f"contains {self.metric!r}, which is objective.metric already", key="also", cure="Remove it"
            )
        if len(self.also) >= _MAX_OBJECTIVES:
            raise mistake(
                f"has {len(self.also)} metrics; at most {_MAX_OBJECTIVES - 1} are allowed, because with more "
                "nearly every trial is on the Pareto front",
                key="also",
                cure="Turn some of them into limits or penalties",
            )
        return self
