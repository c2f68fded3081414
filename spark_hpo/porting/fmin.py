"""fmin: a replacement for hyperopt's `fmin` that runs trials on Spark."""

from __future__ import annotations

import inspect
import logging
import os
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from hyperopt import Trials, space_eval, tpe
from hyperopt.base import validate_loss_threshold, validate_timeout
from hyperopt.exceptions import InvalidAnnotatedParameter
from hyperopt.progress import default_callback
from hyperopt.pyll import as_apply
from hyperopt.pyll.base import Apply

from spark_hpo.driver.run import run_study
from spark_hpo.errors import ConfigError, NoTrialSucceeded, located, within
from spark_hpo.porting.hyperopt_objective import HyperoptObjective
from spark_hpo.porting.hyperopt_sampler import HyperoptSampler, Suggest, check_labels
from spark_hpo.porting.hyperopt_trials import (
    ProgressCallback,
    StopsCallback,
    TrialsCallback,
    earlier_documents,
)
from spark_hpo.porting.study_options import MANY, TrialLimit, study_config
from spark_hpo.search.samplers.wrappers import EnqueuedSampler
from spark_hpo.study.callback import Callback

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

logger = logging.getLogger(__name__)

_PLACE = "fmin"


@located(_PLACE)
def fmin(
    fn: Callable[[Any], Any],
    space: Any,
    algo: Suggest | None = None,
    max_evals: int | None = None,
    timeout: float | None = None,
    loss_threshold: float | None = None,
    trials: Any = None,
    rstate: Any = None,
    allow_trials_fmin: bool = True,
    pass_expr_memo_ctrl: bool | None = None,
    catch_eval_exceptions: bool = False,
    verbose: bool = True,
    return_argmin: bool = True,
    points_to_evaluate: Sequence[dict[str, Any]] | None = None,
    max_queue_len: int = 1,
    show_progressbar: bool | Callable[..., Any] = True,
    early_stop_fn: Callable[..., Any] | None = None,
    trials_save_file: str = "",
    *,
    parallelism: int | None = None,
    name: str | None = None,
    storage: str | os.PathLike[str] | None = None,
    resume: str = "auto",
    spark: SparkSession | None = None,
    callbacks: Sequence[Callback] = (),
    **sections: Any,
) -> Any:
    """Minimise a function over a hyperopt space, with each trial as a Spark job or a process.

    The arguments and the returned value are those of hyperopt's `fmin`. docs/from-sparktrials.md lists the
    differences from SparkTrials.

        from hyperopt import hp, tpe
        best = spark_hpo.fmin(lambda x: (x - 1) ** 2, hp.uniform("x", -5, 5), tpe.suggest, 40, parallelism=4)

    Args:
        fn: the objective: returns a loss, or a mapping with `status` and `loss`. It may be a closure.
        space: any hyperopt space, or "annotated": `fn` has a space in the annotation of each argument.
        algo: `tpe.suggest`, `rand.suggest`, `anneal.suggest`, ..., or `functools.partial` of one.
        max_evals: the number of trials, including those in `trials` but not `points_to_evaluate`.
        timeout: seconds after which no new trial starts; running trials are finished.
        loss_threshold: the search ends when a trial has a loss below this.
        trials: a hyperopt Trials or a SparkTrials, which is updated as trials end. With a Trials, `fn` runs
            in this process, one call at a time unless `parallelism` says more, and may use Spark itself. With
            a SparkTrials, or None, each trial is a Spark job.
        rstate: a numpy generator or an integer. A study that is resumed keeps its seed.
        catch_eval_exceptions: has no effect: as with SparkTrials, a trial that raises is a failed trial.
        return_argmin: True: return the best values by label, as for `space_eval`; False: return the point.
        points_to_evaluate: values by label, of trials that run before all others.
        show_progressbar: a bool, or a context manager as in `hyperopt.progress`.
        early_stop_fn: called after each trial that has a loss: `(trials, *state) -> (stop, state)`.
        parallelism: the largest number of trials at a time; None: as many as the cluster has slots for, or 1
            with a Trials.
        name: of the study and its MLflow experiment; None: the name of the function.
        storage: the study directory: a path or URL that the driver can reach. The same call with the same
            storage resumes the study. None: a new directory in `studies/`.
        resume: "auto"; "must": raise if the study does not exist; "never": raise if it exists.
        spark: the session to use; None: the active one, or a new one.
        callbacks: called on the driver while the study runs.
        sections: sections of a study file that override what fmin sets, such as
            `mlflow={"tracking_uri": ...}` and `resources={"gpus_per_rank": 1}`.

    Returns:
        The best values by label, or the best point: see `return_argmin`.

    Raises:
        ConfigError: an argument is wrong.
        StudyInterrupted: by Ctrl-C or SIGTERM. The same call with the same `storage` resumes the study.
        hyperopt.exceptions.AllTrialsFailed: no trial has a loss.
    """
    validate_timeout(timeout)
    validate_loss_threshold(loss_threshold)
    if pass_expr_memo_ctrl or getattr(fn, "fmin_pass_expr_memo_ctrl", False):
        rule = "is not supported, because fn runs on executors, which have no Trials"
        raise ConfigError(rule, key="pass_expr_memo_ctrl")
    if trials_save_file:
        raise ConfigError(
            "is not supported",
            key="trials_save_file",
            value=trials_save_file,
            cure="Use storage='...': the same call with the same storage resumes the search",
        )
    if isinstance(space, str) and space == "annotated":
        fn, space = _annotated(fn)
    if isinstance(trials, Trials) and not hasattr(trials, "parallelism"):
        # hyperopt's own: fn may use DataFrames and estimators of Spark, which no executor can.
        sections = {"backend": "driver", **sections}
        if sections["backend"] == "driver":
            parallelism = parallelism or 1
    elif trials is not None:
        sections = {"backend": "spark", **sections}
    trials = Trials() if trials is None else trials
    parallelism = parallelism or getattr(trials, "parallelism", None)
    timeout = getattr(trials, "timeout", None) or timeout
    loss_threshold = getattr(trials, "loss_threshold", None) if loss_threshold is None else loss_threshold
    config = study_config(
        _PLACE,
        fn,
        name=name,
        storage=storage,
        seed=_seed(rstate),
        parallelism=parallelism,
        timeout=timeout,
        objective={"metric": "loss", "mode": "min"},
        # A study is not resumed with another space. Addresses differ between processes.
        space={"hyperopt": re.sub(r" at 0x[0-9a-f]+", "", str(as_apply(space)))},
        sections=sections,
    )
    earlier = earlier_documents(trials, config.study_dir)
    sampler = HyperoptSampler(space, algo or tpe.suggest, config.seed, earlier=earlier)
    points = [dict(point) for point in points_to_evaluate or ()]
    for i, point in enumerate(points):
        with within(f"points_to_evaluate[{i}]"):
            check_labels(point, sampler.labels)
    limit = MANY if max_evals is None else max(0, max_evals - len(earlier)) + len(points)
    all_callbacks: list[Callback] = [
        TrialsCallback(trials, sampler.labels, config.study_dir),
        TrialLimit(limit),
        StopsCallback(sampler.labels, loss_threshold=loss_threshold, early_stop_fn=early_stop_fn),
    ]
    if verbose and show_progressbar:
        bar = default_callback if show_progressbar is True else show_progressbar
        all_callbacks.append(ProgressCallback(bar, None if limit == MANY else limit))
    all_callbacks += callbacks
    logger.info("study directory: %s; pass it as `storage` to resume", config.study_dir)
    try:
        run_study(
            config,
            resume=resume,
            task=HyperoptObjective(fn, space),
            sampler=EnqueuedSampler(sampler, points) if points else sampler,
            spark=spark or getattr(trials, "spark_session", None) or getattr(trials, "_spark", None),
            callbacks=all_callbacks,
            test=False,  # an objective has no test split
        )
    except NoTrialSucceeded as exc:
        logger.warning("%s", exc)  # hyperopt's own errors are raised below
    if not return_argmin:
        return space_eval(space, trials.argmin) if len(trials) else None
    if not len(trials):
        raise NoTrialSucceeded("There are no evaluation tasks, cannot return argmin of task losses.")
    return trials.argmin


