"""How a task is trained, whatever its parameters are."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Precision(StrEnum):
    """The type of the forward and backward pass. Weights are float32 always."""

    AUTO = "auto"  # bf16 on GPUs that have it, else fp32
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"  # with a gradient scaler


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """What the loop needs to know. A parameter of the same name in the space wins over `batch_size`."""

    batch_size: int = 128  # rows of one optimizer step, over all ranks
    evaluation_batch_size: int = 4096  # rows of one evaluation step, over all ranks
    precision: Precision = Precision.AUTO
    clip_norm: float | None = None  # largest norm of the gradient; None: no clipping
    patience: int | None = None  # epochs without improvement that end a training; None: never
    min_improvement: float = 0.0  # of the objective, to count as one
    evaluate_each_pass: bool = True  # False: after the last pass of an assignment only
    checkpoint_epochs: int | None = None  # units of the resource between checkpoints within an assignment
    checkpoint_seconds: float | None = None  # the same by the clock
