"""hyperopt's `fmin`, on Spark: what a program with SparkTrials calls instead."""

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
from spark_hpo.errors import ConfigError, NoTrialSucceeded
from spark_hpo.porting.hyperopt_algorithm import HyperoptSampler, Suggest, check_labels
from spark_hpo.porting.objective import HyperoptObjective
from spark_hpo.porting.study_options import MANY, TrialLimit, study_config
from spark_hpo.porting.trials import ProgressCallback, StopsCallback, TrialsCallback, earlier_documents
from spark_hpo.search.samplers.wrappers import EnqueuedSampler
from spark_hpo.study.callback import Callback

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

logger = logging.getLogger(__name__)

_PLACE = "fmin"


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
    """Minimise a function over a hyperopt space, each trial as a Spark job.

    Takes all that hyperopt's `fmin` takes, and returns what it returns. What differs from SparkTrials:
    docs/from-sparktrials.md.

        from hyperopt import hp, tpe
        best = spark_hpo.fmin(lambda x: (x - 1) ** 2, hp.uniform("x", -5, 5), tpe.suggest, 40, parallelism=4)

    Args:
        fn: returns a loss, or a mapping with `status` and `loss`. It may be a closure.
        space: any hyperopt space, or "annotated".
        algo: `tpe.suggest`, `rand.suggest`, `anneal.suggest`, ..., or `functools.partial` of one.
        max_evals: trials, those in `trials` included; `points_to_evaluate` come on top.
        timeout: seconds until nothing new is started. Running trials are finished.
        loss_threshold: the search ends with a loss below it.
        trials: hyperopt's Trials, or a SparkTrials; filled as the search goes on.
        rstate: a numpy generator, or an integer. A study that is resumed keeps its seed.
        catch_eval_exceptions: as with SparkTrials, a trial that raises has failed, whatever this says.
        return_argmin: True: the best values by label, as `space_eval` takes them; False: the point itself.
        points_to_evaluate: values by label, of trials that run first.
        show_progressbar: or a context manager, as in `hyperopt.progress`.
        early_stop_fn: called after each trial that has a loss.
        parallelism: trials at the same time; None: as many as the cluster has slots for.
        name: of the study and its MLflow experiment; None: the function's.
        storage: the study directory, any URL that the driver reaches; the same call with the same storage
            goes on where the last one ended. None: a new one in `studies/`.
        resume: auto; must: refuse when there is no study yet; never: refuse when there is one.
        spark: the session to be used; None: the active one, or a new one.
        callbacks: are told what happens, on the driver.
        sections: of a study file, over what fmin sets: `mlflow={"tracking_uri": ...}`,
            `resources={"gpus_per_rank": 1}`.

    Raises:
        ConfigError: an argument is wrong.
        StudyInterrupted: by Ctrl-C or SIGTERM. The same call with the same `storage` goes on.
        hyperopt.exceptions.AllTrialsFailed: no trial has a loss.
    """
    validate_timeout(timeout)
    validate_loss_threshold(loss_threshold)
    if pass_expr_memo_ctrl or getattr(fn, "fmin_pass_expr_memo_ctrl", False):
        raise ConfigError(f"{_PLACE}: pass_expr_memo_ctrl cannot be: fn runs on executors, without Trials")
    if trials_save_file:
        raise ConfigError(f"{_PLACE}: trials_save_file: say storage='...' instead, and the next call goes on")
    if isinstance(space, str) and space == "annotated":
        fn, space = _annotated(fn)
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
        record={
            "objective": {"metric": "loss", "mode": "min"},
            "space": {"hyperopt": _text(space)},  # so that another space is not taken for the same study
            "search": {"sampler": "random", "scheduler": "full", "max_resource": 1},
            "budget": {"resource": MANY, "seconds": timeout},
        },
        sections=sections,
    )
    earlier = earlier_documents(trials, config.study_dir)
    sampler = HyperoptSampler(space, algo or tpe.suggest, config.seed, earlier=earlier)
    points = [dict(point) for point in points_to_evaluate or ()]
    for i, point in enumerate(points):
        check_labels(point, sampler.labels, f"{_PLACE}: points_to_evaluate[{i}]")
    most = MANY if max_evals is None else max(0, max_evals - len(earlier)) + len(points)
    told: list[Callback] = [
        TrialsCallback(trials, sampler.labels, config.study_dir),
        TrialLimit(most),
        StopsCallback(sampler.labels, loss_threshold=loss_threshold, early_stop_fn=early_stop_fn),
        *_progress(show_progressbar if verbose else False, None if most == MANY else most),
        *callbacks,
    ]
    logger.info("the study is in %s: with it as `storage`, the same call goes on", config.study_dir)
    try:
        run_study(
            config,
            resume=resume,
            task=HyperoptObjective(fn, space),
            sampler=EnqueuedSampler(sampler, points) if points else sampler,
            spark=spark or getattr(trials, "spark_session", None) or getattr(trials, "_spark", None),
            callbacks=told,
            test=False,  # an objective has no test split
        )
    except NoTrialSucceeded as exc:
        logger.warning("%s", exc)  # what hyperopt says of it follows
    if not return_argmin:
        return space_eval(space, trials.argmin) if len(trials) else None
    if not len(trials):
        raise NoTrialSucceeded("There are no evaluation tasks, cannot return argmin of task losses.")
    return trials.argmin


def _seed(rstate: Any) -> int | None:
    """A seed of numpy's generators, old and new, or of an integer."""
    if rstate is None:
        text = os.environ.get("HYPEROPT_FMIN_SEED", "")
        return int(text) if text else None
    if isinstance(rstate, int):
        return rstate
    draw = getattr(rstate, "integers", None) or getattr(rstate, "randint", None)
    if draw is None:
        raise ConfigError(f"{_PLACE}: rstate is {rstate!r}; it must be a numpy generator or an integer")
    return int(draw(2**31 - 1))


def _text(space: Any) -> str:
    """What a space looks like, the same in each process."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(as_apply(space)))


class _Spread:
    """Calls a function with a mapping's entries by name."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.__name__ = getattr(function, "__name__", "objective")
        self.__module__ = function.__module__

    def __call__(self, arguments: dict[str, Any]) -> Any:
        return self.function(**arguments)


def _annotated(fn: Callable[..., Any]) -> tuple[Callable[[Any], Any], dict[str, Any]]:
    """The space in a function's annotations, and the function as one of its points."""
    space = dict(inspect.getfullargspec(fn).annotations)
    space.pop("return", None)
    for label, expression in space.items():
        if not isinstance(expression, Apply):
            raise InvalidAnnotatedParameter(f"{label} is annotated with {expression!r}; it must be hp.*")
    return _Spread(fn), space


def _progress(bar: bool | Callable[..., Any], total: int | None) -> list[Callback]:
    return [ProgressCallback(default_callback if bar is True else bar, total)] if bar else []
