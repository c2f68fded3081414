"""Callbacks: progress in a terminal and in a notebook, TensorBoard."""

from __future__ import annotations

from spark_hpo.callbacks.tensorboard import TensorBoard

__all__ = ["TensorBoard"]
