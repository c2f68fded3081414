"""The section `training` of a study file.

The docstrings below the settings are the reference that users read (`docs/settings.py`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from spark_hpo.config.messages import mistake
from spark_hpo.config.section import FromList, NonNegativeNumber, Number, PositiveInt, PositiveNumber, Section


class CheckpointConfig(Section):
    """How often a trial saves its state between rungs, so that a failure costs only the training since then.
    Whichever comes first."""

    epochs: PositiveInt | None = None
    """After this many epochs, or parts with `search.resource: rows`."""
    seconds: PositiveNumber | None = 60.0
    """After this many seconds."""


_LOSS = ("loss", "focal_gamma", "label_smoothing")


def _class_weights(value: Any) -> Any:
    """Convert the classes of a mapping to text: YAML reads 1 as a number and `true` as a boolean."""
    if not isinstance(value, dict):
        return value
    return {str(name).lower() if isinstance(name, bool) else str(name): v for name, v in value.items()}


class TrainingConfig(Section):
    """How tasks are trained. Training functions have a training loop of their own."""

    batch_size: PositiveInt = 128
    """Rows of one optimizer step, over all ranks. A parameter `batch_size` of the space takes precedence."""
    evaluation_batch_size: PositiveInt = 4096
    """Rows of one evaluation step, over all ranks."""
    metrics: Annotated[tuple[str, ...], FromList] = ()
    """Metrics to report besides those of the task, by the names of torchmetrics: `[auroc, f1]`. Metrics of
    the objective need not be repeated. `docs/training.md` has the names."""
    class_weights: Annotated[
        Literal["balanced"] | dict[str, PositiveNumber] | None, BeforeValidator(_class_weights)
    ] = None
    """Weights of the classes in the training loss. `balanced` gives each class the same total weight; a
    mapping names classes: `{"yes": 10}`, and 1 for the others. On average a training row has weight 1."""
    loss: Literal["cross_entropy", "focal"] = "cross_entropy"
    """The training loss of classes. `focal` counts rows less that are classified well. A parameter `loss` of
    the space takes precedence, and so do `focal_gamma` and `label_smoothing`."""
    focal_gamma: NonNegativeNumber = 2.0
    """How much less the focal loss counts them. 0 is cross-entropy."""
    label_smoothing: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """Share of the probability that the training loss expects to be spread evenly over all classes."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """`auto`: bf16 on GPUs that support it, fp32 elsewhere."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """How ranks share a model: each has all of it (`ddp`), or keeps a part of its parameters and of the
    optimizer's state (`fsdp`)."""
    micro_batch: Literal["auto"] | PositiveInt | None = None
    """Rows that a rank trains on at a time. Gradients are added up, so that a step still has `batch_size`
    rows. `auto`: a batch that does not fit the device is halved. Default: all rows of the rank."""
    compile: bool = False
    """Compile models with `torch.compile`. Trials with the same model on a machine share the code."""
    clip_norm: PositiveNumber | None = None
    """Maximum norm of the gradient."""
    patience: PositiveInt | None = None
    """Stop training a trial after this many epochs without improvement."""
    min_improvement: NonNegativeNumber = 0.0
    """Improvement of the objective that counts for `patience`."""
    checkpoint_every: CheckpointConfig = CheckpointConfig()

    @property
    def loss_params(self) -> dict[str, Any]:
        """The settings of the loss that are not the default. Parameters of the space take precedence."""
        return self.model_dump(include=set(_LOSS), exclude_defaults=True)

    @model_validator(mode="after")
    def _fsdp_has_no_retries(self) -> TrainingConfig:
        if self.strategy != "fsdp":
            return self
        if self.micro_batch == "auto":
            raise mistake(
                "cannot be combined with training.strategy: fsdp, because ranks that wait for parameters "
                "cannot try a batch again",
                key="micro_batch",
                value="auto",
                cure="Set it to a number of rows",
            )
        if self.precision == "fp16":
            raise mistake(
                "cannot be combined with training.strategy: fsdp, because each rank would scale its "
                "gradients by its own part of them",
                key="precision",
                value="fp16",
                cure="Use bf16 or fp32",
            )
        return self
