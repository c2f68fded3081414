"""TabularTask: a network for columns of any kind."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from spark_hpo.errors import TrialError
from spark_hpo.train.built_in import MODELS
from spark_hpo.train.task import LabelledTask
from spark_hpo.train.tasks.tabular_models import PlainModel, ResidualModel


class TabularTask(LabelledTask):
    """Classification or regression on columns of any kind. `task: tabular` in a study file.

    Categories become embeddings. Arrays are flattened. A sequence of numbers is flattened together with its
    length; a sequence of categories becomes the mean of its elements' embeddings. The rate follows a cosine
    schedule.

    Parameters, with their defaults:
        model: mlp, a multilayer perceptron; or resnet, a residual network with periodic embeddings of numbers
            (Gorishniy et al., "On Embeddings for Numerical Features in Tabular Deep Learning", 2022).
        learning_rate: 1e-3, of AdamW.
        weight_decay: 0.01, of AdamW.
        hidden_units: 128, per hidden layer; of a resnet: between its blocks, which are twice as wide inside.
        hidden_layers: 2; of a resnet: blocks.
        dropout: 0.0, after each hidden layer.
        embedding_units: 16, the largest width of an embedding; a column of n codes uses at most (n + 1) // 2.

    Parameters of a resnet only:
        number_units: 16, the width of the embedding of each numeric column.
        frequency_scale: 0.5, the standard deviation of these embeddings' initial frequencies, in periods per
            standard deviation of the column. With a larger one, the network distinguishes closer values.

    Raises:
        TrialError: there is no such model.
    """

    def build_model(self) -> nn.Module:
        match self.params.get("model", "mlp"):
            case "mlp":
                return PlainModel(self.schema, num_outputs=self.num_outputs, **self._sizes())
            case "resnet":
                return ResidualModel(
                    self.schema,
                    num_outputs=self.num_outputs,
                    number_units=int(self.params.get("number_units", 16)),
                    frequency_scale=float(self.params.get("frequency_scale", 0.5)),
                    **self._sizes(),
                )
            case unknown:
                raise TrialError(
                    f"the parameter model must be one of {', '.join(MODELS['tabular'])} (got {unknown!r})"
                )

    def build_schedule(self, optimizer: Optimizer, *, total_steps: int) -> LRScheduler | None:
        return CosineAnnealingLR(optimizer, T_max=total_steps)

    def _sizes(self) -> dict[str, Any]:
        return {
            "hidden_units": int(self.params.get("hidden_units", 128)),
            "hidden_layers": int(self.params.get("hidden_layers", 2)),
            "dropout": float(self.params.get("dropout", 0.0)),
            "embedding_units": int(self.params.get("embedding_units", 16)),
        }
