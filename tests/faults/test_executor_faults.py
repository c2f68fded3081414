"""Executors that die, and one that comes back from the dead."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tests.faults.family import eventually, executor_of, stopped
from tests.faults.ledger import Ledger
from tests.faults.live import LiveStudy

Live = Callable[..., LiveStudy]

LAST_STEP = 3 * 8 - 1  # of three epochs


def test_an_executor_killed_in_the_lowest_rung_costs_one_attempt_of_its_own_trial(
    live: Live, ledger: Ledger, undisturbed: dict[Any, Any]
) -> None:
    study = live(step_s=0.1, training={"batch_size": 16, "checkpoint_every": {"seconds": 0.5}})
    study.begin()
    victim = study.wait_for_step(0, step=10)
    executor_of(victim.pid).kill()
    killed = time.time()
    again = study.wait_for_step(0, after=killed, not_by={victim.pid})
    study.finish_soundly()

    assert study.lost() == [(0, 1)]
    assert study.results() == undisturbed
    assert 0 < again.step <= victim.step + 3, "it goes on from a checkpoint within the rung"
    assert study.repeated_s() < 2.0
    ledger.add("executor killed in rung 0", repeated_s=study.repeated_s(), recovery_s=again.time - killed)


def test_an_executor_killed_in_mid_checkpoint_leaves_the_one_before_whole(
    live: Live, ledger: Ledger, undisturbed: dict[Any, Any]
) -> None:
    study = live(step_s=0.05)
    (study.faults / "hold-writes").touch()
    study.begin()
    eventually((study.faults / "held").exists, "a checkpoint that is being written")
    pid = int((study.faults / "held").read_text())
    trial = study.trial_of(pid)
    half = list((study.study_dir / f"checkpoints/trial-{trial:06d}").glob(".tmp-*"))
    assert len(half) == 1, "it is killed between writing and renaming"
    executor_of(pid).kill()
    killed = time.time()
    (study.faults / "hold-writes").unlink()
    again = study.wait_for_step(trial, after=killed, not_by={pid})
    study.finish_soundly()

    assert study.lost() == [(trial, 1)]
    assert study.results() == undisturbed
    ledger.add(
        "executor killed in mid-checkpoint", repeated_s=study.repeated_s(), recovery_s=again.time - killed
    )


def test_what_a_zombie_executor_still_writes_does_not_count(
    live: Live, ledger: Ledger, undisturbed: dict[Any, Any]
) -> None:
    # Its Python goes on while its JVM is stopped, and comes to its end when another attempt is on its way.
    study = live(step_s=0.6, spark={"spark.master": "local-cluster[3,1,1024]"}, budget={"trials": 2})
    study.begin()
    victim = study.wait_for_step(0, step=2)
    with stopped(executor_of(victim.pid)):
        began = time.time()
        again = study.wait_for_step(0, after=began, not_by={victim.pid})
        study.wait_for_step(0, step=LAST_STEP, by={victim.pid})
        late = study.study_dir / "checkpoints/trial-000000/000003-1.pt"
        study.wait_for_step(0, step=LAST_STEP, not_by={victim.pid})
        assert not late.exists(), "the fence keeps it out"
    study.finish_soundly()

    assert study.lost() == [(0, 1)]
    assert [e["attempt"] for e in study.reported() if e["trial_id"] == 0] == [2]
    assert set(study.results()) == {(0, 3), (1, 3)}
    assert study.results().items() <= undisturbed.items()
    ledger.add("zombie executor", repeated_s=study.repeated_s(), recovery_s=again.time - began)
