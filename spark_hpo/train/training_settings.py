"""The settings of the training loop, which are equal for all trials of a study."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

LEARNING_RATE = "learning_rate"
WEIGHT_DECAY = "weight_decay"
LEARNED_BY_LOOP = (LEARNING_RATE, WEIGHT_DECAY)
"""The hyperparameters that can be learned with any task."""

_LARGEST_RATE = 0.1  # longer steps overshoot


class Precision(StrEnum):
    """The floating-point type of the forward and backward pass. Weights are always float32."""

    AUTO = "auto"  # bf16 on GPUs that support it, else fp32
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"  # with a gradient scaler


class StrategyKind(StrEnum):
    """How the ranks of a trial share its model."""

    DDP = "ddp"  # every rank has the whole model
    FSDP = "fsdp"  # every rank keeps a part of parameters, gradients and optimizer state


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedParameter:
    """A hyperparameter that a trial learns while it trains, and its range."""

    name: str
    low: float
    high: float
    initial: float | None = None  # None: the trial's parameter of that name, else the middle of the range
    by_layer: bool = False  # one value for each layer of the model

    @property
    def is_log(self) -> bool:
        """True if steps multiply the value, False if they are added to it."""
        return self.low > 0

    @property
    def start(self) -> float:
        """The value at the start, unless the trial has a parameter of that name."""
        if self.initial is not None:
            return self.initial
        return math.sqrt(self.low * self.high) if self.is_log else (self.low + self.high) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Learning:
    """The hyperparameters that are learned, and how: `method: hypergradient`."""

    parameters: tuple[LearnedParameter, ...]
    every: int = 20  # optimizer steps per outer step
    terms: int = 5  # of the Neumann series
    rate: float | None = None  # of an outer step, as a fraction of the range; None: see `outer_rate`
    warmup: int = 100  # optimizer steps before the first outer step, at most a third of all

    def first_step(self, total_steps: int) -> int:
        """Return the number of optimizer steps during which nothing is learned."""
        return min(self.warmup, total_steps // 3)

    def outer_rate(self, total_steps: int) -> float:
        """Return the length of an outer step: by default, all of them together can cross the range once."""
        if self.rate is not None:
            return self.rate
        outer_steps = (total_steps - self.first_step(total_steps)) // self.every
        return min(_LARGEST_RATE, 1 / max(1, outer_steps))

    @property
    def needs_validation(self) -> bool:
        """True if rows of the validation split drive outer steps, so that only the other rows may measure."""
        return any(parameter.name != LEARNING_RATE for parameter in self.parameters)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """Settings of the training loop. A parameter `batch_size` in the space overrides the field."""

    batch_size: int = 128  # rows per optimizer step, over all ranks
    evaluation_batch_size: int = 4096  # rows per evaluation step, over all ranks
    loss_params: Mapping[str, Any] = field(
        default_factory=dict
    )  # of `LabelledTask`, unless the space has them
    metrics: tuple[str, ...] = ()  # of torchmetrics, those of the objective included
    precision: Precision = Precision.AUTO
    strategy: StrategyKind = StrategyKind.DDP
    micro_batch: int | Literal["auto"] | None = None  # rows that a rank trains on at a time; None: all
    compile: bool = False  # the model, with torch.compile
    clip_norm: float | None = None  # maximum norm of the gradient; None: no clipping
    patience: int | None = None  # epochs without improvement after which training ends; None: no limit
    min_improvement: float = 0.0  # of the objective; a smaller change does not count
    evaluate_each_pass: bool = True  # False: only after the last pass of an assignment
    checkpoint_epochs: int | None = None  # between two partial checkpoints; None: not saved by epochs
    checkpoint_seconds: float | None = None  # between two partial checkpoints; None: not saved by time
    learning: Learning | None = None  # None: all hyperparameters are constant
