"""Callbacks: progress in a terminal and in a notebook, TensorBoard, Weights & Biases."""

from __future__ import annotations

from spark_hpo.callbacks.tensorboard import TensorBoard
from spark_hpo.callbacks.weights_and_biases import WeightsAndBiases

__all__ = ["TensorBoard", "WeightsAndBiases"]
