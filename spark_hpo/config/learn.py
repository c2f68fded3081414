"""The settings of hyperparameters that trials learn, in the section `search` of a study file.

The docstrings below the settings are the reference that users read (`docs/settings.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, model_validator

from spark_hpo.config.messages import mistake
from spark_hpo.config.section import Number, PositiveInt, Section
from spark_hpo.config.training import TrainingConfig

_METHOD = "hypergradient"
_LEARNING_RATE, _WEIGHT_DECAY = "learning_rate", "weight_decay"


class LearnedConfig(Section):
    """A hyperparameter that trials learn, and its range. If `space` has a parameter of the same name, its
    value is where a trial starts."""

    low: Number
    """Lower bound. Above 0, the range is logarithmic."""
    high: Number
    """Upper bound."""
    initial: Number | None = None
    """Value at the start. Default: the middle of the range, or the optimizer's learning rate."""
    by_layer: bool = False
    """For `weight_decay`: one value for each layer."""

    @model_validator(mode="after")
    def _ordered(self) -> LearnedConfig:
        if self.low >= self.high:
            raise mistake(f"must be below high, {self.high}", key="low", value=self.low)
        if self.initial is not None and not self.low <= self.initial <= self.high:
            raise mistake(f"must be from {self.low} to {self.high}", key="initial", value=self.initial)
        return self


class HypergradientConfig(Section):
    """How hyperparameters are learned."""

    every: PositiveInt = 20
    """Optimizer steps per outer step. Outer steps more often learn faster, and cost more."""
    terms: PositiveInt = 5
    """Terms of the Neumann series. Each costs about as much as an optimizer step."""
    rate: Annotated[Number, Field(gt=0, le=1)] | None = None
    """Length of an outer step, as a fraction of the range. Default: all outer steps of a trial together can
    cross the range once, but at most 0.1."""
    warmup: Annotated[int, Field(ge=0)] = 100
    """Optimizer steps before the first outer step: early gradients mislead. At most a third of the steps of
    a trial."""


def check_learned(learn: Mapping[str, LearnedConfig], *, method: str, resource: str) -> None:
    """Check `search.learn` against the method, the resource and what its names mean.

    Raises:
        ValueError: it does not fit; the keys are relative to `search`.
    """
    if method == _METHOD and not learn:
        raise mistake(
            "is missing, but search.method is hypergradient",
            key="learn",
            cure="Name what trials learn: {weight_decay: {low: 1e-6, high: 1, by_layer: true}}",
        )
    if learn and method != _METHOD:
        raise mistake(
            f"needs method: {_METHOD}, but search.method is {method}",
            key="learn",
            cure=f"Set search.method: {_METHOD}; search.sampler and search.scheduler replace its parts",
        )
    if learn and resource == "folds":
        raise mistake(
            "must not be folds with search.learn, because the final model has no rows left to learn from",
            key="resource",
            value=resource,
            cure="Use epochs",
        )
    for name, learned in learn.items():
        if learned.by_layer and name != _WEIGHT_DECAY:
            raise mistake(
                f"applies to {_WEIGHT_DECAY} only", key=f"learn.{name}.by_layer", value=True, cure="Remove it"
            )
        if learned.low <= 0 and name == _LEARNING_RATE:
            raise mistake("must be above 0", key=f"learn.{name}.low", value=learned.low)
        if learned.low < 0 and name == _WEIGHT_DECAY:
            raise mistake("must be at least 0", key=f"learn.{name}.low", value=learned.low)


def check_training(learn: Mapping[str, LearnedConfig], training: TrainingConfig) -> None:
    """Check the section `training` against `search.learn`.

    Raises:
        ValueError: a setting cannot be used when hyperparameters are learned.
    """
    if not learn:
        return
    if training.precision == "fp16":
        raise mistake(
            "cannot be used with search.learn, because second derivatives overflow in it",
            key="training.precision",
            value="fp16",
            cure="Set it to bf16, fp32 or auto",
        )
    if training.strategy != "ddp":
        raise mistake(
            "cannot be used with search.learn, because sharded models cannot be differentiated twice",
            key="training.strategy",
            value=training.strategy,
            cure="Use ddp",
        )
    if training.micro_batch is not None and set(learn) != {_LEARNING_RATE}:
        raise mistake(
            "cannot be used with search.learn, because outer steps need a whole batch at once",
            key="training.micro_batch",
            value=training.micro_batch,
            cure="Remove it, and lower training.batch_size if memory is short",
        )
