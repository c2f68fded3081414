"""Random changes to the images of a training batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Augmentation(nn.Module):
    """Crops, flips and partly covers each image of a batch at random, on the device of the batch.

    Returns the images as they are unless the network is in training mode. The random numbers come from the
    device's generator, which is seeded for the trial and saved with its checkpoints. A change that is turned
    off draws no numbers.

    Args:
        crop_padding: pixels of zeros on each side, from which a window of the original size is cropped.
        flip_probability: of a horizontal flip.
        cutout: the side of a square of zeros, in pixels; less of it where it is beyond an edge.
    """

    def __init__(self, *, crop_padding: int = 0, flip_probability: float = 0.0, cutout: int = 0) -> None:
        super().__init__()
        self.crop_padding = crop_padding
        self.flip_probability = flip_probability
        self.cutout = cutout

    def forward(self, images: Tensor) -> Tensor:
        """Return images [rows, channels, height, width] of the same shape."""
        if not self.training:
            return images
        if self.crop_padding:
            images = _cropped(images, self.crop_padding)
        if self.flip_probability:
            is_flipped = torch.rand(len(images), 1, 1, 1, device=images.device) < self.flip_probability
            images = torch.where(is_flipped, images.flip(3), images)
        if self.cutout:
            images = images.masked_fill(_squares(images, self.cutout), 0.0)
        return images


def _cropped(images: Tensor, padding: int) -> Tensor:
    rows, _, height, width = images.shape
    padded = functional.pad(images, [padding] * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: [rows, channels, tops, lefts, ...]
    tops, lefts = torch.randint(0, 2 * padding + 1, (2, rows), device=images.device)
    return windows[torch.arange(rows, device=images.device), :, tops, lefts]


def _squares(images: Tensor, side: int) -> Tensor:
    """Return where each image has a square of this side around a random pixel: [rows, 1, height, width]."""
    rows, _, height, width = images.shape
    is_inside = []
    for length in (height, width):
        starts = torch.randint(0, length, (rows, 1), device=images.device) - side // 2
        offsets = torch.arange(length, device=images.device) - starts
        is_inside.append((offsets >= 0) & (offsets < side))
    vertical, horizontal = is_inside
    return (vertical.unsqueeze(2) & horizontal.unsqueeze(1)).unsqueeze(1)
