"""The files of a trained model, and the signature that MLflow shows of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.models import ModelSignature


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInput:
    """A column that a model takes."""

    name: str
    type: str  # a type of MLflow, or number, any, or an array such as array<number>
    is_required: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """The files and facts of a trained model that MLflow needs."""

    model_dir: Path  # handed to the loader
    loader_module: str  # has `_load_pyfunc(data_path)`, which returns an object with `predict(DataFrame)`
    input_example: pd.DataFrame | None  # a few rows; None: there are none
    predict: Callable[[Any], Any]  # for the signature: what the loaded model returns for the example
    pip_requirements: Sequence[str]
    inputs: Sequence[ModelInput] = ()  # of the signature; empty: those of the example
    code_paths: Sequence[Path] = ()  # packages that the loader imports, where they are not installed


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedModel:
    """A model that its training function has saved in the format of MLflow, with any of its flavours."""

    folder: Path  # with the file MLmodel


def signature_of(files: ModelFiles) -> ModelSignature:
    """Return the columns that a model takes and returns, as MLflow describes them."""
    from mlflow.models import ModelSignature, infer_signature
    from mlflow.types import ColSpec, Schema

    example = files.input_example
    answers: Any = None if example is None else files.predict(example)
    if not files.inputs:
        assert example is not None, "without inputs, the example gives the signature"
        return infer_signature(_widened(example), answers)
    columns: Any = [ColSpec(_mlflow_type(c.type), c.name, required=c.is_required) for c in files.inputs]
    outputs = None if answers is None else infer_signature(model_output=answers).outputs
    return ModelSignature(Schema(columns), outputs)


def _mlflow_type(kind: str) -> Any:
    from mlflow.types import DataType
    from mlflow.types.schema import AnyType, Array

    if kind.startswith("array<"):
        return Array(_mlflow_type(kind[len("array<") : -1]))
    # MLflow refuses integers where it expects doubles, so it leaves the check of numbers to the model.
    any_type: Any = AnyType
    return any_type() if kind in ("any", "number") else DataType[kind]


def _widened(frame: pd.DataFrame) -> pd.DataFrame:
    """Widen numbers to 64 bits, because MLflow refuses to narrow those of a caller."""
    wide = {"f": "float64", "i": "int64"}
    return frame.astype({n: wide[t.kind] for n, t in frame.dtypes.items() if t.kind in wide})
