"""The parts of a study, each made from its configuration: code, table, backend, tracker and the others.

What becomes of them is said elsewhere: the search itself in `app`, a look ahead in `rehearsal`.
"""

from __future__ import annotations

import logging
import math
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

from spark_hpo.backend.base import Backend
from spark_hpo.backend.spark.cluster import cluster_of
from spark_hpo.config import StudyConfig, defaults
from spark_hpo.data.plan.shards import plan_shards
from spark_hpo.data.readers import resolve_reader
from spark_hpo.data.table import Table, open_table
from spark_hpo.driver.build_search import build_search
from spark_hpo.driver.provenance import git_commit
from spark_hpo.driver.publish import Publication
from spark_hpo.driver.wiring import node_cache, training_settings
from spark_hpo.errors import ConfigError
from spark_hpo.objective import Objective
from spark_hpo.search.registry import build_space
from spark_hpo.search.sampler import Sampler
from spark_hpo.search.samplers.transfer import Knowledge
from spark_hpo.search.space import Space
from spark_hpo.study import Search
from spark_hpo.study_dir.definition import Definition
from spark_hpo.study_dir.driver_settings import Settings
from spark_hpo.study_dir.storage import Storage
from spark_hpo.tracking.mlflow import MlflowTracker
from spark_hpo.tracking.run_store import StudyCard
from spark_hpo.train.rank import RankSpec
from spark_hpo.train.reference import Code, Trainable
from spark_hpo.train.rendezvous.world import Rendezvous, RendezvousServer
from spark_hpo.train.worker import run_rank
from spark_hpo.trial import Split

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from spark_hpo.backend.spark.cluster import Cluster

logger = logging.getLogger(__name__)


