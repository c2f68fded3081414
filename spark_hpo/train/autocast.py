"""Mixed precision: the type in which a device computes the forward and backward pass."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from spark_hpo.train.training_settings import Precision


def autocast_type(precision: Precision, device: torch.device) -> torch.dtype | None:
    """Return the type of mixed precision; None: everything is computed in float32."""
    match precision:
        case Precision.BF16:
            return torch.bfloat16
        case Precision.FP16:
            return torch.float16
        case Precision.AUTO if device.type == "cuda" and torch.cuda.is_bf16_supported():
            return torch.bfloat16
    return None


def autocast(precision: Precision, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which forward passes are computed in the type of `precision`."""
    dtype = autocast_type(precision, device)
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)
