"""Opens the backend of a study: what runs its assignments."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from spark_hpo.backend.base import Backend
from spark_hpo.backend.inline import InlineBackend
from spark_hpo.config import StudyConfig
from spark_hpo.driver.plan import StudyPlan
from spark_hpo.errors import ConfigError
from spark_hpo.train.rank import RankSpec
from spark_hpo.train.rendezvous.world import Rendezvous, RendezvousServer
from spark_hpo.train.worker import group_key, run_rank
from spark_hpo.trial import Assignment

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from spark_hpo.backend.spark.cluster import Cluster

_GATHERING_SHARE = 0.8  # of the time in which ranks find each other
_PRELOADED = ("spark_hpo.train.preload", "petastorm.reader")


@contextmanager
def open_backend(plan: StudyPlan, spec: RankSpec, session: SparkSession | None) -> Iterator[Backend]:
    """Open what runs assignments; close it, and the server through which ranks meet, at the end.

    Args:
        plan: the study, whose backend is chosen.
        spec: of its ranks.
        session: of a study on Spark.

    Raises:
        CapacityError: the cluster or the machine has fewer slots than ranks, or not the GPUs.
        ConfigError: executors cannot reach this process, and should.
    """
    config = plan.config
    with ExitStack() as stack:
        if config.backend == "inline":
            gpus = range(math.ceil(config.resources.gpus_per_rank))
            inline = InlineBackend(partial(run_rank, spec), world_size=config.resources.most_ranks, gpus=gpus)
            yield stack.enter_context(closing(inline))
        elif config.backend == "local":
            yield _open_local(plan, spec, stack)
        elif config.backend == "driver":
            assert session is not None, "the caller has started Spark"
            yield _open_driver(config, spec, session, stack)
        else:
            assert session is not None, "the caller has started Spark"
            yield _open_spark(plan, spec, session, stack)


def _open_local(plan: StudyPlan, spec: RankSpec, stack: ExitStack) -> Backend:
    from spark_hpo.backend.local.backend import LocalBackend

    resources = plan.config.resources
    # Task files are imported under names of their own.
    code = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spark_hpo-")))
    for source in plan.files:
        source.copy_to(code)
    if resources.most_ranks > 1:
        server = stack.enter_context(_serve_rendezvous(plan.config, "127.0.0.1", "127.0.0.1"))
        spec = replace(spec, rendezvous=server.address)
    backend = LocalBackend(
        partial(run_rank, spec),
        world_size=resources.world_size,
        gpus_per_rank=resources.gpus_per_rank,
        preloaded=(*_PRELOADED, *(("torchmetrics",) if spec.settings.metrics else ())),
        path=[str(code)],
        temporary=str(code),
    )
    return stack.enter_context(closing(backend))


def _open_driver(config: StudyConfig, spec: RankSpec, session: SparkSession, stack: ExitStack) -> Backend:
    from spark_hpo.backend.spark.driver_backend import DriverBackend
    from spark_hpo.backend.spark.session import cluster_of

    resources, cluster = config.resources, cluster_of(session)
    backend = DriverBackend(
        cluster,
        partial(run_rank, spec),
        slots_per_trial=resources.slots_per_trial,
        slot_timeout_s=resources.slot_timeout_s,
        max_threads=resources.max_concurrent,
    )
    return stack.enter_context(closing(backend))


def _open_spark(plan: StudyPlan, spec: RankSpec, session: SparkSession, stack: ExitStack) -> Backend:
    from spark_hpo.backend.spark.backend import SparkBackend
    from spark_hpo.backend.spark.gathering import Gathering
    from spark_hpo.backend.spark.session import cluster_of, needs_gathering

    resources, cluster = plan.config.resources, cluster_of(session)
    gathers = needs_gathering(cluster, world_size=resources.world_size, rendezvous=resources.rendezvous)
    for source in plan.files:
        # Spark refuses a second path for a name: a file that keeps its name may be among its --py-files.
        cluster.ship(source.path, name="" if source.path.stem == source.module else f"{source.module}.py")
    gathering = None
    if resources.most_ranks > 1:
        server = stack.enter_context(_open_rendezvous(plan.config, cluster))
        rendezvous = Rendezvous(
            host=None, timeout_s=_rendezvous_timeout_s(plan.config), ports=resources.listen_ports()
        )
        spec = replace(spec, rendezvous=rendezvous if server is None else server.address)
        if gathers:
            assert server is not None, "needs_gathering raises if there is none"
            gathering = Gathering(
                has_met=partial(_has_met, server, spec.study_id, resources.most_ranks),
                # Ranks that wait longer would give up by themselves, as if a peer were lost.
                limit_s=resources.rank_timeout_s * _GATHERING_SHARE,
            )
    backend = SparkBackend(
        cluster,
        partial(run_rank, spec),
        world_size=resources.world_size,
        gpus_per_rank=resources.gpus_per_rank,
        slot_timeout_s=resources.slot_timeout_s,
        gathering=gathering,
    )
    return stack.enter_context(closing(backend))


def _has_met(server: RendezvousServer, study_id: str, size: int, assignment: Assignment) -> bool:
    return server.has_met(group_key(study_id, assignment), size)


@contextmanager
def _open_rendezvous(config: StudyConfig, cluster: Cluster) -> Iterator[RendezvousServer | None]:
    """Serve the store through which the ranks of a trial meet. None: they meet through Spark."""
    resources, driver_host = config.resources, cluster.driver_host
    if resources.rendezvous == "driver" and driver_host is None:
        raise ConfigError(
            "cannot be used with Spark Connect, because executors cannot reach this process",
            key="resources.rendezvous",
            value=resources.rendezvous,
            cure="Set it to auto or spark",
        )
    if driver_host is None or resources.rendezvous == "spark":
        yield None
        return
    bind = cluster.driver_bind_address or driver_host
    with _serve_rendezvous(config, driver_host, bind, resources.listen_ports()) as server:
        yield server


@contextmanager
def _serve_rendezvous(
    config: StudyConfig, host: str, bind: str, ports: Sequence[int] = (0,)
) -> Iterator[RendezvousServer]:
    server = RendezvousServer(host, timeout_s=_rendezvous_timeout_s(config), bind=bind, ports=ports)
    with closing(server):
        yield server


def _rendezvous_timeout_s(config: StudyConfig) -> float:
    # Longer than the ranks' own limit: a rank that times out by itself can report its stack trace.
    return config.resources.rank_timeout_s * 1.2 + 5
