"""The sections `budget` and `stopping`: when a study ends."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from spark_hpo.config.messages import mistake
from spark_hpo.config.section import NonNegativeNumber, Number, PositiveInt, PositiveNumber, Section


class StoppingConfig(Section):
    """Rules that end a study before its budget is spent. A rule that is not set does not apply."""

    target: Number | None = None
    """Ends the study when a trial reaches this value of the metric."""
    no_improvement: PositiveInt | None = None
    """Ends the study when this many trials have been fully trained since the best one."""
    min_improvement: NonNegativeNumber = 0.0
    """Improvement of the objective that counts for `no_improvement`."""
    cost: PositiveNumber | None = None
    """Ends the study when busy slot hours times `price_per_slot_hour` reach this amount."""
    price_per_slot_hour: PositiveNumber | None = None
    """Price of one slot for one hour, in the currency of `cost`."""
    regret_bound: PositiveNumber | None = None
    """Ends the study when searching as long again is expected to improve the objective by less than this."""
    max_trial_failures: Annotated[int, Field(ge=0)] | None = None
    """Ends the study with exit code 4 when more trials than this have failed."""
    max_failed_share: Annotated[float, Field(gt=0, le=1)] | None = 0.8
    """Ends the study with exit code 4 when at least ten trials, and more than this share of all trials, have
    failed."""

    @model_validator(mode="after")
    def _cost_has_price(self) -> StoppingConfig:
        if (self.cost is None) != (self.price_per_slot_hour is None):
            key = "cost" if self.price_per_slot_hour is None else "price_per_slot_hour"
            other = "price_per_slot_hour" if key == "cost" else "cost"
            raise mistake(f"is set, but stopping.{other} is not", key=key, cure="Set both or neither")
        return self


class BudgetConfig(Section):
    """Limits of the study; it ends at the first that is reached. Running trials are completed, and the best
    trials are trained to the end. A finished study continues when a limit is raised."""

    trials: PositiveInt | None = None
    """Number of trials to start. The best of them are then trained to the end of their rungs."""
    resource: PositiveInt | None = None
    """Epochs, or parts or folds with `search.resource: rows` or `folds`, over all trials."""
    seconds: PositiveNumber | None = None
    """Running time of the study, over all runs of its driver. No training begins that would end later."""
    finish: Annotated[int, Field(ge=0)] = 1
    """After the search, this many of the best trials are trained to the end, even if the scheduler stopped
    them; 0: none. Their training is reserved from `resource`, `seconds` and `stopping.cost`. It starts no new
    trial, so `trials` is not affected."""

    @model_validator(mode="after")
    def _limited(self) -> BudgetConfig:
        if self.trials is None and self.resource is None and self.seconds is None:
            raise mistake(
                "has no limit, so the study would never end",
                cure="Set at least one of trials, resource and seconds",
            )
        return self
