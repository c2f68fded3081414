"""The section `search`: how parameters are proposed and trials are allocated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from spark_hpo.config.learn import HypergradientConfig, LearnedConfig, check_learned
from spark_hpo.config.messages import mistake
from spark_hpo.config.section import FromList, PositiveInt, PositiveNumber, Section, Url


class TransferConfig(Section):
    """Earlier studies to learn from. Parameters are matched by name and range."""

    studies: Annotated[tuple[Url, ...], FromList] = ()
    """Study directories. Each study must have the same metric and mode as this one."""
    num_first: Annotated[int, Field(ge=0)] = 3
    """How many of their best configurations to run first."""
    discount: PositiveNumber = 0.3
    """Weight of an earlier trial relative to a trial of this study."""


class ConfirmConfig(Section):
    """A final between the best trials, so that the winner is not one by luck."""

    top: PositiveInt = 3
    """How many of the best trials are trained again."""
    seeds: Annotated[int, Field(ge=2)] = 3
    """With how many other seeds each is trained."""


class SearchConfig(Section):
    """How parameters are proposed, and how training is allocated to trials. `docs/methods.md` describes all
    methods, samplers, schedulers and explorers with their settings."""

    method: str = "default"
    """A named combination of sampler and scheduler: `default`, `bohb`, `dehb`, `asha`, ..."""
    sampler: str | None = None
    """Replaces the method's sampler: `tpe`, `random`, `grid`, ..., or one from a plugin."""
    sampler_settings: dict[str, Any] = {}
    """Settings of the sampler."""
    scheduler: str | None = None
    """Replaces the method's scheduler: `hyperband`, `asha`, `full`, `successive_halving`, ..., or one from a
    plugin."""
    scheduler_settings: dict[str, Any] = {}
    """Settings of the scheduler."""
    resource: Literal["epochs", "rows", "folds"] = "epochs"
    """What a trial gets more of at a higher rung: `epochs`, or `rows`, equal parts of the training rows. With
    `rows`, each part continues where the one before ended, and metrics are measured at rungs only. With
    `folds`, a trial is cross-validated: its value is the mean over the folds that it has been trained on."""
    max_resource: PositiveInt
    """Epochs, or parts with `resource: rows`, of a fully trained trial; with `folds`, the number of folds."""
    epochs: PositiveInt = 1
    """With `resource: rows`: passes over the table in a fully trained trial. With `folds`: epochs of training
    in each fold, and for the final model."""
    min_resource: PositiveInt | None = None
    """Epochs, parts or folds at the lowest rung. Default: the scheduler's."""
    reduction_factor: Annotated[int, Field(ge=2)] | None = None
    """Eta: one in this many trials is promoted to the next rung. Default: the scheduler's."""
    enqueue: Annotated[tuple[dict[str, Any], ...], FromList] = ()
    """Configurations to run before all others, such as the one that you use today."""
    constraints: Annotated[tuple[str, ...], FromList] = ()
    """Conditions between parameters: `["hidden_2 <= hidden_1"]`. Proposals that violate one are replaced."""
    explorer: str | None = None
    """Replaces the method's explorer in population based training: `perturbation`, `pb2`, or one from a
    plugin."""
    explore: dict[str, Any] = {}
    """Settings of the explorer, such as `parameters`, `perturbation` and `resample_probability`."""
    transfer: TransferConfig = TransferConfig()
    confirm: ConfirmConfig | None = None
    """Train the best trials again with other seeds, and register the one with the best mean:
    `{top: 3, seeds: 3}`. Default: the best result of the search wins."""
    best: Literal["trained", "final", "any"] = "trained"
    """The model that is registered. `trained`: of the trials that were trained to the end, the one that is
    best at its end, with its best checkpoint; `final`: the same trial, with its last checkpoint; `any`: the
    checkpoint with the best value, which may be an early one of a trial that was stopped."""
    learn: dict[str, LearnedConfig] = {}
    """With `method: hypergradient`: hyperparameters that each trial learns while it trains, by name:
    `{weight_decay: {low: 1e-6, high: 1, by_layer: true}}`."""
    hypergradient: HypergradientConfig = HypergradientConfig()

    @property
    def unit(self) -> str:
        """The unit of a resource, in the plural."""
        return "parts" if self.resource == "rows" else self.resource

    @property
    def has_folds(self) -> bool:
        return self.resource == "folds"

    def amount(self, resource: int) -> str:
        """Return a resource with its unit: `1 epoch`, `27 parts`."""
        return f"{resource:,} {self.unit.removesuffix('s') if resource == 1 else self.unit}"

    def span(self, begin: int, end: int) -> str:
        """Return the part of a full training between two resources: `epoch 1 of 27`, `parts 2 to 3 of 9`."""
        which = f"{self.unit} {begin + 1:,} to {end:,}"
        if end - begin == 1:
            which = f"{self.unit.removesuffix('s')} {end:,}"
        return f"{which} of {self.max_resource:,}"

    @model_validator(mode="before")
    @classmethod
    def _old_name(cls, record: Any) -> Any:
        """Accept `first`, the name of `enqueue` in earlier versions."""
        if isinstance(record, Mapping) and "first" in record and "enqueue" not in record:
            return {"enqueue" if key == "first" else key: value for key, value in record.items()}
        return record

    @property
    def parts(self) -> int:
        """Units of the resource in one epoch."""
        return self.max_resource // self.epochs if self.resource == "rows" else 1

    @model_validator(mode="after")
    def _epochs_divide_max_resource(self) -> SearchConfig:
        if self.resource == "epochs" and self.epochs != 1:
            raise mistake(
                "applies to resource: rows and folds only",
                key="epochs",
                value=self.epochs,
                cure="Set max_resource to the number of epochs instead",
            )
        if self.has_folds and self.max_resource == 1:
            raise mistake("must be at least 2 with resource: folds", key="max_resource", value=1)
        if self.resource == "rows" and self.max_resource % self.epochs:
            raise mistake(
                f"must be a multiple of search.epochs, {self.epochs}, because every epoch has equally many "
                "parts",
                key="max_resource",
                value=self.max_resource,
            )
        return self

    @model_validator(mode="after")
    def _learn_fits(self) -> SearchConfig:
        check_learned(self.learn, method=self.method, resource=self.resource)
        return self

    @model_validator(mode="after")
    def _min_below_max(self) -> SearchConfig:
        if self.min_resource is not None and self.min_resource > self.max_resource:
            raise mistake(
                f"must be at most search.max_resource, {self.max_resource}",
                key="min_resource",
                value=self.min_resource,
            )
        return self
