"""Predicts on executors: the model travels as a zip file and is loaded once per Python process."""

from __future__ import annotations

import atexit
import hashlib
import io
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from spark_hpo.data.encode import with_answers
from spark_hpo.train.network import NOTE_FILE, PROGRAM_FILE
from spark_hpo.train.predictor import Predictor

MODEL, CODE = "model", "code"  # folders in the zip file

_loaded: dict[str, Predictor] = {}


def packed(model: Path, code: Path | None) -> bytes:
    """Return a model's folder, and its folder of code, as a zip file."""
    roots = {MODEL: model} if code is None else {MODEL: model, CODE: code}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for folder, root in roots.items():
            for file in sorted(root.rglob("*")):
                place = file.relative_to(root)
                # Executors have this package.
                is_package = place.parts[0].startswith("spark_hpo")
                is_needed = not is_package and file.name not in (PROGRAM_FILE, NOTE_FILE)
                if file.is_file() and is_needed:
                    archive.write(file, f"{folder}/{place}")
    return buffer.getvalue()


def unpacked(archive: bytes) -> Predictor:
    """Return the model in a zip file. Its code is imported from folders that last as long as the process."""
    digest = hashlib.sha256(archive).hexdigest()
    if digest not in _loaded:
        folder = tempfile.mkdtemp(prefix="spark_hpo-model-")
        with zipfile.ZipFile(io.BytesIO(archive)) as file:
            file.extractall(folder)
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        # At the end: the executor's own packages come first.
        sys.path += [f"{folder}/{CODE}", f"{folder}/{MODEL}"]
        _loaded[digest] = Predictor.load(f"{folder}/{MODEL}")
        Path(folder, MODEL, "weights.pt").unlink()  # Spark kills workers, which then do not clean up
    return _loaded[digest]


def score(batches: Iterator[Any], names: Sequence[str], *, archive: bytes) -> Iterator[Any]:
    """Append predictions to Arrow batches.

    Args:
        names: of the columns of the batches.

    Raises:
        DataError: a row cannot be encoded.
    """
    torch.set_num_threads(1)  # a task has one core
    model = unpacked(archive)
    for batch in batches:
        yield with_answers(batch, model.predict_batch(dict(zip(names, batch.columns, strict=True))))
