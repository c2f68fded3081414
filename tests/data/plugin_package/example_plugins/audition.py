import math

from spark_hpo import Scheduler, Slot


class AuditionScheduler(Scheduler):
    """Trains all trials for one epoch, and the best of each group to the end."""

    def __init__(self, max_resource: int, max_trials: int | None = None, *, group: int = 4) -> None:
        self.max_resource, self.max_trials, self.group = max_resource, max_trials, group
        self._num_trials = 0
        self._losses: dict[int, dict[int, float]] = {}  # by group, then by trial; only of open groups
        self._promoted: list[int] = []
        self._running: set[int] = set()
        self._closed = False

    def next_slot(self) -> Slot | None:
        if self._promoted:
            return self._open(self._promoted.pop(0), rung=1)
        if self._closed:
            return None
        trial_id = self._num_trials
        self._num_trials += 1
        self._closed = self._num_trials == self.max_trials
        return self._open(trial_id, rung=0)

    def report(self, slot: Slot, loss: float) -> list[int]:
        self._running.remove(slot.trial_id)
        failed = [] if math.isfinite(loss) else [slot.trial_id]
        if slot.resource_to == self.max_resource:
            return failed
        number = slot.trial_id // self.group
        self._losses.setdefault(number, {})[slot.trial_id] = loss
        return sorted(failed + self._settle(number))

    def close(self) -> list[int]:
        self._closed = True
        return sorted(trial_id for number in list(self._losses) for trial_id in self._settle(number))

    def is_done(self) -> bool:
        return self._closed and not self._promoted and not self._running

    def _settle(self, number: int) -> list[int]:
        """Promote the best trial of a group if all of its trials have reported. Returns the others."""
        losses = self._losses[number]
        started = min(self._num_trials - number * self.group, self.group)
        if len(losses) < (started if self._closed else self.group):
            return []
        del self._losses[number]
        ranking = sorted((loss, trial_id) for trial_id, loss in losses.items() if math.isfinite(loss))
        self._promoted += [trial_id for _, trial_id in ranking[:1]]
        return [trial_id for _, trial_id in ranking[1:]]

    def _open(self, trial_id: int, *, rung: int) -> Slot:
        self._running.add(trial_id)
        first = min(1, self.max_resource)
        return Slot(
            trial_id=trial_id,
            bracket=0,
            rung=rung,
            resource_from=first if rung else 0,
            resource_to=self.max_resource if rung else first,
        )
