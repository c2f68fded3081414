from pathlib import Path

import pytest

from spark_hpo.report.pictures.slots import binned, slots
from spark_hpo.report.study_record import StudyRecord
from spark_hpo.report.timeline import Use, timeline_of
from spark_hpo.study_dir.storage import Storage
from spark_hpo.trial import FailureKind
from tests.support.written_studies import BEGAN, TEST, StudyWriter

JOURNALS = Path(__file__).parents[2] / "data/journals/0.1"


def two_slots() -> StudyWriter:
    """Ten seconds until the first trial; then trials 0 and 1 beside each other."""
    return StudyWriter().at(8).slots(2).at(10).start(0).at(11).start(1)


def test_timeline_explains_an_idle_slot_by_the_next_event() -> None:
    pen = two_slots().at(20).end(0).at(30).end(1).at(32).start(2).at(35).start(3)
    pen.at(50).end(2).at(60).end(3).at(61).start(3, 1, 1, **TEST).at(65).end(3, **TEST).at(66).close()
    timeline = timeline_of(pen.record())
    assert timeline.totals == {
        Use.BUSY: (1 + 2 * 9 + 10) + (3 + 2 * 15 + 10) + 4,
        Use.TESTING: 4,
        Use.WAITING: 10,  # trial 0 was reported, and then trial 1 was waited for
        Use.DECIDING: 1 + (2 * 2 + 3),
        Use.STARTING: 2 * 10,
        Use.ENDING: 10 + 2 * 1 + 2 * 1,
    }
    assert sum(timeline.totals.values()) == 2 * 66
    assert timeline.busy_share == pytest.approx(76 / 132)


def test_timeline_counts_slots_that_wait_for_a_retry() -> None:
    pen = two_slots().at(20).lose(0).at(24).start(0, attempt=2).at(30).end(0, attempt=2).end(1).close()
    assert timeline_of(pen.record()).totals[Use.RETRYING] == 4


def test_timeline_does_not_count_interrupted_attempts_as_retries() -> None:
    pen = two_slots().at(20).lose(0, "asked to", kind=FailureKind.INTERRUPTED).at(24).close("interrupted")
    totals = timeline_of(pen.record()).totals
    assert totals[Use.ENDING] == 4
    assert Use.RETRYING not in totals


def test_timeline_does_not_count_lost_slots_as_idle() -> None:
    pen = two_slots().at(20).end(0).slots(1).at(25).slots(2).start(2).at(30).end(1).end(2).close()
    timeline = timeline_of(pen.record())
    assert timeline.totals[Use.GONE] == 5
    assert timeline.most == 2
    assert timeline.busy_share == pytest.approx((1 + 2 * 9 + 5 + 2 * 5) / (2 * 30 - 5))


def test_timeline_excludes_the_time_between_two_drivers() -> None:
    pen = two_slots().at(20).end(0).die().at(1000).open().slots(2).at(1003).start(1, attempt=2)
    record = pen.at(1010).end(1, attempt=2).close().record()
    timeline = timeline_of(record)
    [gap] = timeline.gaps
    assert (gap.seconds, gap.was_interrupted) == (980, False)
    assert record.seconds == 20 + 10
    assert record.worked(BEGAN + 500) == 20
    assert sum(timeline.totals.values()) == 2 * 30
    picture = slots(record)
    assert [note.text for note in picture.figure.layout.annotations] == [
        "driver failed or was killed; resumed 16 min 20 s later"
    ]
    assert picture.figure.layout.shapes[0].x0 == 20  # of seconds of work: the axis leaves the gap out


def test_timeline_of_a_running_study_ends_now() -> None:
    record = two_slots().record()
    assert record.is_running, "its journal is open, in this process"
    [driver] = record.drivers
    assert driver.ended > BEGAN + 1000, "of the wall clock"
    assert timeline_of(record).segments[-1].slots == {Use.BUSY: 2}
    ended = two_slots().record(is_running=False)
    assert ended.seconds == 11


def test_timeline_survives_a_clock_that_is_set_back() -> None:
    pen = two_slots().at(20).end(0).at(5).start(2).at(30).end(1).end(2).close()
    segments = timeline_of(pen.record()).segments
    assert all(segment.end > segment.begin for segment in segments)
    assert segments[-1].end == BEGAN + 30


@pytest.mark.parametrize("name", ["default-finished", "default-killed", "population-finished"])
def test_timeline_estimates_the_slots_of_early_journals(name: str) -> None:
    record = StudyRecord.read(Storage(JOURNALS / name))
    timeline = timeline_of(record)
    assert not timeline.is_counted
    assert timeline.most == 1
    assert "has no numbers of slots" in slots(record).text


def test_slots_figure_stacks_to_the_available_slots(record: StudyRecord) -> None:
    timeline = timeline_of(record)
    assert timeline.is_counted
    edges, means = binned(record, timeline.segments)
    width = edges[1]
    drawn = sum(sum(mean.values()) for mean in means[:-1]) * width
    assert drawn == pytest.approx(sum(timeline.totals.values()))
    assert max(sum(mean.values()) for mean in means) == pytest.approx(4)
    figure = slots(record).figure
    assert {trace.stackgroup for trace in figure.data} == {"slots"}
    assert [trace.name for trace in figure.data] == [str(use) for use in Use if use in timeline.totals]
    assert f"{timeline.busy_share:.0%} of the slot time was used" in slots(record).text
