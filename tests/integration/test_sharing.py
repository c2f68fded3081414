"""Several studies in threads of one process share the slots of one Spark session."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from spark_hpo.report.study_record import StudyRecord
from spark_hpo.study_dir.events import Event, EventKind
from spark_hpo.study_dir.storage import Storage
from tests.support.sharing_studies import (
    RANKS,
    SHARES,
    SLOTS,
    TRIALS,
    TRIALS_OF_RANKS,
)

SCRIPT = Path(__file__).parents[1] / "support/sharing_studies.py"
LIMIT_S = 280.0
NOTICE_LIMIT_S = 4.0

Events = Mapping[str, Sequence[Event]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharing")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder)],
        env={**os.environ, "PYSPARK_PYTHON": sys.executable, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def events_of(folder: Path, names: Iterable[str]) -> Events:
    return {
        name: [e for driver in StudyRecord.read(Storage(folder / name)).drivers for e in driver.events]
        for name in names
    }


def steps(events: Events) -> Iterator[tuple[float, dict[str, int]]]:
    """Yield each moment at which an assignment starts or ends, with the assignments then running."""
    running = dict.fromkeys(events, 0)
    changes = {EventKind.ASSIGNED: 1, EventKind.REPORTED: -1}
    merged = sorted(
        # In one instant, an assignment makes room before another one starts.
        (event.time, changes[event.kind], name)
        for name, all_events in events.items()
        for event in all_events
        if event.kind in changes
    )
    for time, change, name in merged:
        running[name] += change
        yield time, dict(running)


def began(events: Events, name: str) -> float:
    return next(event.time for event in events[name] if event.kind is EventKind.SLOTS)


def ended(events: Events, name: str) -> float:
    return events[name][-1].time


@pytest.mark.slow
@pytest.mark.spark
@pytest.mark.timeout(LIMIT_S + 30)
def test_three_studies_share_the_slots_of_a_session(folder: Path) -> None:
    events = events_of(folder, TRIALS)
    timeline = list(steps(events))
    assert all(sum(running.values()) <= SLOTS for _, running in timeline)
    for name, trials in TRIALS.items():
        reported = [event for event in events[name] if event.kind is EventKind.REPORTED]
        assert len(reported) == trials + 1, "all trials, and the evaluation of the best"

    # Slots go by weight while all studies run, and those of a study that has ended to the others.
    late, early_end = began(events, "late"), ended(events, "heavy")
    used = dict.fromkeys(TRIALS, 0.0)
    for (time, running), (until, _) in itertools.pairwise(timeline):
        if late + 1 < time < early_end - 1:
            for name in TRIALS:
                used[name] += running[name] * (until - time)
    total = sum(used.values())
    for name, share in SHARES.items():
        assert used[name] / total == pytest.approx(share / sum(SHARES.values()), abs=0.12)
    assert max(running["light"] for time, running in timeline if time > early_end) >= SLOTS // 2

    # The others learn within a second that a study has started or ended; a loaded machine takes longer.
    for name, moment, slots, others in (
        ("heavy", late, 2, 2),
        ("light", late, 1, 2),
        ("light", early_end, 2, 1),
        ("late", early_end, 2, 1),
    ):
        changes = [
            event.time - moment
            for event in events[name]
            if event.kind is EventKind.SLOTS
            and (event.data["slots"], event.data.get("shared_with", 0)) == (slots, others)
        ]
        assert min(map(abs, changes)) < NOTICE_LIMIT_S, (name, changes)


@pytest.mark.slow
@pytest.mark.spark
@pytest.mark.timeout(LIMIT_S + 30)
def test_studies_of_several_ranks_never_wait_for_each_others_slots(folder: Path) -> None:
    events = events_of(folder, RANKS)
    for running in (running for _, running in steps(events)):
        assert sum(running[name] * ranks for name, ranks in RANKS.items()) <= SLOTS
    for of_study in events.values():
        kinds = [event.kind for event in of_study]
        assert kinds.count(EventKind.REPORTED) == TRIALS_OF_RANKS + 1
        assert EventKind.LOST not in kinds
