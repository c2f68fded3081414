"""Checks for columns that give the label away, alone, by their missing values, or as a sum."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from spark_hpo.pitfalls.pitfall import Pitfall, PitfallKind
from spark_hpo.pitfalls.sample import Codes, Floats, Marks, Sample

_MIN_ROWS = 100
_MIN_MISSING = 20
_MOSTLY_MISSING = 0.99
_AUC = 0.995
_ACCURACY = 0.98  # share of the errors of the constant answer that a column avoids
_R2 = 0.995
_EXACT = 1 - 1e-6  # R2 of an identity; float32 has seven digits
_BINS = 100
_MAX_TERMS = 4  # of a sum
_PRECISION, _RECALL = 0.95, 0.5  # of "missing" as a prediction of one class


def all_leaks(sample: Sample) -> Iterator[Pitfall]:
    """Yield the pitfalls of single columns, and of sums of columns. Half of the rows check the other half."""
    yield from _mostly_missing(sample)
    rows = np.random.default_rng(0).permutation(sample.rows)
    half = sample.rows // 2
    if half < _MIN_ROWS // 2 or np.ptp(sample.label) == 0:
        return
    fitted, checked = sample.take(rows[:half]), sample.take(rows[half:])
    named: set[str] = set()
    for pitfall in _missing_with_label(sample):
        named.update(pitfall.columns)
        yield pitfall
    for name in (*sample.numbers, *sample.codes):
        if name not in named and (figure := _gives_away(fitted, checked, name)):
            named.add(name)
            yield Pitfall(
                kind=PitfallKind.LEAK,
                columns=(name,),
                message=f"column {name!r} alone predicts the label {sample.label_name!r} ({figure})",
                cure=f"If it is known only after the label, leave it out ({_drop(name)})",
            )
    if not sample.classes:
        yield from _sums(fitted, checked, named)


def _mostly_missing(sample: Sample) -> Iterator[Pitfall]:
    for name, marks in sample.missing.items():
        if sample.rows >= _MIN_ROWS and (share := marks.mean()) >= _MOSTLY_MISSING:
            yield Pitfall(
                kind=PitfallKind.MOSTLY_MISSING,
                columns=(name,),
                message=f"column {name!r} is missing in {share:.1%} of the rows",
                cure=f"Leave it out ({_drop(name)}), unless a value is a signal by itself",
            )


def _missing_with_label(sample: Sample) -> Iterator[Pitfall]:
    for name, marks in sample.missing.items():
        if marks.sum() < _MIN_MISSING or (~marks).sum() < _MIN_MISSING:
            continue
        if sample.classes:
            answers = np.bincount(sample.label[marks].astype(np.int64), minlength=len(sample.classes))
            best = int(answers.argmax())
            of_class = sample.label == best
            precision, recall = answers[best] / marks.sum(), answers[best] / of_class.sum()
            if precision < _PRECISION or recall < _RECALL or of_class.mean() > 0.5:
                continue
            where = f"{sample.label_name!r} is {sample.classes[best]!r}"
            figure = (
                f"in {recall:.0%} of these rows, and in {_missing_elsewhere(marks, of_class):.2%} of others"
            )
        else:
            explained = np.corrcoef(marks, sample.label)[0, 1] ** 2
            if explained < 0.9:
                continue
            where = f"{sample.label_name!r} differs"
            figure = f"R2 {explained:.3f}"
        yield Pitfall(
            kind=PitfallKind.MISSING_WITH_LABEL,
            columns=(name,),
            message=f"column {name!r} is missing where {where} ({figure})",
            cure=f"It is probably known only after the label: leave it out ({_drop(name)})",
        )


def _missing_elsewhere(marks: Marks, of_class: Marks) -> float:
    return float(marks[~of_class].mean())


def _gives_away(fitted: Sample, checked: Sample, name: str) -> str | None:
    """How well a column predicts the label, as a figure, if nearly perfectly."""
    bins, others = _binned(fitted, checked, name)
    size = int(max(bins.max(initial=0), others.max(initial=0))) + 1
    if not fitted.classes:
        return _r2_figure(fitted, checked, name, bins, others, size)
    classes = len(fitted.classes)
    counts = np.zeros((size, classes))
    np.add.at(counts, (bins, fitted.label.astype(np.int64)), 1)
    prior = np.bincount(fitted.label.astype(np.int64), minlength=classes) / fitted.rows
    shares = (counts + prior) / (counts.sum(axis=1, keepdims=True) + 1)
    truth = checked.label.astype(np.int64)
    if classes == 2:
        if min(np.bincount(truth, minlength=2)) < 20:
            return None
        auc = _auc(shares[others, 1], truth == 1)
        return f"AUC {auc:.3f}" if auc >= _AUC else None
    constant = float((truth == prior.argmax()).mean())
    accuracy = float((shares[others].argmax(axis=1) == truth).mean())
    if constant < 1 and (accuracy - constant) / (1 - constant) >= _ACCURACY and (1 - constant) >= 0.1:
        return f"accuracy {accuracy:.1%}"
    return None


def _r2_figure(
    fitted: Sample, checked: Sample, name: str, bins: Codes, others: Codes, size: int
) -> str | None:
    total = ((checked.label - fitted.label.mean()) ** 2).sum()
    counts = np.bincount(bins, minlength=size)
    sums = np.bincount(bins, fitted.label, minlength=size)
    means = (sums + fitted.label.mean()) / (counts + 1)
    r2 = 1 - ((checked.label - means[others]) ** 2).sum() / total
    if name in fitted.numbers and not (
        np.isnan(fitted.numbers[name]).any() or np.isnan(checked.numbers[name]).any()
    ):
        line = _line(fitted.numbers[name], fitted.label)
        r2 = max(r2, 1 - ((checked.label - line(checked.numbers[name])) ** 2).sum() / total)
    return f"R2 {r2:.4f}" if r2 >= _R2 else None


def _line(x: Floats, y: Floats) -> np.poly1d:
    centre, scale = x.mean(), x.std() or 1.0
    slope = ((x - centre) * (y - y.mean())).mean() / scale**2
    return np.poly1d([slope, y.mean() - slope * centre])


def _binned(fitted: Sample, checked: Sample, name: str) -> tuple[Codes, Codes]:
    """The bins of a column in both samples: its codes, or a hundred ranges of equal counts; 0: missing."""
    if name in fitted.codes:
        return fitted.codes[name], checked.codes[name]
    values = fitted.numbers[name]
    known = values[~np.isnan(values)]
    edges = np.unique(np.quantile(known, np.linspace(0, 1, _BINS + 1)[1:-1])) if len(known) else np.zeros(0)

    def bins(values: Floats) -> Codes:
        return np.where(np.isnan(values), 0, 1 + np.searchsorted(edges, values, side="left")).astype(np.int64)

    return bins(values), bins(checked.numbers[name])


def _auc(scores: npt.NDArray[np.float64], positive: Marks) -> float:
    """The area under the ROC curve, with half of a point for ties (Mann and Whitney, 1947)."""
    _, ranks, counts = np.unique(scores, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts - 1) / 2
    above = middle[ranks][positive].sum() - positive.sum() * (positive.sum() + 1) / 2
    return float(above / (positive.sum() * (~positive).sum()))


def _sums(fitted: Sample, checked: Sample, named: set[str]) -> Iterator[Pitfall]:
    """Yield the smallest set of columns whose weighted sum is the label (orthogonal matching pursuit)."""
    names = [
        name
        for name, values in fitted.numbers.items()
        if name not in named
        and not (np.isnan(values).any() or np.isnan(checked.numbers[name]).any())
        and values.std()
    ]
    if len(names) < 2 or fitted.rows < 5 * len(names):
        return
    left, right = (np.stack([s.numbers[name] for name in names], axis=1) for s in (fitted, checked))
    centre, scale = left.mean(axis=0), left.std(axis=0)
    left, right = (left - centre) / scale, (right - centre) / scale
    target, truth = fitted.label - fitted.label.mean(), checked.label - fitted.label.mean()
    chosen: list[int] = list(range(len(names)))

    def fit(columns: list[int]) -> tuple[Floats, float]:
        weights = np.linalg.lstsq(left[:, columns], target, rcond=None)[0]
        rest = truth - right[:, columns] @ weights
        return weights, float(1 - (rest**2).sum() / (truth**2).sum())

    if fit(chosen)[1] < _EXACT:
        return
    chosen, residual, weights, r2 = [], target, np.zeros(0), 0.0
    while r2 < _EXACT and len(chosen) < _MAX_TERMS:
        products = np.abs(left.T @ residual)
        products[chosen] = -1
        chosen.append(int(products.argmax()))
        weights, r2 = fit(chosen)
        residual = target - left[:, chosen] @ weights
    if r2 < _EXACT:
        return
    # Columns that were chosen early may turn out to be superfluous.
    for column in list(chosen):
        without = [other for other in chosen if other != column]
        if len(without) > 1 and fit(without)[1] >= _EXACT:
            chosen = without
    weights, r2 = fit(chosen)
    factors = weights / scale[chosen]
    terms = tuple(names[i] for i in chosen)
    is_sum = np.allclose(factors, 1, atol=1e-3)
    formula = " + ".join(terms) if is_sum else "a weighted sum of " + " and ".join(terms)
    yield Pitfall(
        kind=PitfallKind.LEAK,
        columns=terms,
        message=f"the label {fitted.label_name!r} is {formula} (R2 {r2:.6f})",
        cure=f"If they are known only together with the label, leave them out ({_drop(*terms)})",
    )


def _drop(*names: str) -> str:
    """Return the option of `prepare` that leaves columns out, and the setting in a study file."""
    return f"--drop {','.join(names)}; in a study file, drop: [{', '.join(names)}]"
