"""Attempts at one assignment: the next attempt resumes from what a killed one has saved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from spark_hpo.data.table import Table, open_table
from spark_hpo.objective import Mode, Objective
from spark_hpo.study_dir import layout
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train import step_coordinator
from spark_hpo.train.checkpoints import checkpoint
from spark_hpo.train.rank import RankSpec
from spark_hpo.train.tasks.tabular import TabularTask
from spark_hpo.train.training_settings import TrainingSettings
from spark_hpo.train.worker import run_rank
from spark_hpo.trial import Assignment, FailureKind, Report
from tests.support.tables import write_clusters

STEPS = 8  # per pass: 120 rows in batches of 16


class Killed(BaseException):
    """Stands for kill -9: the rank runs no code after it."""


class Fragile(TabularTask):
    """Is killed in one of its training steps."""

    steps = 0
    killed_at: int | None = None

    def loss(self, outputs: Any, batch: Any) -> Tensor:
        if torch.is_grad_enabled():
            type(self).steps += 1
            if type(self).steps == self.killed_at:
                raise Killed
        return super().loss(outputs, batch)


@pytest.fixture(autouse=True)
def _decide_at_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_coordinator, "_DECISION_INTERVAL_S", 0.0)
    monkeypatch.setattr(step_coordinator, "_STOP_CHECK_INTERVAL_S", 0.0)
    monkeypatch.setattr(Fragile, "steps", 0)
    monkeypatch.setattr(Fragile, "killed_at", None)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    return open_table(str(write_clusters(tmp_path_factory.mktemp("tables") / "clusters")))


@pytest.fixture
def spec(table: Table, tmp_path: Path) -> RankSpec:
    return RankSpec(
        study_id="study",
        storage=Storage(tmp_path / "study"),
        trainable=Fragile,
        table=table,
        objective=Objective(metric="accuracy", mode=Mode.MAX),
        settings=TrainingSettings(batch_size=16, checkpoint_seconds=1e-9),
        max_resource=9,
        seed=0,
        reader="arrow",
        shuffle_window=64,
    )


def assignment(start: int, stop: int, path: str | None = None, attempt: int = 1) -> Assignment:
    return Assignment(
        trial_id=4,
        attempt=attempt,
        params={"learning_rate": 0.01, "hidden_units": 8, "dropout": 0.3},
        bracket=0,
        rung=start,
        resource_from=start,
        resource_to=stop,
        checkpoint=path,
        seed=11,
    )


def run(spec: RankSpec, assignment: Assignment) -> Report:
    return run_rank(spec, assignment, rank=0, world_size=1)


def killed(spec: RankSpec, assignment: Assignment, at: int) -> None:
    Fragile.steps, Fragile.killed_at = 0, at
    with pytest.raises(Killed):
        run(spec, assignment)
    Fragile.steps, Fragile.killed_at = 0, None


def weights(spec: RankSpec, report: Report) -> Mapping[str, Tensor]:
    assert report.checkpoint is not None
    state: Mapping[str, Tensor] = checkpoint.load(spec.storage, report.checkpoint)["model"]
    return state


@pytest.mark.medium
@pytest.mark.parametrize("at", [1, 4, STEPS, STEPS + 1, 2 * STEPS + 5])
@pytest.mark.parametrize("evaluate_each_pass", [True, False])
def test_attempt_resumes_a_killed_one_bit_for_bit(spec: RankSpec, at: int, evaluate_each_pass: bool) -> None:
    spec = replace(spec, settings=replace(spec.settings, evaluate_each_pass=evaluate_each_pass))
    other = replace(spec, storage=Storage(spec.storage.url + "-other"))
    undisturbed = run(other, assignment(0, 3))
    killed(spec, assignment(0, 3), at)
    report = run(spec, assignment(0, 3, attempt=2))
    assert Fragile.steps == 3 * STEPS - (at - 1), "saved steps are not trained again"
    assert report.failure is None
    assert [(m.resource, m.metrics, m.rows) for m in report.curve] == [
        (m.resource, m.metrics, m.rows) for m in undisturbed.curve
    ]
    expected = weights(other, undisturbed)
    assert all(torch.equal(expected[name], tensor) for name, tensor in weights(spec, report).items())


def test_checkpoint_epochs_decide_when_to_save(spec: RankSpec) -> None:
    settings = replace(spec.settings, checkpoint_seconds=None, checkpoint_epochs=2)
    spec = replace(spec, settings=settings)
    killed(spec, assignment(0, 5), 3 * STEPS + 2)
    run(spec, assignment(0, 5, attempt=2))
    assert Fragile.steps == 3 * STEPS


def test_attempt_resumes_from_the_last_one(spec: RankSpec) -> None:
    killed(spec, assignment(0, 2), 5)
    killed(spec, assignment(0, 2, attempt=2), 3)
    report = run(spec, assignment(0, 2, attempt=3))
    assert Fragile.steps == 2 * STEPS - 4 - 2
    assert [m.resource for m in report.curve] == [1, 2]


def test_attempt_skips_a_damaged_checkpoint(spec: RankSpec) -> None:
    killed(spec, assignment(0, 2), 5)
    killed(spec, assignment(0, 2, attempt=2), 3)
    spec.storage.write(layout.partial(4, 2), b"half of a")
    assert run(spec, assignment(0, 2, attempt=3)).failure is None
    assert Fragile.steps == 2 * STEPS - 4


class CountingStorage(Storage):
    """Counts how often each file is read."""

    reads: Counter[str]

    def read(self, name: str) -> bytes | None:
        self.reads[name] += 1
        return super().read(name)


def test_attempt_reads_one_checkpoint_once(spec: RankSpec) -> None:
    killed(spec, assignment(0, 2), 5)
    storage = CountingStorage(spec.storage.url)
    storage.reads = Counter()
    assert run(replace(spec, storage=storage), assignment(0, 2, attempt=3)).failure is None
    assert storage.reads[layout.partial(4, 1)] == 1
    assert storage.reads[layout.partial(4, 2)] == 0  # attempt 2 saved nothing


def test_existence_of_a_checkpoint_is_asked_without_reading_it(spec: RankSpec) -> None:
    found = []

    def ask(ctx: Any) -> None:
        found.append(ctx.has_checkpoint)
        ctx.report({"accuracy": 0.5}, resource=ctx.resource.stop, checkpoint=b"bytes")

    storage = CountingStorage(spec.storage.url)
    storage.reads = Counter()
    spec = replace(spec, trainable=ask, table=None, storage=storage)
    first = run(spec, assignment(0, 1))
    run(spec, assignment(1, 2, first.checkpoint))
    assert found == [False, True]
    assert storage.reads[first.checkpoint or ""] == 0


def test_attempt_ignores_checkpoints_of_another_rung(spec: RankSpec) -> None:
    killed(spec, assignment(0, 1), 5)
    first = run(spec, assignment(0, 1, attempt=2))
    killed(spec, assignment(1, 3, first.checkpoint), 1)  # before it has saved anything
    Fragile.steps = 0
    assert run(spec, assignment(1, 3, first.checkpoint, attempt=2)).failure is None
    assert Fragile.steps == 2 * STEPS


def test_attempt_that_was_given_up_saves_nothing(spec: RankSpec) -> None:
    first = run(spec, assignment(0, 1))
    before = spec.storage.names(layout.checkpoints(4))
    again = assignment(1, 2, first.checkpoint)
    spec.storage.write(layout.fence(4, again.rung), b"2")
    report = run(spec, again)
    assert report.failure is not None
    assert report.failure.kind is FailureKind.STORAGE
    assert "started attempt 2" in report.failure.message
    assert spec.storage.names(layout.checkpoints(4)) == before


def test_fence_of_a_lower_rung_does_not_apply(spec: RankSpec) -> None:
    spec.storage.write(layout.fence(4, rung=0), b"3")
    first = run(spec, replace(assignment(0, 1, attempt=3), rung=0))
    report = run(spec, replace(assignment(1, 2, first.checkpoint), rung=1))
    assert report.failure is None
    assert report.checkpoint == layout.checkpoint(4, 2, 1)


def test_partial_checkpoint_is_deleted_at_the_end(spec: RankSpec) -> None:
    report = run(spec, assignment(0, 1))
    assert report.checkpoint == layout.checkpoint(4, 1, 1)
    assert spec.storage.names(layout.checkpoints(4)) == ["000001-1.pt"]


def test_stop_file_makes_a_task_save_and_stop(spec: RankSpec) -> None:
    spec = replace(spec, settings=replace(spec.settings, checkpoint_seconds=None))
    spec.storage.write(layout.STOP, b"")
    report = run(spec, assignment(0, 3))
    assert report.failure is not None
    assert report.failure.kind is FailureKind.INTERRUPTED
    assert Fragile.steps == 1
    spec.storage.delete(layout.STOP)
    assert run(spec, assignment(0, 3, attempt=2)).failure is None
    assert Fragile.steps == 3 * STEPS


def counting(ctx: Any) -> None:
    state = ctx.load_checkpoint() or {"sum": 0}
    for epoch in range(*ctx.resource):
        state = {"sum": state["sum"] + epoch}
        Fragile.steps += 1
        if Fragile.steps == Fragile.killed_at:
            raise Killed
        try:
            ctx.report({"accuracy": float(state["sum"])}, checkpoint=state)
        except Exception:  # Stopped is not one
            raise AssertionError("a training function cannot catch it") from None


def test_task_resumes_within_a_rung_with_another_number_of_ranks(spec: RankSpec) -> None:
    plain = {"learning_rate": 0.01, "hidden_units": 8}  # ranks of another number draw other masks of dropout
    first, second = (replace(assignment(0, 2, attempt=number), params=plain) for number in (1, 2))
    killed(spec, first, STEPS + 3)
    state = checkpoint.load(spec.storage, layout.partial(4, 1))
    # As two ranks would have saved it, whose sums of losses differ.
    (loss,) = state["since"]["rank_loss_sum"]
    state["since"]["rank_loss_sum"] = [loss - 1.0, 1.0]
    state["generators"] *= 2
    checkpoint.save(spec.storage, layout.partial(4, 1), {k: v for k, v in state.items() if k != "version"})
    report = run(spec, second)
    assert Fragile.steps == 2 * STEPS - (STEPS + 2)
    expected = run(replace(spec, storage=Storage(f"{spec.storage.url}-whole")), first)
    assert report.metrics["train_loss"] == pytest.approx(expected.metrics["train_loss"], rel=1e-6)


def test_function_resumes_from_its_last_reported_checkpoint(spec: RankSpec) -> None:
    spec = replace(spec, trainable=counting, table=None)
    killed(spec, assignment(0, 5), 4)
    report = run(spec, assignment(0, 5, attempt=2))
    assert Fragile.steps == 2
    assert report.metrics == {"accuracy": 0.0 + 1 + 2 + 3 + 4}
    assert [m.resource for m in report.curve] == [1, 2, 3, 4, 5]


def test_stop_file_makes_a_function_save_and_stop(spec: RankSpec) -> None:
    spec = replace(spec, trainable=counting, table=None)
    spec.storage.write(layout.STOP, b"")
    report = run(spec, assignment(0, 5))
    assert report.failure is not None
    assert report.failure.kind is FailureKind.INTERRUPTED
    spec.storage.delete(layout.STOP)
    assert run(spec, assignment(0, 5, attempt=2)).metrics == {"accuracy": 10.0}
    assert Fragile.steps == 5


def stepping(ctx: Any) -> None:
    """Sums 0 to 3 in each epoch, and can resume between two of these steps."""
    state = ctx.load_checkpoint() or {"step": 0, "sum": 0}

    def snapshot() -> dict[str, int]:
        return dict(state)

    while state["step"] < 4 * ctx.resource.stop:
        state["sum"] += state["step"] % 4
        state["step"] += 1
        Fragile.steps += 1
        if Fragile.steps == Fragile.killed_at:
            raise Killed
        ctx.step(snapshot)
        if state["step"] % 4 == 0:
            ctx.report({"accuracy": float(state["sum"])}, checkpoint=snapshot)


def test_function_resumes_in_the_middle_of_an_epoch(spec: RankSpec) -> None:
    spec = replace(spec, trainable=stepping, table=None)
    killed(spec, assignment(0, 3), 7)
    report = run(spec, assignment(0, 3, attempt=2))
    assert Fragile.steps == 12 - 6, "six steps were saved by the first attempt"
    assert [m.metrics["accuracy"] for m in report.curve] == [6.0, 12.0, 18.0]
    assert report.checkpoint is not None
    assert checkpoint.load(spec.storage, report.checkpoint)["function"] == {"step": 12, "sum": 18}


def test_checkpoint_function_is_called_only_to_save(spec: RankSpec) -> None:
    calls = []

    def state_of(epoch: int) -> dict[str, int]:
        calls.append(epoch)
        return {"epoch": epoch}

    def train(ctx: Any) -> None:
        assert ctx.max_resource == 9
        for epoch in range(*ctx.resource):
            ctx.report({"accuracy": 0.5}, checkpoint=partial(state_of, epoch))

    settings = replace(spec.settings, checkpoint_seconds=None)
    report = run(replace(spec, trainable=train, table=None, settings=settings), assignment(0, 3))
    assert calls == [2]
    assert report.checkpoint is not None
    assert checkpoint.load(spec.storage, report.checkpoint)["function"] == {"epoch": 2}


def test_folder_of_a_function_is_deleted_when_it_ends(spec: RankSpec) -> None:
    folders = []

    def train(ctx: Any) -> None:
        folders.append(ctx.folder)
        assert ctx.folder == folders[0]
        (ctx.folder / "weights").write_bytes(b"w")
        ctx.report({"accuracy": 0.5}, resource=3, checkpoint=(ctx.folder / "weights").read_bytes)

    report = run(replace(spec, trainable=train, table=None), assignment(0, 3))
    assert report.failure is None, report.failure
    assert checkpoint.load(spec.storage, report.checkpoint or "")["function"] == b"w"
    assert not folders[0].exists()
