"""The settings of the training loop, which are equal for all trials of a study."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


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
class TrainingSettings:
    """Settings of the training loop. A parameter `batch_size` in the space overrides the field."""

    batch_size: int = 128  # rows per optimizer step, over all ranks
    evaluation_batch_size: int = 4096  # rows per evaluation step, over all ranks
    metrics: tuple[str, ...] = ()  # of torchmetrics, those of the objective included
    precision: Precision = Precision.AUTO
    strategy: StrategyKind = StrategyKind.DDP
    clip_norm: float | None = None  # maximum norm of the gradient; None: no clipping
    patience: int | None = None  # epochs without improvement after which training ends; None: no limit
    min_improvement: float = 0.0  # of the objective; a smaller change does not count
    evaluate_each_pass: bool = True  # False: only after the last pass of an assignment
    checkpoint_epochs: int | None = None  # between two partial checkpoints; None: not saved by epochs
    checkpoint_seconds: float | None = None  # between two partial checkpoints; None: not saved by time
