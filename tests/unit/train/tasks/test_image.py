"""ImageTask changes the images of training batches at random, and no others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from spark_hpo.data.schema import ColumnKind, Feature, Label, TableSchema
from spark_hpo.data.table import Table, open_table
from spark_hpo.errors import TrialError
from spark_hpo.train.tasks.augmentation import Augmentation
from spark_hpo.train.tasks.image import ImageTask
from tests.support.training import train_task

SIDE = 8
SCHEMA = TableSchema(
    features=(Feature(name="pixels", kind=ColumnKind.ARRAY, shape=(1, SIDE, SIDE)),),
    label=Label(name="line", classes=("horizontal", "vertical")),
)
SMALL = {"learning_rate": 0.01, "channels": 4, "stages": 1}


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Table:
    """Images of short lines: on the left in the training split, on the right in the validation split."""
    folder = tmp_path_factory.mktemp("lines")
    rng = np.random.default_rng(0)
    for split, rows in {"train": 200, "validation": 100, "test": 8}.items():
        pixels = 0.1 * rng.normal(size=(rows, SIDE, SIDE))
        is_vertical = rng.integers(0, 2, rows)
        for image, vertical, top in zip(pixels, is_vertical, rng.integers(0, SIDE - 2, rows), strict=True):
            left = 0 if split == "train" else SIDE - 3
            image[(slice(top, top + 3), left + 1) if vertical else (top + 1, slice(left, left + 3))] += 1
        flat = pa.array(pixels.astype("float32").ravel())
        columns = pa.table(
            {"pixels": pa.FixedSizeListArray.from_arrays(flat, SIDE * SIDE), "line": is_vertical}
        )
        (folder / split).mkdir()
        pq.write_table(columns, folder / split / "part-0.parquet", row_group_size=50)
    (folder / "schema.json").write_text(json.dumps(SCHEMA.to_json()))
    return open_table(str(folder))


@pytest.mark.medium
def test_flips_teach_lines_on_the_other_side(lines: Table, tmp_path: Path) -> None:
    plain, flipped = (
        train_task("image", lines, tmp_path / str(share), epochs=8, flip_probability=share, **SMALL)
        for share in (0.0, 0.5)
    )
    assert plain.metrics["accuracy"] < 0.8
    assert flipped.metrics["accuracy"] > 0.9


@pytest.mark.medium
def test_augmented_training_resumes_bit_for_bit(lines: Table, tmp_path: Path) -> None:
    params = {"crop_padding": 1, "flip_probability": 0.5, "cutout": 3, **SMALL}
    whole = train_task("image", lines, tmp_path / "whole", epochs=4, **params)
    half = train_task("image", lines, tmp_path / "halves", epochs=2, max_epochs=4, **params)
    rest = train_task("image", lines, tmp_path / "halves", epochs=4, start=half, **params)
    assert [m.metrics for m in rest.curve] == [m.metrics for m in whole.curve[2:]]


def images(rows: int = 400) -> torch.Tensor:
    """Images whose pixels are numbered from 1, in two channels of which the second is negative."""
    numbers = torch.arange(1.0, 13.0).reshape(1, 1, 3, 4).repeat(rows, 1, 1, 1)
    return torch.cat([numbers, -numbers], dim=1)


def test_augmentation_crops_windows_of_the_padded_image() -> None:
    torch.manual_seed(0)
    cropped = Augmentation(crop_padding=1)(images())
    padded = torch.nn.functional.pad(images(1)[0], [1] * 4)
    windows = [padded[:, top : top + 3, left : left + 4] for top in range(3) for left in range(3)]
    found = [next(i for i, window in enumerate(windows) if torch.equal(window, one)) for one in cropped]
    assert set(found) == set(range(9))


def test_augmentation_flips_a_share_of_the_images() -> None:
    torch.manual_seed(0)
    before = images()
    after = Augmentation(flip_probability=0.25)(before)
    is_flipped = (after == before.flip(3)).flatten(1).all(dim=1)
    assert (after[~is_flipped] == before[~is_flipped]).all()
    assert 0.15 < is_flipped.float().mean() < 0.35


def test_augmentation_covers_a_square_of_all_channels() -> None:
    torch.manual_seed(0)
    covered = Augmentation(cutout=2)(images()) == 0
    assert torch.equal(covered[:, 0], covered[:, 1])
    assert set(covered[:, 0].flatten(1).sum(dim=1).tolist()) == {1, 2, 4}  # 1 and 2 at an edge
    assert covered[:, 0].any(dim=0).all()


def test_augmentation_leaves_an_evaluation_alone() -> None:
    augmentation = Augmentation(crop_padding=1, flip_probability=1.0, cutout=2).eval()
    assert torch.equal(augmentation(images()), images())


def test_augmentation_draws_no_random_numbers_by_default() -> None:
    before = torch.get_rng_state()
    model = ImageTask({}, SCHEMA).build_model()
    assert next(iter(model.state_dict())) == "layers.0.weight"
    torch.set_rng_state(before)
    batch = {"pixels": torch.ones(2, 1, SIDE, SIDE)}
    model(batch)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "value"), [("crop_padding", -1), ("crop_padding", 9), ("flip_probability", 1.5), ("cutout", -2)]
)
def test_augmentation_out_of_range_fails_the_trial(name: str, value: float) -> None:
    with pytest.raises(TrialError, match=f"{name} .*got {value}"):
        ImageTask({name: value}, SCHEMA).build_model()
