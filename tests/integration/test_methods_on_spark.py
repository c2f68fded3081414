"""Studies of the digits on Spark with every method, sampler and scheduler."""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from spark_hpo.config import StudyConfig, build_config
from spark_hpo.driver.build_search import build_search
from spark_hpo.driver.result import Result
from spark_hpo.driver.run import run_study
from spark_hpo.prepare.from_digits import digits
from spark_hpo.search.explorers.perturbation import PerturbationExplorer
from spark_hpo.search.methods import METHODS, find_method
from spark_hpo.search.registry import SAMPLERS, SCHEDULERS, build_sampler, build_space
from spark_hpo.search.scheduler import Slot
from spark_hpo.study_dir.events import Event, EventKind
from spark_hpo.study_dir.journal import Journal
from spark_hpo.study_dir.storage import Storage
from spark_hpo.trial import Assignment, Split, Trial
from tests.support.mlflow_database import write_database

TASK = Path(__file__).parents[1] / "support/traced_task.py"
SPACE = {
    "learning_rate": {"type": "loguniform", "low": 1e-4, "high": 3e-2},
    "weight_decay": {"type": "loguniform", "low": 1e-4, "high": 1.0},
    "channels": 4,
    "stages": 1,
}
# So small that models are asked, brackets filled and members replaced within a handful of trials.
SAMPLER_SETTINGS: dict[str, dict[str, Any]] = {
    "tpe": {"num_startup_trials": 3, "enough": 3},
    "multivariate_tpe": {"num_startup_trials": 3, "enough": 3},
    "multifidelity_gp": {"num_startup_trials": 3},
    "hyperopt_tpe": {"num_startup_trials": 3},
    "grid": {"resolution": 3},
    "de": {"population_size": 4},
    "pso": {"population_size": 4},
    "genetic": {"population_size": 4},
    "gp": {"num_startup_trials": 3, "enough": 3},
    "cmaes": {"enough": 3},
    "nsga2": {"population_size": 3, "enough": 3},
    "optuna_tpe": {"enough": 3},
}
SCHEDULER_SETTINGS: dict[str, dict[str, Any]] = {
    "successive_halving": {"num_trials": 3},
    "median_stopping": {"interval": 1, "num_startup_trials": 2},
    "population_based": {"interval": 1, "population_size": 4},
}
NUM_TRIALS = {"hyperopt_tpe": 9, "nsga2": 9, "optuna_tpe": 13}  # by sampler; the others: 6
MAX_RESOURCE = {"population_based": 4}  # by scheduler; the others: 3
STEP_BY_STEP = {"median_stopping", "population_based"}
LEARN_NOTHING = {"random", "grid", "sobol"}
NEED_OPTUNA = {"gp", "cmaes", "nsga2", "optuna_tpe"}


def searches() -> dict[str, dict[str, str]]:
    """Return the section `search` by study: every method, then pairs of the other samplers and schedulers."""
    found = {name: {"method": name} for name in METHODS}
    samplers = [name for name in SAMPLERS if name not in {m.sampler for m in METHODS.values()}]
    schedulers = [name for name in SCHEDULERS if name not in {m.scheduler for m in METHODS.values()}]
    for sampler, scheduler in itertools.zip_longest(samplers, schedulers):
        pair = {"sampler": sampler or "random", "scheduler": scheduler or "full"}
        found["-".join(pair.values())] = pair
    return found


