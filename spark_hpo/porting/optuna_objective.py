"""OptunaObjective: a training function that calls an Optuna objective with a real Optuna trial."""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from spark_hpo.errors import TrialError, TrialPruned
from spark_hpo.porting.optuna_peers import Peers, PeersPruner
from spark_hpo.porting.optuna_sampler import notes_of, quiet_study
from spark_hpo.study_dir.storage import Storage
from spark_hpo.trial import Measurement

if TYPE_CHECKING:
    from spark_hpo.train.context import TrainContext


@dataclass(eq=False)
class OptunaObjective:
    """Calls an objective, `suggest_*` of whose trial return the parameters that the driver has proposed.

    The parameters that the objective has asked for, its intermediate values and its user attributes become
    the trial's parameters, learning curve and notes.
    """

    wrapped_function: Callable[[optuna.Trial], float | Sequence[float]]  # as for Optuna's `study.optimize`
    directions: tuple[str, ...]  # "minimize" or "maximize", for each value
    pruner: BasePruner  # decides on the executor, from this trial and the trials that have ended
    storage: Storage  # of the study directory
    name: str  # of the study; Optuna's HyperbandPruner derives brackets from it

    def __call__(self, ctx: TrainContext) -> None:
        study = quiet_study(
            study_name=self.name,
            directions=self.directions,
            sampler=_ProposalSampler(ctx.params, ctx.seed),
        )
        peers = Peers(study, self.storage, ctx.trial_id)
        study.pruner = PeersPruner(self.pruner, peers)
        trial = study.ask()
        state, values = "FAIL", None
        try:
            values = self._values(self.wrapped_function(trial))
            state = "COMPLETE"
        except optuna.TrialPruned as exc:
            state = "PRUNED"
            raise TrialPruned(str(exc)) from exc
        finally:
            frozen = study._storage.get_trial(trial._trial_id)
            ctx.params = dict(frozen.params)
            for name, note in notes_of(frozen, state=state, values=values).items():
                ctx.note(name, note)
            ctx.trace = self._curve(frozen, values)
        ctx.report(dict(zip(metrics_of(self.directions), values, strict=True)))

    def _curve(self, trial: FrozenTrial, values: Sequence[float] | None) -> tuple[Measurement, ...]:
        """Return the intermediate values of the trial and, after them, its final values."""
        names = metrics_of(self.directions)
        steps = [({names[0]: value}, step + 1) for step, value in sorted(trial.intermediate_values.items())]
        if values is not None:
            last = steps[-1][1] if steps else 0
            steps.append((dict(zip(names, values, strict=True)), last + 1))
        now = time.time()
        return tuple(
            Measurement(resource=step, metrics=metrics, time=now, seconds=0.0, rows=0)
            for metrics, step in steps
            if all(map(math.isfinite, metrics.values()))
        )

    def _values(self, returned: Any) -> list[float]:
        values = list(returned) if isinstance(returned, tuple | list) else [returned]
        if len(values) != len(self.directions):
            raise TrialError(f"the objective must return {len(self.directions)} value(s) (got {returned!r})")
        try:
            numbers = [float(value) for value in values]
        except (TypeError, ValueError) as exc:
            raise TrialError(f"the objective must return numbers (got {returned!r})") from exc
        if not all(map(math.isfinite, numbers)):
            raise TrialError(f"the objective must return finite numbers (got {returned!r})")
        return numbers


def metrics_of(directions: Sequence[str]) -> tuple[str, ...]:
    """Return the names of an objective's values as metrics."""
    if len(directions) == 1:
        return ("value",)
    return tuple(f"value_{i}" for i in range(len(directions)))


@dataclass(eq=False)
class _ProposalSampler(BaseSampler):
    """Returns the driver's proposals, and a random value where there is none or it does not fit."""

    params: Mapping[str, Any]
    seed: int

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        if param_name in self.params and _is_valid(self.params[param_name], param_distribution):
            return self.params[param_name]
        random = RandomSampler(seed=zlib.crc32(param_name.encode(), self.seed))
        return random.sample_independent(study, trial, param_name, param_distribution)


def _is_valid(value: Any, distribution: BaseDistribution) -> bool:
    try:
        return distribution._contains(distribution.to_internal_repr(value))
    except (TypeError, ValueError):
        return False
