"""Ends a study that waits too long for slots."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from spark_hpo.errors import CapacityError
from spark_hpo.study.decider import Decider
from spark_hpo.study.dispatch import Dispatcher
from spark_hpo.study.progress import Progress
from spark_hpo.study.slots import Slots

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Idleness:
    """How long nothing has run, because executors were lost or others use them."""

    decider: Decider
    dispatcher: Dispatcher
    slots: Slots
    progress: Progress
    limit_s: float
    _since: float | None = field(default=None, init=False)

    def end(self) -> None:
        """Forget the time so far."""
        self._since = None

    def check(self, now: float) -> None:
        """
        Raises:
            CapacityError: nothing has run for longer than `limit_s`.
            ConfigError: the scheduler opens no slot although there is room for one.
        """
        is_short = self.dispatcher.is_held_for_capacity and not self.dispatcher.used_slots
        if not is_short and (self.progress.running or (self.progress.slots and self.dispatcher.waiting)):
            self.end()
            return
        if self.slots.is_refused and not is_short:  # other studies use all slots
            return
        if self.progress.slots and not is_short:
            self.decider.check_progress()
            return
        if self._since is None:
            self._since = now
            logger.warning("the cluster has no free slot for a trial; waiting")
        if now - self._since > self.limit_s:
            raise CapacityError(
                f"no free slot for {self.limit_s:.0f} s; check that enough executors are running, then rerun "
                "this command to resume"
            )