SEARCHES = searches()
PARTS = {
    name: (search.get("sampler", method.sampler), search.get("scheduler", method.scheduler))
    for name, search in SEARCHES.items()
    for method in [find_method(search.get("method", "default"))]
}


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A finished study and its Spark jobs."""

    config: StudyConfig
    sampler: str
    scheduler: str
    result: Result
    jobs: list[tuple[str, str]]  # (description, status)

    @property
    def events(self) -> tuple[Event, ...]:
        return Journal(Storage(self.config.study_dir), self.config.objective.build()).past

    @property
    def assigned(self) -> list[Assignment]:
        return [event.assignment for event in self.events if event.kind is EventKind.ASSIGNED]

    @property
    def trials(self) -> dict[int, Trial]:
        return dict(self.result.journal.trials)


class Cluster:
    """A Spark session and a table for sequential studies, each of which runs once."""

    def __init__(self, spark: Any, folder: Path) -> None:
        self.spark = spark
        self.folder = folder
        self._finished: dict[str, Finished] = {}
        self.tracking_uri = write_database(folder)
        digits(spark, str(folder / "digits"))

    def study(self, name: str) -> Finished:
        sampler, scheduler = PARTS[name]
        if sampler in NEED_OPTUNA:
            pytest.importorskip("optuna")
        if name not in self._finished:
            config = self._config(name)
            before = set(self._jobs())
            result = run_study(config)
            jobs = [job for number, job in self._jobs().items() if number not in before]
            self._finished[name] = Finished(
                config=config, sampler=sampler, scheduler=scheduler, result=result, jobs=jobs
            )
        return self._finished[name]

    def _config(self, name: str) -> StudyConfig:
        sampler, scheduler = PARTS[name]
        has_population = scheduler == "population_based" or sampler in ("de", "pso", "genetic")
        search = {
            **SEARCHES[name],
            "max_resource": MAX_RESOURCE.get(scheduler, 3),
            "sampler_settings": SAMPLER_SETTINGS.get(sampler, {}),
            "scheduler_settings": SCHEDULER_SETTINGS.get(scheduler, {}),
            "explore": {"num_startup_segments": 2} if name == "pb2" else {},
            "learn": {"weight_decay": {"low": 1e-6, "high": 1.0}} if name == "hypergradient" else {},
        }
        record = {
            "name": name,
            "study_dir": str(self.folder / name),
            "task": f"{TASK}:Traced",
            "data": {"path": str(self.folder / "digits")},
            "objective": {"metric": "loss", "mode": "min"},
            "space": SPACE,
            "search": search,
            # Without a reserve, every assignment is one of the scheduler.
            "budget": {"trials": NUM_TRIALS.get(sampler, 6), "finish": 0},
            # One after another, a study repeats digit for digit: the same members are replaced each time.
            "resources": {"max_concurrent": 1 if has_population else None},
            "mlflow": {"tracking_uri": self.tracking_uri},
        }
        return build_config(record, place="test")

    def _jobs(self) -> dict[int, tuple[str, str]]:
        """Return description and status of the jobs that Spark remembers, by id."""
        known = self.spark.sparkContext._jsc.sc().statusStore().jobsList(None)
        jobs = [known.apply(i) for i in range(known.length())]
        return {
            job.jobId(): (job.description().get(), job.status().toString())
            for job in jobs
            if job.description().isDefined()
        }


@pytest.fixture(scope="module")
def cluster(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    path = sys.path[:]
    yield Cluster(spark, tmp_path_factory.mktemp("methods"))
    sys.path[:] = path  # the task's folder is on it


@pytest.fixture(params=list(SEARCHES))
def finished(request: pytest.FixtureRequest, cluster: Cluster) -> Finished:
    return cluster.study(request.param)


def test_studies_cover_every_method_sampler_and_scheduler() -> None:
    assert METHODS.keys() <= SEARCHES.keys()
    assert {sampler for sampler, _ in PARTS.values()} == set(SAMPLERS)
    assert {scheduler for _, scheduler in PARTS.values()} == set(SCHEDULERS)


def test_study_of_each_method_runs_all_trials_as_spark_jobs(finished: Finished) -> None:
    result, trials = finished.result, finished.trials
    assert result.stopped_by == "trials"
    assert len(trials) == finished.config.budget.trials
    assert result.study.progress.failed == 0

    # A job for each assignment, the one on the test split included, and none twice.
    assert {a.attempt for a in finished.assigned} == {1}
    assert Counter(finished.jobs) == Counter((str(a), "SUCCEEDED") for a in finished.assigned)
    trained = [a for a in finished.assigned if a.split is Split.VALIDATION]
    assert result.study.progress.run == len(trained)
    assert result.study.progress.resource_spent == sum(a.resource_to - a.resource_from for a in trained)

    ways = {(a.resource_from, a.resource_to) for a in trained}
    num_full = sum(trial.resource == finished.config.search.max_resource for trial in trials.values())
    if finished.scheduler == "full":
        assert ways == {(0, 3)}
        assert num_full == len(trials)
    else:
        steps, rungs = {(i, i + 1) for i in range(4)}, {(0, 1), (1, 3), (0, 3)}
        assert ways <= (steps if finished.scheduler in STEP_BY_STEP else rungs)
        assert 0 < num_full < len(trials), "some go to the end, and not all"

    reported = {(a.trial_id, a.resource_to) for a in trained}
    losses = [m.metrics["loss"] for i, t in trials.items() for m in t.curve if (i, m.resource) in reported]
    assert result.best.loss == min(losses)
    assert result.test["accuracy"] > 0.5, "a tenth would be luck"


def test_decisions_follow_from_the_reports_in_their_order(finished: Finished) -> None:
    """A replay of the journal asks scheduler, sampler and explorer again, and gets the same decisions."""
    search = build_search(finished.config, build_space(SPACE))
    objective, slots, params = finished.config.objective.build(), dict[int, Slot](), dict[int, Any]()
    for event in finished.events:
        if event.kind is EventKind.ASSIGNED and (assignment := event.assignment).split is Split.VALIDATION:
            slot = search.scheduler.next_slot()
            assert slot is not None
            for name in ("trial_id", "bracket", "rung", "resource_from", "resource_to"):
                assert getattr(slot, name) == getattr(assignment, name)
            if slot.parent is not None:
                assert search.explorer.explore(slot, params[slot.parent]) == assignment.params
            elif slot.is_new:
                assert search.sampler.ask(slot.trial_id) == assignment.params
            if slot.is_new:
                search.sampler.start(slot.trial_id, assignment.params)
            search.explorer.start(slot, assignment.params)
            params[slot.trial_id], slots[slot.trial_id] = assignment.params, slot
        elif event.kind is EventKind.REPORTED and (report := event.report).split is Split.VALIDATION:
            slot, loss = slots.pop(report.trial_id), objective.loss(report.metrics)
            search.sampler.tell(slot.trial_id, resource=slot.resource_to, loss=loss)
            search.explorer.tell(slot, loss)
            search.scheduler.report(slot, loss)
    assert search.scheduler.is_done()


@pytest.mark.parametrize("name", [n for n, (sampler, _) in PARTS.items() if sampler not in LEARN_NOTHING])
def test_sampler_learns_from_the_reports_of_executors(cluster: Cluster, name: str) -> None:
    finished = cluster.study(name)
    config = finished.config
    untaught = build_sampler(
        finished.sampler, build_space(SPACE), config.seed, **config.search.sampler_settings
    )
    assert any(untaught.ask(i) != trial.params for i, trial in finished.trials.items())


def births(finished: Finished) -> dict[int, tuple[int, Assignment]]:
    """Return the parent and the first assignment of each child."""
    first = {a.trial_id: a for a in reversed(finished.assigned) if a.split is Split.VALIDATION}
    sources = {i: a.checkpoint.split("/")[1] for i, a in first.items() if a.checkpoint is not None}
    return {i: (int(source.removeprefix("trial-")), first[i]) for i, source in sources.items()}


@pytest.mark.parametrize("name", ["pbt", "pb2"])
def test_child_trains_the_weights_of_its_parent_with_its_own_parameters(cluster: Cluster, name: str) -> None:
    finished = cluster.study(name)
    trials, born = finished.trials, births(finished)
    assert born, "somebody was replaced"
    weights = {(i, m.resource): m.metrics["weights"] for i, t in trials.items() for m in t.curve}
    for i, (parent, birth) in born.items():
        # Its weights before its first step are those that its parent had then, and nobody else ever.
        began = trials[i].curve[0]
        assert began.resource == birth.resource_from + 1
        inherited = pytest.approx(began.metrics["weights_at_start"], rel=1e-12)
        assert [key for key, one in weights.items() if one == inherited] == [(parent, birth.resource_from)]
        assert parent != i

        # Its parameters are its own, and the optimizer, with its parent's moments in it, goes by them.
        assert birth.params["channels"] == trials[parent].params["channels"]
        for rate, parameter in (("rate", "learning_rate"), ("decay", "weight_decay")):
            assert birth.params[parameter] != trials[parent].params[parameter]
            seen = {m.metrics[rate] / birth.params[parameter] for m in trials[i].curve}
            assert all(one == pytest.approx(1.0, rel=1e-12) for one in seen)
    founders = [t.curve[0].metrics["weights_at_start"] for i, t in trials.items() if i not in born]
    assert len(set(founders)) == len(founders), "the others began with weights of their own"


@pytest.mark.parametrize(("name", "by_step"), [("pbt", True), ("pb2", False)])
def test_child_gets_parameters_by_perturbation_or_by_a_model(
    cluster: Cluster, name: str, by_step: bool
) -> None:
    finished = cluster.study(name)
    stepping = PerturbationExplorer(build_space(SPACE), finished.config.seed)
    stepped = []
    for i, (parent, birth) in births(finished).items():
        slot = Slot(trial_id=i, bracket=0, rung=0, resource_from=0, resource_to=1, parent=parent)
        stepped.append(stepping.explore(slot, finished.trials[parent].params) == birth.params)
    assert all(stepped) == by_step
