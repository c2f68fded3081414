"""Compiles models with torch.compile, and trains on without it if that fails."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from torch import nn

from spark_hpo.data.cache.cache_folder import CacheSettings, local_folder, private_folder

logger = logging.getLogger(__name__)


def is_compiled(model: nn.Module) -> bool:
    """True if the model compiles itself, or has done so."""
    return getattr(model, "_compiled_call_impl", None) is not None


def stop_compiling(model: nn.Module, error: Exception) -> None:
    """Use the model as it was written, and log a warning with the error of torch.compile."""
    model._compiled_call_impl = None  # as torch does when it copies a module
    cause = next(iter(str(error).strip().splitlines()), "")
    logger.warning(
        "torch.compile failed, so the model is trained without it: %s: %s", type(error).__name__, cause
    )


def share_compiled_code(cache: CacheSettings | None) -> None:
    """Keep compiled code in a folder of this machine, so that trials with the same model compile it once.

    Only this user can read the folder. One that TORCHINDUCTOR_CACHE_DIR names already is used instead.
    """
    if "TORCHINDUCTOR_CACHE_DIR" in os.environ:
        return
    base = Path(cache.folder) if cache is not None and cache.folder else local_folder()
    try:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(private_folder(base, "compiled"))
    except OSError as exc:
        logger.warning("compiled code is not kept for other trials: %s", exc)
