"""HyperoptSampler: hyperopt's own algorithms, such as `tpe.suggest`, as a sampler for any hyperopt space."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spark_hpo.errors import ConfigError, SpaceError
from spark_hpo.search.pareto import Losses
from spark_hpo.search.sampler import Sampler
from spark_hpo.search.samplers.tpe import document_of
from spark_hpo.trial import Params

Suggest = Callable[..., list[dict[str, Any]]]
"""`suggest(new_ids, domain, trials, seed)`, as hyperopt's `fmin` calls its `algo`."""

_NEW, _RUNNING, _DONE = 0, 1, 2  # hyperopt's JOB_STATE_*


@dataclass(eq=False)
class HyperoptSampler(Sampler):
    """Proposes parameters with one of hyperopt's algorithms.

    Parameters are hyperopt's own: values by label, with the index of the option for a choice. So every
    hyperopt space is supported.

    - **Running** trials count with the median loss. hyperopt itself would treat them as the worst trials, and
      avoid the regions where it has just proposed points. They are hidden until `num_startup_trials` trials
      have ended, because hyperopt counts started trials, not ended ones.
    - **Failed** trials have no loss, so hyperopt treats them as worse than all others.

    Raises:
        SpaceError: `expression` is not a hyperopt space.
    """

    expression: Any  # the space, built from `hp.*`
    suggest: Suggest  # `tpe.suggest`, `anneal.suggest`, ..., or `functools.partial` of one
    seed: int
    earlier: Sequence[Mapping[str, Any]] = ()  # as in `Trials.trials`, of trials that ended before this study

    def __post_init__(self) -> None:
        self._domain = domain_of(self.expression)
        self.labels = tuple(self._domain.params)
        self.num_startup_trials = _startup_trials(self.suggest)
        self._earlier = [
            {**document, "tid": tid, "misc": _renumbered(document["misc"], tid)}
            for tid, document in enumerate(self.earlier, start=-len(self.earlier))
        ]
        self._params: dict[int, Params] = {}
        self._losses: dict[int, float] = {}  # infinite for a failure

    def ask(self, trial_id: int) -> Params:
        from hyperopt import trials_from_docs

        rng = np.random.default_rng((self.seed, trial_id))
        trials = trials_from_docs([*self._earlier, *self._documents()], validate=False)
        with np.errstate(all="ignore"):  # the log of a density that underflows is -inf, as it should be
            proposals = self.suggest([trial_id], self._domain, trials, int(rng.integers(2**31 - 1)))
        if not proposals:
            raise ConfigError("has nothing more to propose", key="algo", cure="Lower max_evals")
        return values_by_label(proposals[0])

    def start(self, trial_id: int, params: Params) -> None:
        check_labels(params, self.labels)
        self._params[trial_id] = params

    def tell(
        self, trial_id: int, *, resource: int, loss: float, others: Losses = (), violation: float = 0.0
    ) -> None:
        assert trial_id in self._params, f"trial {trial_id} has not been started"
        self._losses[trial_id] = loss

    def _documents(self) -> list[dict[str, Any]]:
        finite = [loss for loss in self._losses.values() if math.isfinite(loss)]
        median = statistics.median(finite) if finite else None
        are_running_shown = len(self._losses) + len(self._earlier) >= self.num_startup_trials
        documents = []
        for trial_id, params in self._params.items():
            loss = self._losses.get(trial_id, median)
            if trial_id not in self._losses and not are_running_shown:
                continue
            is_known = loss is not None and math.isfinite(loss)
            result = {"status": "ok", "loss": loss} if is_known else {"status": "fail"}
            documents.append(document_of(trial_id, params, self.labels, state=_DONE, result=result))
        return documents


def domain_of(expression: Any, objective: Callable[[Any], Any] | None = None) -> Any:
    """Return hyperopt's Domain: a space, and the objective that is called with its points.

    Raises:
        SpaceError: `expression` is not a hyperopt space.
    """
    from hyperopt.base import Domain

    try:
        return Domain(objective, expression, pass_expr_memo_ctrl=False)
    except Exception as exc:  # hyperopt raises many types
        raise SpaceError(f"is not a hyperopt space: {type(exc).__name__}: {exc}", key="space") from exc


def values_by_label(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the active labels in a hyperopt document."""
    values = document["misc"]["vals"]
    found = {label: value[0] for label, value in values.items() if len(value)}
    return {label: value.item() if isinstance(value, np.generic) else value for label, value in found.items()}


def check_labels(params: Mapping[str, Any], labels: Sequence[str]) -> None:
    """Raise SpaceError unless all parameters are labels of the space."""
    for label in params:
        if label not in labels:
            raise SpaceError(f"is not a label of the space, which has {', '.join(labels)}", key=label)


def _renumbered(misc: Mapping[str, Any], tid: int) -> dict[str, Any]:
    idxs = {label: [tid] if len(found) else [] for label, found in misc["idxs"].items()}
    return {**misc, "tid": tid, "idxs": idxs}


def _startup_trials(suggest: Suggest) -> int:
    """Return the number of trials after which the algorithm proposes from a model."""
    from hyperopt import tpe

    function: Any = suggest
    while hasattr(function, "func"):  # functools.partial
        if "n_startup_jobs" in function.keywords:
            return int(function.keywords["n_startup_jobs"])
        function = function.func
    return int(tpe._default_n_startup_jobs) if function is tpe.suggest else 0
