"""Parameter importance by PED-ANOVA."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from spark_hpo.objective import Score
from spark_hpo.search.space import Space
from spark_hpo.search.space.axis import Array, Axes, Axis
from spark_hpo.trial import Params

MIN_RESULTS = 10

_TOP_SHARE = 0.1  # gamma' of the paper; its gamma is 1
_MIN_TOP = 5  # trials among the top, so that their density means something
_MIN_ACTIVE = 2  # trials in which a conditional parameter must be active
_CELLS = 50  # of the grid on which the densities of a number are compared
_MIN_BANDWIDTH = 0.5 / 1.64  # in cells: 90 % of a kernel lie in its own cell
_TINY = 1e-12  # keeps a ratio of densities finite


def importance(space: Space, results: Sequence[tuple[Params, Score]]) -> dict[str, float]:
    """Return the share of each parameter by its dotted name, in descending order; the shares sum to 1.

    PED-ANOVA (Watanabe et al. 2023, arXiv:2304.10255) measures, for one parameter at a time, how much the
    distribution of the best tenth of the trials (of at least five) differs from that of all trials, so it
    does not see interactions. A conditional parameter is compared where it is active, and weighted by how
    often that is (conditional PED-ANOVA, arXiv:2601.20800).

    Args:
        results: parameters and score of trials that were trained to the same resource. Scores that are not
            finite are ignored.

    Returns:
        An empty dict if fewer than `MIN_RESULTS` scores are finite or the space has no parameters.

    Raises:
        SpaceError: parameters do not fit the space.
    """
    finite = [(params, score) for params, score in results if score.is_finite]
    axes = Axes(space)
    if len(finite) < MIN_RESULTS or not len(axes):
        return {}
    rows = np.stack([axes.row(params) for params, _ in finite])
    scores = [score for _, score in finite]
    num_top = math.ceil(max(_TOP_SHARE, min(0.5, _MIN_TOP / len(scores))) * len(scores))
    threshold = sorted(scores)[num_top - 1]
    is_top = np.array([score <= threshold for score in scores])
    divergences: dict[str, float] = {}
    for axis, positions in zip(axes.axes, rows.T, strict=True):
        is_active = ~np.isnan(positions)
        if is_active.any():
            # Two options of a choice may have parameters of the same name.
            name = ".".join(map(str, axis.dimension.path))
            divergences[name] = divergences.get(name, 0.0) + _divergence(
                axis, positions[is_active], is_top, is_active
            )
    total = sum(divergences.values())
    shares = {name: d / total if total > 0 else 1 / len(divergences) for name, d in divergences.items()}
    return dict(sorted(shares.items(), key=lambda item: (-item[1], item[0])))


def _divergence(
    axis: Axis, positions: Array, is_top: npt.NDArray[np.bool_], is_active: npt.NDArray[np.bool_]
) -> float:
    """Theorem 4.2 of conditional PED-ANOVA, without the factor that all parameters share."""
    top = positions[is_top[is_active]]
    if axis.options == 1 or len(positions) < _MIN_ACTIVE or not len(top):
        return 0.0
    density = _choice_density if axis.options else _number_density
    num_cells = axis.options or _CELLS
    of_top, of_all = (density(_counts(axis, some, num_cells)) + _TINY for some in (top, positions))
    alpha, beta = len(top) / is_top.sum(), len(positions) / len(is_active)
    divergence = of_all @ (of_top / of_all - 1) ** 2  # of Pearson
    return float(alpha**2 / beta * divergence)


def _counts(axis: Axis, positions: Array, num_cells: int) -> npt.NDArray[np.int64]:
    """Trials in each cell: an option of a choice, or a step of the grid over a number."""
    cells = positions if axis.options else np.ceil(positions / (1 / (num_cells - 1)) - 0.5)
    return np.bincount(cells.astype(int), minlength=num_cells)


def _number_density(counts: npt.NDArray[np.int64]) -> Array:
    """Probability of each cell by a kernel density estimate with Scott's rule, and one kernel as prior."""
    num_cells, total = len(counts), counts.sum()
    seen = np.flatnonzero(counts)
    weights = counts[seen]
    cumulated = np.cumsum(weights)
    mean = seen @ weights / total
    deviation = math.sqrt((seen - mean) ** 2 @ weights / max(1, total - 1))
    lower = seen[np.searchsorted(cumulated, total // 4)]
    upper = seen[min(len(seen) - 1, int(np.searchsorted(cumulated, total * 3 // 4, side="right")))]
    bandwidth = max(1.059 * min((upper - lower) / 1.34, deviation) * total**-0.2, _MIN_BANDWIDTH)
    centres = np.append(seen, (num_cells - 1) / 2)
    widths = np.append(np.full(len(seen), bandwidth), num_cells)
    edges = (np.arange(num_cells + 1)[:, None] - 0.5 - centres) / widths
    mass = ndtr(edges)
    kernels = np.diff(mass, axis=0) / (mass[-1] - mass[0])
    density: Array = kernels @ np.append(weights, 1) / (total + 1)
    return density


def _choice_density(counts: npt.NDArray[np.int64]) -> Array:
    """Probability of each option: a smoothed kernel at each option that was taken, and a uniform prior."""
    num_options, total = len(counts), counts.sum()
    smoothing = 1 / (np.count_nonzero(counts) + 1)
    smoothed = (counts + smoothing * total) / (1 + smoothing * num_options)
    density: Array = (smoothed + 1 / num_options) / (total + 1)
    return density
