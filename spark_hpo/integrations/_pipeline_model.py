"""Saves the model of a Hugging Face `Trainer` as a pipeline, in the format of MLflow."""

from __future__ import annotations

import copy
import logging
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from transformers import Trainer, pipeline

_PACKAGES = ("transformers", "torch", "accelerate")


def save_pipeline(trainer: Trainer, task: str, folder: Path) -> None:
    """Write a pipeline of the trainer's model and its `processing_class`.

    The adapter of PEFT is merged into a copy of its model.

    Args:
        task: of the pipeline, such as `text-classification`.
        folder: where to write, which must not exist.
    """
    import mlflow.transformers  # seconds, which trials without a model to register need not wait

    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    if hasattr(model, "merge_and_unload"):
        model = copy.deepcopy(model).merge_and_unload()
    tokenizer: Any = trainer.processing_class
    flavour = logging.getLogger("mlflow.transformers")
    level = flavour.level
    flavour.setLevel(logging.ERROR)  # it warns that a new model has no card and no license on the Hub
    try:
        mlflow.transformers.save_model(
            pipeline(task, model=model, tokenizer=tokenizer, device="cpu"),  # type: ignore[call-overload]
            str(folder),
            pip_requirements=list(_requirements()),  # given: MLflow infers none in a subprocess
        )
    finally:
        flavour.setLevel(level)
        model.to(trainer.args.device)


def _requirements() -> list[str]:
    found = []
    for name in _PACKAGES:
        try:
            found.append(f"{name}=={version(name).partition('+')[0]}")
        except PackageNotFoundError:
            continue
    return found
