"""The slots of a study: how many it has, and whether it may start another assignment."""

from __future__ import annotations

import logging
from dataclasses import KW_ONLY, dataclass

from spark_hpo.backend.base import Backend, Share
from spark_hpo.study.progress import Progress
from spark_hpo.study_dir.journal import Journal

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Slots:
    """Counts the slots of a study, records their number, and shares them with other studies.

    A trace, of 2 slots: count(); take(0) -> True; take(1) -> True; take(2) -> False
    """

    backend: Backend
    journal: Journal
    progress: Progress
    _: KW_ONLY
    share: Share
    max_concurrent: int | None

    def __post_init__(self) -> None:
        self._fit = 0  # slots, while other studies leave theirs
        self._num_others = 0  # studies that share the slots
        self.is_refused = False
        """True while other studies use slots that this one could fill."""

    def count(self) -> None:
        """Count the slots, and record their number if it has changed."""
        fit = self._fit = self.backend.num_slots
        slots = min(fit, self.max_concurrent or fit, self.share.num_slots(fit))
        others = self.share.num_studies - 1
        if (slots, others) != (self.progress.slots, self._num_others):
            kind = "study" if others == 1 else "studies"
            shared = f" of {fit}, shared with {others} other {kind}" if others else ""
            logger.info("slots for trials: %d%s", slots, shared)
            self.progress.slots, self._num_others = slots, others
            self.journal.slots(slots, fit=fit, num_others=others)

    def take(self, used: int) -> bool:
        """Return whether the study may start an assignment now, beside the slots that it uses."""
        running = len(self.progress.running)
        if used >= self._fit or running >= (self.max_concurrent or self._fit):
            self.rest(used)
            return False
        was_refused, self.is_refused = self.is_refused, not self.share.take(used)
        if self.is_refused and not was_refused and not running:
            logger.info("other studies use all slots; waiting for one of their trials to end")
        return not self.is_refused

    def rest(self, used: int) -> None:
        """Leave free slots to other studies, because there is nothing to start."""
        self.is_refused = False
        self.share.rest(used)
