"""How much each parameter matters for being among the best: PED-ANOVA, as Optuna has it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

from spark_hpo.objective import Score
from spark_hpo.search.pareto import Penalty
from spark_hpo.search.samplers.optuna_samplers import import_optuna, parameters_of
from spark_hpo.search.space import Space
from spark_hpo.search.space.axis import Axes
from spark_hpo.trial import Params

ENOUGH = 10
"""Results that it takes."""

_MOST = 2000  # results that are looked at: more change nothing, and take a second for each thousand
_BEST = 0.1  # the share of trials that is looked at, as in the paper
_FEWEST_BEST = 5  # of these there should be as many


def importance(space: Space, results: Sequence[tuple[Params, Score]]) -> dict[str, float]:
    """The share of each parameter by its dotted name, the largest first; they sum to 1.

    PED-ANOVA (Watanabe et al. 2023, arXiv:2304.10255) asks how much the best tenth of the trials differs
    from all of them, parameter by parameter; with few trials, the best five. Conditional parameters count
    where they are active (arXiv:2601.20800). It says nothing of how parameters act together.

    Args:
        results: parameters and score of trials that were trained alike. Those that are not finite are left
            out, and of thousands an even choice is taken.

    Returns:
        Nothing where there are fewer than `ENOUGH` results, or nothing to choose between.

    Raises:
        SpaceError: parameters do not fit the space.
    """
    finite = [(params, score) for params, score in results if score.is_finite]
    finite = finite[:: math.ceil(len(finite) / _MOST) or 1]
    axes = Axes(space)
    if len(finite) < ENOUGH or not len(axes):
        return {}
    optuna = import_optuna()
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it tells of each study that it makes
    try:
        study = optuna.create_study()
    finally:
        optuna.logging.set_verbosity(verbosity)
    penalty = Penalty.among((score.loss,) for _, score in finite if not score.violation)
    for params, score in finite:
        losses = penalty.losses((score.loss,), score.violation)
        distributions, values = parameters_of(optuna, axes, axes.row(params))
        study.add_trial(optuna.trial.create_trial(params=values, distributions=distributions, values=losses))
    share = max(_BEST, min(0.5, _FEWEST_BEST / len(finite)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of conditions that few trials meet, and of features being new
        found = optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.PedAnovaImportanceEvaluator(target_quantile=share)
        )
    shares: dict[str, float] = {}
    for number, value in found.items():  # the options of a choice may each have a parameter of one name
        name = ".".join(map(str, axes.axes[int(number)].dimension.path))
        shares[name] = shares.get(name, 0.0) + float(value)
    return dict(sorted(shares.items(), key=lambda item: (-item[1], item[0])))
