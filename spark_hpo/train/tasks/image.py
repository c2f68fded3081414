"""ImageTask: a convolutional network for small images."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from spark_hpo.data.schema import ColumnKind, Feature
from spark_hpo.errors import DataError, TrialError
from spark_hpo.train.task import Batch, LabelledTask
from spark_hpo.train.tasks.augmentation import Augmentation
from spark_hpo.train.tasks.tabular_models import PlainModel


class ImageTask(LabelledTask):
    """Classification or regression on one column of images. `task: image` in a study file.

    The column is an array of shape (channels, height, width), or bytes that a transform decodes to one. Other
    columns are used if `column_units` is not 0. The rate follows a cosine schedule.

    Parameters, with their defaults:
        learning_rate: 1e-3, of AdamW.
        weight_decay: 0.01, of AdamW.
        channels: 32, in the first stage; each further stage has twice as many.
        stages: 2; each halves height and width.
        dropout: 0.0, before the last layer.
        column_units: 0, the width in which the image meets a perceptron over all other columns.
        embedding_units: 16, for categories among the other columns, as in `TabularTask`.

    Parameters of the augmentation, which changes the images of training batches at random:
        crop_padding: 0, pixels of zeros to add on each side before a window of the original size is cropped.
        flip_probability: 0.0, of a horizontal flip.
        cutout: 0, the side, in pixels, of a square that is set to zero.

    Raises:
        DataError: the table does not have exactly one column of images, or `column_units` is set and there
            are no other columns.
        TrialError: a parameter of the augmentation is out of range.
    """

    def build_model(self) -> nn.Module:
        units = int(self.params.get("column_units", 0))
        image = _ConvolutionalModel(
            self._image,
            num_outputs=units or self.num_outputs,
            channels=int(self.params.get("channels", 32)),
            stages=int(self.params.get("stages", 2)),
            dropout=float(self.params.get("dropout", 0.0)),
            augmentation=self._augmentation(),
        )
        if not units:
            return image
        others = tuple(feature for feature in self.schema.features if feature != self._image)
        if not others:
            raise DataError("ImageTask: column_units needs columns beside the image, but the table has none")
        columns = PlainModel(
            replace(self.schema, features=others),
            num_outputs=units,
            hidden_units=units,
            hidden_layers=1,
            dropout=float(self.params.get("dropout", 0.0)),
            embedding_units=int(self.params.get("embedding_units", 16)),
        )
        return _ImageAndColumns(image, columns, units=units, num_outputs=self.num_outputs)

    def build_schedule(self, optimizer: Optimizer, *, total_steps: int) -> LRScheduler | None:
        return CosineAnnealingLR(optimizer, T_max=total_steps)

    def _augmentation(self) -> Augmentation:
        side = min(self._image.shape[1:])
        for name, most in (("crop_padding", side), ("flip_probability", 1.0), ("cutout", side)):
            value = self.params.get(name, 0)
            if not 0 <= value <= most:
                raise TrialError(
                    f"ImageTask: the parameter {name} must be at least 0 and at most {most} (got {value})"
                )
        return Augmentation(
            crop_padding=int(self.params.get("crop_padding", 0)),
            flip_probability=float(self.params.get("flip_probability", 0.0)),
            cutout=int(self.params.get("cutout", 0)),
        )

    @property
    def _image(self) -> Feature:
        arrays = self.schema.of_kind(ColumnKind.ARRAY, ColumnKind.BINARY)
        images = [f for f in arrays if len(f.shape) == 3]
        if len(images) != 1:
            found = ", ".join(f"{f.name} {f.shape}" for f in self.schema.features)
            raise DataError(
                "ImageTask needs exactly one array column of shape (channels, height, width), but the table "
                f"has {found}. For other columns use TabularTask"
            )
        return images[0]


class _ImageAndColumns(nn.Module):
    """Two networks, whose outputs a perceptron combines."""

    def __init__(self, image: nn.Module, columns: nn.Module, *, units: int, num_outputs: int) -> None:
        super().__init__()
        self.image = image
        self.columns = columns
        self.last = nn.Sequential(
            nn.ReLU(), nn.Linear(2 * units, units), nn.ReLU(), nn.Linear(units, num_outputs)
        )

    def forward(self, batch: Batch) -> Tensor:
        """Return [rows, outputs]."""
        outputs: Tensor = self.last(torch.cat([self.image(batch), self.columns(batch)], dim=1))
        return outputs


class _ConvolutionalModel(nn.Module):
    def __init__(
        self,
        image: Feature,
        *,
        num_outputs: int,
        channels: int,
        stages: int,
        dropout: float,
        augmentation: Augmentation,
    ) -> None:
        super().__init__()
        self._name = image.name
        self.augmentation = augmentation
        width = image.shape[0]
        layers: list[nn.Module] = []
        for stage in range(stages):
            layers += [
                nn.Conv2d(width, channels << stage, kernel_size=3, padding=1),
                # Group normalisation has no running statistics, so ranks and batch sizes do not matter.
                nn.GroupNorm(num_groups=1, num_channels=channels << stage),
                nn.ReLU(),
                nn.MaxPool2d(kernel_size=2, ceil_mode=True),
            ]
            width = channels << stage
        height, breadth = ((side + (1 << stages) - 1) >> stages for side in image.shape[1:])
        self.layers = nn.Sequential(
            *layers,
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(width * height * breadth, num_outputs),
        )

    def forward(self, batch: Batch) -> Tensor:
        """Return [rows, outputs]."""
        outputs: Tensor = self.layers(self.augmentation(batch[self._name]))
        return outputs
