"""hyperopt's own algorithms, `tpe.suggest` and its like, behind ask and tell: for any hyperopt space."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from spark_hpo.errors import ConfigError, SpaceError
from spark_hpo.search.sampler import Sampler
from spark_hpo.trial import Params

Suggest = Callable[..., list[dict[str, Any]]]
"""`suggest(new_ids, domain, trials, seed)`, as hyperopt's `fmin` calls its `algo`."""

_NEW, _RUNNING, _DONE = 0, 1, 2  # hyperopt's JOB_STATE_*


class HyperoptSampler(Sampler):
    """Asks one of hyperopt's algorithms. Parameters are values by label, and the number of the option for a
    choice, as hyperopt itself has them; so there is no hyperopt space that this does not take.

    - **In flight** trials are lent the median loss; hyperopt would take them for the worst of all, and so
      leave the places alone where it has just sent somebody. Until there are `num_startup_trials` results,
      they are not shown: hyperopt counts what has begun, not what has been learned.
    - **Failed** trials have no loss: for hyperopt they are worse than all others.

    Args:
        expression: the space, of `hp.*`.
        suggest: `tpe.suggest`, `anneal.suggest`, ..., or `functools.partial` of one.
        seed: of the study.
        earlier: documents of trials that have ended before this study, as in `Trials.trials`.
    """

    def __init__(
        self, expression: Any, suggest: Suggest, seed: int, *, earlier: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        self._suggest = suggest
        self._domain = domain_of(expression)
        self.labels = tuple(self._domain.params)
        self.seed = seed
        self.num_startup_trials = _startup_trials(suggest)
        self._earlier = [
            {**document, "tid": tid, "misc": _renumbered(document["misc"], tid)}
            for tid, document in enumerate(earlier, start=-len(earlier))
        ]
        self._params: dict[int, Params] = {}
        self._losses: dict[int, float] = {}  # infinite for a failure

    def ask(self, trial_id: int) -> Params:
        """Propose values by label. Never changes what the sampler has learned.

        Raises:
            ConfigError: the algorithm has nothing more to propose.
        """
        from hyperopt import trials_from_docs

        rng = np.random.default_rng((self.seed, trial_id))
        trials = trials_from_docs([*self._earlier, *self._documents()], validate=False)
        with np.errstate(all="ignore"):  # the log of a density that underflows is -inf, as it should be
            proposals = self._suggest([trial_id], self._domain, trials, int(rng.integers(2**31 - 1)))
        if not proposals:
            raise ConfigError("algo has nothing more to propose; lower max_evals")
        return assignment_of(proposals[0])

    def start(self, trial_id: int, params: Params) -> None:
        """The trial runs with these values.

        Raises:
            SpaceError: one is of no parameter of the space.
        """
        check_labels(params, self.labels, "params")
        self._params[trial_id] = params

    def tell(
        self,
        trial_id: int,
        *,
        resource: int,
        loss: float,
        others: tuple[float, ...] = (),
        violation: float = 0.0,
    ) -> None:
        """Learn the loss of a trial; infinite or NaN for a failed one."""
        assert trial_id in self._params, f"trial {trial_id} was told of before it was started"
        self._losses[trial_id] = loss

    def _documents(self) -> list[dict[str, Any]]:
        finite = [loss for loss in self._losses.values() if math.isfinite(loss)]
        lent = statistics.median(finite) if finite else None
        is_shown = len(self._losses) + len(self._earlier) >= self.num_startup_trials
        documents = []
        for trial_id, params in self._params.items():
            loss = self._losses.get(trial_id, lent)
            if trial_id not in self._losses and not is_shown:
                continue
            is_known = loss is not None and math.isfinite(loss)
            result = {"status": "ok", "loss": loss} if is_known else {"status": "fail"}
            documents.append(document_of(trial_id, params, self.labels, state=_DONE, result=result))
        return documents


def domain_of(expression: Any, objective: Callable[[Any], Any] | None = None) -> Any:
    """hyperopt's Domain: a space and what is called with its points.

    Raises:
        SpaceError: it is no hyperopt space.
    """
    from hyperopt.base import Domain

    try:
        return Domain(objective, expression, pass_expr_memo_ctrl=False)
    except Exception as exc:  # hyperopt has no one error for this
        raise SpaceError(f"space is not a hyperopt space: {type(exc).__name__}: {exc}") from exc


def document_of(
    trial_id: int, params: Params, labels: Sequence[str], *, state: int, result: Mapping[str, Any]
) -> dict[str, Any]:
    """A trial as hyperopt writes it, as in `Trials.trials`."""
    active = [label for label in labels if label in params]
    return {
        "state": state,
        "tid": trial_id,
        "spec": None,
        "result": dict(result),
        "misc": {
            "tid": trial_id,
            "cmd": ("domain_attachment", "FMinIter_Domain"),
            "workdir": None,
            "idxs": {label: [trial_id] if label in active else [] for label in labels},
            "vals": {label: [params[label]] if label in active else [] for label in labels},
        },
        "exp_key": None,
        "owner": None,
        "version": 0,
        "book_time": None,
        "refresh_time": None,
    }


def assignment_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """The values by label of a trial as hyperopt writes it; of those that are active."""
    values = document["misc"]["vals"]
    return {label: _plain(value[0]) for label, value in values.items() if len(value)}


def check_labels(params: Mapping[str, Any], labels: Sequence[str], place: str) -> None:
    """Refuse a value for what is no parameter.

    Raises:
        SpaceError: there is one.
    """
    for label in params:
        if label not in labels:
            raise SpaceError(f"{place} has {label!r}, which is no label of the space: {', '.join(labels)}")


def _plain(value: Any) -> Any:
    """numpy's numbers as Python's."""
    return value.item() if isinstance(value, np.generic) else value


def _renumbered(misc: Mapping[str, Any], tid: int) -> dict[str, Any]:
    idxs = {label: [tid] if len(found) else [] for label, found in misc["idxs"].items()}
    return {**misc, "tid": tid, "idxs": idxs}


def _startup_trials(suggest: Suggest) -> int:
    """How many results the algorithm waits for before it has a model."""
    from hyperopt import tpe

    function: Any = suggest
    while hasattr(function, "func"):  # functools.partial
        if "n_startup_jobs" in function.keywords:
            return int(function.keywords["n_startup_jobs"])
        function = function.func
    return int(tpe._default_n_startup_jobs) if function is tpe.suggest else 0