def _seed(rstate: Any) -> int | None:
    """Return a seed: drawn from a numpy generator, old or new, or the integer itself; None: any."""
    if rstate is None:
        text = os.environ.get("HYPEROPT_FMIN_SEED", "")
        return int(text) if text else None
    if isinstance(rstate, int):
        return rstate
    draw = getattr(rstate, "integers", None) or getattr(rstate, "randint", None)
    if draw is None:
        raise ConfigError("must be a numpy generator or an integer", key="rstate", value=rstate)
    return int(draw(2**31 - 1))


class _NamedArguments:
    """Calls a function with the entries of a mapping as named arguments."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.__name__ = getattr(function, "__name__", "objective")
        self.__module__ = function.__module__

    def __call__(self, arguments: dict[str, Any]) -> Any:
        return self.function(**arguments)


def _annotated(fn: Callable[..., Any]) -> tuple[Callable[[Any], Any], dict[str, Any]]:
    """Return a function of one point, and the space in the annotations of the original function."""
    space = dict(inspect.getfullargspec(fn).annotations)
    space.pop("return", None)
    for label, expression in space.items():
        if not isinstance(expression, Apply):
            raise InvalidAnnotatedParameter(
                f"{label} must be annotated with an expression of hp.* (got {expression!r})"
            )
    return _NamedArguments(fn), space
