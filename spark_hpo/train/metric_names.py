"""The metrics of a whole split by the names of torchmetrics, known without importing torch.

A metric is known by the name of its function in `torchmetrics.functional`. It must be a single number, and
must need no further arguments.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from spark_hpo.data.schema import Label, TableSchema


@dataclass(frozen=True, slots=True)
class SplitMetric:
    """A metric of torchmetrics."""

    class_name: str  # for classes without `Binary` or `Multiclass`
    needs_probability: bool = False
    needs_two_classes: bool = False  # not defined if all rows of the split are of one class


def _curve(class_name: str) -> SplitMetric:
    return SplitMetric(class_name, needs_probability=True, needs_two_classes=True)


OF_CLASSES: Mapping[str, SplitMetric] = {
    "accuracy": SplitMetric("Accuracy"),
    "auroc": _curve("AUROC"),
    "average_precision": _curve("AveragePrecision"),
    "calibration_error": SplitMetric("CalibrationError", needs_probability=True),
    "cohen_kappa": SplitMetric("CohenKappa"),
    "eer": _curve("EER"),
    "f1_score": SplitMetric("F1Score"),
    "hamming_distance": SplitMetric("HammingDistance"),
    "jaccard_index": SplitMetric("JaccardIndex"),
    "logauc": _curve("LogAUC"),
    "matthews_corrcoef": SplitMetric("MatthewsCorrCoef"),
    "negative_predictive_value": SplitMetric("NegativePredictiveValue"),
    "precision": SplitMetric("Precision"),
    "recall": SplitMetric("Recall"),
    "specificity": SplitMetric("Specificity"),
}

OF_NUMBERS: Mapping[str, SplitMetric] = {
    "concordance_corrcoef": SplitMetric("ConcordanceCorrCoef"),
    "explained_variance": SplitMetric("ExplainedVariance"),
    "kendall_rank_corrcoef": SplitMetric("KendallRankCorrCoef"),
    "log_cosh_error": SplitMetric("LogCoshError"),
    "mean_absolute_error": SplitMetric("MeanAbsoluteError"),
    "mean_absolute_percentage_error": SplitMetric("MeanAbsolutePercentageError"),
    "mean_squared_error": SplitMetric("MeanSquaredError"),
    "mean_squared_log_error": SplitMetric("MeanSquaredLogError"),
    "normalized_root_mean_squared_error": SplitMetric("NormalizedRootMeanSquaredError"),
    "pearson_corrcoef": SplitMetric("PearsonCorrCoef"),
    "r2_score": SplitMetric("R2Score"),
    "relative_squared_error": SplitMetric("RelativeSquaredError"),
    "spearman_corrcoef": SplitMetric("SpearmanCorrCoef"),
    "symmetric_mean_absolute_percentage_error": SplitMetric("SymmetricMeanAbsolutePercentageError"),
    "tweedie_deviance_score": SplitMetric("TweedieDevianceScore"),
    "weighted_mean_absolute_percentage_error": SplitMetric("WeightedMeanAbsolutePercentageError"),
}

SHORT_NAMES: Mapping[str, str] = {"f1": "f1_score", "r2": "r2_score"}

ALL_NAMES = frozenset({*OF_CLASSES, *OF_NUMBERS, *SHORT_NAMES})


def names_for(schema: TableSchema) -> frozenset[str]:
    """Return the names of the metrics that fit the label or, of several, as `<label>_<name>`, each label."""
    return frozenset(
        f"{label.name}_{name}" if schema.extra_labels else name
        for label in schema.labels
        for name in ALL_NAMES
        if _fits(name, label)
    )


def expanded(names: Iterable[str], schema: TableSchema) -> tuple[str, ...]:
    """Return the names for a table: with several labels, `auroc` stands for each label that it fits."""
    found: dict[str, None] = {}
    for name in names:
        labels = [label for label in schema.labels if schema.extra_labels and name in ALL_NAMES]
        for full in [f"{label.name}_{name}" for label in labels if _fits(name, label)] or [name]:
            found[full] = None
    return tuple(found)


def find_metric(name: str) -> SplitMetric:
    """Return the metric of a name in `ALL_NAMES`."""
    name = SHORT_NAMES.get(name, name)
    return OF_CLASSES[name] if name in OF_CLASSES else OF_NUMBERS[name]


def label_of(name: str, schema: TableSchema) -> tuple[Label, str]:
    """Return the label and the rest of a metric's name; with one label, the name as it is."""
    # The longest first: one label's name may begin with another's.
    labels = sorted(schema.labels, key=lambda label: -len(label.name))
    for label in labels if schema.extra_labels else ():
        if name.startswith(f"{label.name}_"):
            return label, name.removeprefix(f"{label.name}_")
    return schema.label, name


def known_among(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names that are or, of one of several labels, can be metrics of a whole split, each once."""
    endings = tuple(f"_{name}" for name in ALL_NAMES)
    return tuple(dict.fromkeys(name for name in names if name in ALL_NAMES or name.endswith(endings)))


def _fits(name: str, label: Label) -> bool:
    return SHORT_NAMES.get(name, name) in (OF_NUMBERS if label.is_regression else OF_CLASSES)
