"""The section `resources`: what one trial gets, and how long to wait for it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from spark_hpo.config.messages import mistake
from spark_hpo.config.section import NonNegativeNumber, PositiveInt, PositiveNumber, Section


def _ports(value: Any) -> Any:
    """Check a range of ports, and convert a single one to text."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d{1,5})(?:\s*-\s*(\d{1,5}))?", str(value).strip())
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1024 <= first <= last <= 65535:
        raise mistake(
            "must be a port or a range of ports between 1024 and 65535, the smaller one first",
            value=value,
            cure="Write it as 40000-40010",
        )
    return f"{first}-{last}"


def _world_size(value: Any) -> Any:
    """Check a number of ranks, or numbers by rung. The keys are texts where JSON has been read."""
    if not isinstance(value, Mapping):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise mistake("must be an integer >= 1, or integers by rung, such as {0: 1, 2: 4}", value=value)
        return value
    if not all(re.fullmatch(r"[0-9]+", str(rung)) for rung in value):
        raise mistake("must have rungs as keys, which are integers >= 0", value=dict(value))
    sizes = {int(rung): ranks for rung, ranks in value.items()}
    if any(isinstance(ranks, bool) or not isinstance(ranks, int) or ranks < 1 for ranks in sizes.values()):
        raise mistake("must have integers >= 1 as numbers of ranks", value=dict(value))
    if 0 not in sizes:
        raise mistake("must begin with rung 0", value=sizes, cure="Add the ranks of new trials: {0: 1, ...}")
    ordered = [ranks for _, ranks in sorted(sizes.items())]
    if ordered != sorted(ordered):
        raise mistake("must not shrink with the rung", value=sizes)
    if any(ranks % ordered[0] for ranks in ordered):
        raise mistake(
            f"must have multiples of {ordered[0]}, the ranks of rung 0, so that trials take whole slots",
            value=sizes,
        )
    return dict(sorted(sizes.items()))


class ResourcesConfig(Section):
    """What one trial gets, and how long to wait for it."""

    world_size: Annotated[int | dict[int, int], BeforeValidator(_world_size)] = 1
    """Ranks (processes) that train one trial together. A mapping lets them grow with the rung:
    `{0: 1, 2: 4}` trains with 1 rank up to rung 1, and with 4 from rung 2 on. See
    [More ranks for finalists](cluster.md#more-ranks-for-finalists)."""
    gpus_per_rank: NonNegativeNumber = 0
    """A whole number, or a fraction of at most 0.5: 0.25 lets four trials share a GPU."""
    rendezvous: Literal["auto", "driver", "spark"] = "auto"
    """How the ranks of a trial find each other: `driver`, through a store in the driver, is a second faster;
    `spark`, through Spark, works where executors cannot reach the driver. `auto`: `driver`, or `spark` with
    Spark Connect."""
    slots_per_trial: PositiveInt = 1
    """With `backend: driver`: task slots that are reserved for one trial. Set it to the number of tasks of
    its barrier jobs, such as `num_workers` of XGBoost, so that trials that run at once never wait for each
    other."""
    ports: Annotated[str | None, BeforeValidator(_ports)] = None
    """Ports that the store through which ranks find each other may listen on: `40000-40010`. Default: any
    free port. Gloo and NCCL take their ports from the kernel: see [Ports](cluster.md#ports)."""
    max_concurrent: PositiveInt | None = None
    """Trials that run at the same time. Default: as many as the cluster has room for; with
    `backend: driver`, at most 10. With 1, and the same seed, a study is repeatable digit for digit."""
    share: PositiveNumber = 1.0
    """Weight of this study when several studies of one process use the same Spark application, or this
    machine: a study with 2 gets twice the slots of a study with 1. Each also gets what others leave."""
    trial_timeout_s: PositiveNumber | None = None
    """Seconds that a trial may take to its next rung, or for one fold. After that it is cancelled, and has
    failed. Default: no limit."""
    rank_timeout_s: PositiveNumber = 300.0
    """Seconds for the ranks of a trial to find each other, and for each of their steps. A rank that takes
    longer counts as stalled, and the trial is retried."""
    slot_timeout_s: PositiveNumber = 600.0
    """Seconds that the study waits while the cluster has no room for any trial."""
    max_infra_retries: Annotated[int, Field(ge=0)] = 2
    """Retries of a trial's assignment after a lost process, executor or storage connection, with pauses of 1,
    2, 4, ... s."""
    grace_s: PositiveNumber = 20.0
    """Seconds that running trials get to save their state when the study is interrupted."""

    @property
    def most_ranks(self) -> int:
        """The ranks of an assignment in the highest rung."""
        return self.world_size if isinstance(self.world_size, int) else max(self.world_size.values())

    def listen_ports(self) -> Sequence[int]:
        """Return the ports to try in this order; 0 is any free port."""
        if self.ports is None:
            return (0,)
        first, last = map(int, self.ports.split("-"))
        return range(first, last + 1)

    @model_validator(mode="after")
    def _gpus_can_be_shared(self) -> ResourcesConfig:
        gpus = self.gpus_per_rank
        if gpus > 0.5 and not gpus.is_integer():
            raise mistake(
                "must be a whole number, or at most 0.5, because Spark divides a GPU into equal shares",
                key="gpus_per_rank",
                value=gpus,
            )
        if 0 < gpus < 1 and self.most_ranks > 1:
            raise mistake(
                f"is a fraction, but ranks of one trial cannot share a GPU, and resources.world_size is "
                f"{self.world_size}",
                key="gpus_per_rank",
                value=gpus,
                cure="Use world_size 1 or whole GPUs",
            )
        return self