@dataclass
class Parts:
    """Makes the parts of one study.

    Args:
        place: where the configuration stands, for messages; a task file is looked for beside it.
        task: in place of the one that the configuration names.
        spark: the caller's session; None: the active one, or a new one, when it is needed.
        sampler: in place of the one that the configuration names.
        has_own_space: the space is not the configuration's.
    """

    config: StudyConfig
    place: str
    space: Space
    task: Trainable | None = None
    spark: SparkSession | None = None
    sampler: Sampler | None = None
    has_own_space: bool = False
    session: SparkSession | None = field(default=None, init=False)  # once it has been started
    _transform_files: list[Path] = field(default_factory=list, init=False)  # to be shipped

    @classmethod
    def of(
        cls,
        config: StudyConfig,
        place: str,
        *,
        space: object = None,
        task: Trainable | None = None,
        spark: SparkSession | None = None,
        sampler: Sampler | None = None,
    ) -> Self:
        """`space`: in place of the configuration's; what `build_space` takes.

        Raises:
            ConfigError: it is none.
        """
        parsed = build_space(
            config.space if space is None else space,
            f"{place}: space",
            constraints=config.search.constraints,
        )
        return cls(config, place, parsed, task, spark, sampler, has_own_space=space is not None)

    def search(self, knowledge: Knowledge | None = None) -> Search:
        return build_search(
            self.config, self.space, place=self.place, knowledge=knowledge, sampler=self.sampler
        )

    def spec(self, study_id: str, storage: Storage, table: Table | None, code: Code) -> RankSpec:
        config = self.config
        return RankSpec(
            study_id=study_id,
            storage=storage,
            trainable=code.shipped,
            table=table,
            objective=config.objective.build(),
            settings=training_settings(config),
            max_resource=config.search.max_resource,
            seed=config.seed,
            reader=self.reader,
            shuffle_window=config.data.shuffle_window if config.data else 1,
            parts=config.search.parts,
            node_cache=node_cache(config),
            rank_timeout_s=None if config.backend == "inline" else config.resources.rank_timeout_s,
        )

    @property
    def reader(self) -> str:
        return self.config.data.reader if self.config.data else "auto"

    def check_reader(self) -> None:
        """Refuse a reader that this machine has not."""
        try:
            resolve_reader(self.reader)
        except ConfigError as exc:
            raise ConfigError(f"{self.place}: data.{exc}") from exc

    def start_spark(self) -> SparkSession:
        from spark_hpo.backend.spark.session import start_session

        if self.session is None:
            self.session = start_session(
                self.config.name,
                self.config.spark,
                timeout_s=self.config.resources.slot_timeout_s,
                spark=self.spark,
            )
        return self.session

    def code(self) -> Code:
        if self.task is not None:
            return Code.of(self.task)
        return Code.named(*self._reference("task", self.config.task))

    def code_files(self, code: Code) -> tuple[Path, ...]:
        """What executors, and who loads the model, cannot import by themselves."""
        return tuple(dict.fromkeys([*([code.file] if code.file else []), *self._transform_files]))

    def _reference(self, key: str, reference: str) -> tuple[str, Path | None]:
        """`module:name`, and the file to be shipped when the code was named by its file."""
        path, separator, name = reference.rpartition(":")
        if not separator or not path.endswith(".py"):
            return reference, None
        file = (Path(self.place).parent / path).resolve()
        if not file.is_file():
            raise ConfigError(f"{self.place}: {key} is {reference!r}, but there is no file {file}")
        if sys.path[0] != str(file.parent):
            sys.path.insert(0, str(file.parent))
        return f"{file.stem}:{name}", file

    def table(self, *, may_prepare: bool = True) -> Table | None:
        data = self.config.data
        if data is None:
            return None
        if data.prepare is not None and may_prepare:
            from spark_hpo.prepare.cli import prepare

            def start_spark() -> SparkSession:
                logger.info("%s: the table is being prepared", data.path)
                return self.start_spark()

            try:
                prepared = prepare([*data.prepare, "--output", data.path], start_spark=start_spark)
            except ConfigError as exc:
                raise ConfigError(f"{self.place}: data.prepare: {exc}") from exc
            if prepared.fresh:
                logger.info("%s: prepared, %d rows", data.path, sum(prepared.rows.values()))
        code = {column: self._reference("data.transforms", text) for column, text in data.transforms.items()}
        self._transform_files = [file for _, file in code.values() if file is not None]
        table = open_table(
            data.path,
            where=data.where,
            nulls=data.nulls,
            truncate=data.truncate,
            transforms={column: reference for column, (reference, _) in code.items()},
            trust_petastorm_metadata=data.trust_petastorm_metadata,
        )
        for split in Split:  # fewer rows than ranks are refused here, before any job
            plan_shards(table.manifest(split), self.config.resources.world_size, seed=None)
        return table

    def publication(self, storage: Storage, table: Table, code: Code) -> Publication:
        return Publication(
            storage=storage,
            table=table,
            reader=self.reader,
            code=code,
            files=self.code_files(code),
            registered_model=self.config.registered_model,
            promote=self.config.mlflow.promote == "auto",
        )

    def definition(self, storage: Storage, resume: str, *, has_begun: bool) -> Definition:
        config = {**self.config.model_dump(mode="json"), "space": self.space.to_json()}
        definition = Definition.load(storage)
        if definition is None or not has_begun:
            # Nothing has been decided yet: what a first attempt got wrong may still be put right.
            if resume == "must":
                raise ConfigError(f"{storage.url}: there is no study to resume; use resume auto")
            created = definition.redefined(config) if definition else Definition.create(config)
            created.write(storage)
            return created
        if resume == "never":
            raise ConfigError(
                f"{storage.url}: there is a study already; use resume auto to go on with it, "
                "or choose another study_dir (storage of tune)"
            )
        definition.check(config, place=self.place, defaults=defaults())
        return definition

    def settings(self, code: Code) -> Settings:
        is_named = self.task is None or (not code.by_value and code.reference == self.config.task)
        objects = [*([] if is_named else ["task"]), *(["space"] if self.has_own_space else [])]
        return Settings.of(self.config, place=self.place, objects=objects)

    def tracker(self, definition: Definition, objective: Objective) -> MlflowTracker:
        config = self.config
        card = StudyCard(
            study_id=definition.study_id,
            name=config.name,
            objective=objective,
            config=config.model_dump(mode="json"),
            space=self.space.to_json(),
            git_commit=git_commit(),
        )
        uri, registry = config.mlflow.tracking_uri, config.registry_uri
        return MlflowTracker(uri, config.experiment, card, registry_uri=registry)

    def backend(self, spec: RankSpec, code: Code, stack: ExitStack) -> Backend:
        """Starts Spark if it has to. The stack closes it, and the store in which its ranks meet."""
        resources = self.config.resources
        if self.config.backend == "inline":
            from spark_hpo.backend.inline import InlineBackend

            gpus = range(math.ceil(resources.gpus_per_rank))
            inline = InlineBackend(partial(run_rank, spec), world_size=resources.world_size, gpus=gpus)
            stack.callback(inline.close)
            return inline
        from spark_hpo.backend.spark.backend import SparkBackend
        from spark_hpo.backend.spark.session import check_resources

        spark = self.start_spark()
        cluster = cluster_of(spark)
        check_resources(cluster, world_size=resources.world_size)
        for file in self.code_files(code):
            cluster.ship(file)
        if resources.world_size > 1:
            spec = replace(spec, rendezvous=self._rendezvous(cluster, stack))
        backend = SparkBackend(
            spark,
            partial(run_rank, spec),
            world_size=resources.world_size,
            gpus_per_rank=resources.gpus_per_rank,
            slot_timeout_s=resources.slot_timeout_s,
        )
        stack.callback(backend.close)
        return backend

    def _rendezvous(self, cluster: Cluster, stack: ExitStack) -> Rendezvous:
        resources, driver_host = self.config.resources, cluster.driver_host
        # A rank that watches itself ends first, and can say where it stood.
        timeout_s = resources.rank_timeout_s * 1.2 + 5
        if resources.rendezvous == "driver" and driver_host is None:
            raise ConfigError(
                f"{self.place}: resources.rendezvous is 'driver', but executors of a Connect server do not "
                "reach this process; it must be auto or spark"
            )
        if driver_host is None or resources.rendezvous == "spark":
            return Rendezvous(host=None, timeout_s=timeout_s)
        server = RendezvousServer(
            driver_host, timeout_s=timeout_s, bind=cluster.driver_bind_address or driver_host
        )
        stack.callback(server.close)
        return server.address
