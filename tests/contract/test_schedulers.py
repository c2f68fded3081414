"""The built-in schedulers against the contract."""

from __future__ import annotations

from spark_hpo.search.scheduler import Scheduler
from spark_hpo.search.schedulers.adaptive_asha import AdaptiveAshaScheduler
from spark_hpo.search.schedulers.asha import AshaScheduler, AsyncHyperbandScheduler
from spark_hpo.search.schedulers.guided_asha import GuidedAshaScheduler
from spark_hpo.search.schedulers.median_stopping import MedianStoppingScheduler
from spark_hpo.search.schedulers.pioneer_asha import PioneerAshaScheduler
from spark_hpo.search.schedulers.population_based import PopulationBasedScheduler
from spark_hpo.search.schedulers.staged import StagedScheduler
from spark_hpo.search.schedulers.synchronous import (
    FullScheduler,
    HyperbandScheduler,
    SuccessiveHalvingScheduler,
)
from spark_hpo.testing import SchedulerContract


class TestFullScheduler(SchedulerContract):
    def build(self, max_trials: int | None) -> Scheduler:
        return FullScheduler(9, max_trials)


class TestSuccessiveHalvingScheduler(SchedulerContract):
    def build(self, max_trials: int | None) -> Scheduler:
        return SuccessiveHalvingScheduler(num_trials=9, max_resource=9, max_trials=max_trials)


class TestHyperbandScheduler(SchedulerContract):
    def build(self, max_trials: int | None) -> Scheduler:
        return HyperbandScheduler(9, max_trials=max_trials)


class TestAshaScheduler(SchedulerContract):
    def build(self, max_trials: int | None) -> Scheduler:
        return AshaScheduler(9, max_trials=max_trials)


class TestAdaptiveAshaScheduler(SchedulerContract):
    def build(self, max_trials: int | None) -> Scheduler:
        return AdaptiveAshaScheduler(
            9, num_probes=5, reduction_factor=2, has_leader=True, max_trials=max_trials
        )


class TestAdaptiveAshaOfFourRungs(SchedulerContract):
    max_resource = 16

    def build(self, max_trials: int | None) -> Scheduler:
        # No ranking agrees so well: the entry moves up as far as it can.
        return AdaptiveAshaScheduler(
            16, reduction_factor=2, num_probes=5, least_agreement=1.0, max_trials=max_trials
        )


class TestPioneerAshaScheduler(SchedulerContract):
    def build(self, max_trials: int | None) -> Scheduler:
        return PioneerAshaScheduler(9, num_pioneers=3, max_trials=max_trials)


class TestPioneerAshaOfFourRungs(SchedulerContract):
    max_resource = 16

    def build(self, max_trials: int | None) -> Scheduler:
        # No ranking agrees so well: the entry moves up as far as it can.
        return PioneerAshaScheduler(16, reduction_factor=2, least_agreement=1.0, max_trials=max_trials)


class TestGuidedAshaScheduler(SchedulerContract):
    def build(self, max_trials: int | None) -> Scheduler:
        scheduler = GuidedAshaScheduler(max_resource=self.max_resource, max_trials=max_trials)
        scheduler.guide(lambda trials: trials[-1])
        return scheduler


class TestAsyncHyperbandScheduler(SchedulerContract):
    def build(self, max_trials: int | None) -> Scheduler:
        return AsyncHyperbandScheduler(9, max_trials=max_trials)


class TestMedianStoppingScheduler(SchedulerContract):
    def build(self, max_trials: int | None) -> Scheduler:
        return MedianStoppingScheduler(9, 2, max_trials=max_trials)


class TestPopulationBasedScheduler(SchedulerContract):
    def build(self, max_trials: int | None) -> Scheduler:
        return PopulationBasedScheduler(9, 2, population_size=4, max_trials=max_trials)


class TestHyperbandOfTwo(SchedulerContract):
    max_resource = 10

    def build(self, max_trials: int | None) -> Scheduler:
        return HyperbandScheduler(10, 2, reduction_factor=2, max_trials=max_trials, rounding="ceiling")


class TestStagedScheduler(SchedulerContract):
    def build(self, max_trials: int | None) -> Scheduler:
        return StagedScheduler(lambda trials: AshaScheduler(9, max_trials=trials), max_trials)
