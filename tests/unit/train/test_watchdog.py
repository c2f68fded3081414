"""A stalled rank is killed and its stack trace saved. Each test runs a process."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from spark_hpo.study_dir import layout
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train.watchdog import EXIT_CODE

START = """
    import ctypes, sys, time
    from spark_hpo.study_dir.storage import Storage
    from spark_hpo.train.watchdog import Watchdog
    from spark_hpo.trial import Assignment

    storage = Storage(sys.argv[1])
    rank = int(sys.argv[2])
    assignment = Assignment(
        trial_id=3, attempt=2, params={}, bracket=0, rung=0, resource_from=0, resource_to=1,
        checkpoint=None, seed=0,
    )
    progress = 0
    def stall_here():
        time.sleep(60)
"""


def run(folder: Path, body: str, rank: int = 0) -> subprocess.CompletedProcess[str]:
    code = textwrap.dedent(START) + textwrap.dedent(body)
    command = [sys.executable, "-c", code, str(folder), str(rank)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("rank", [0, 1])
def test_watchdog_kills_a_stalled_rank_and_saves_its_stack(tmp_path: Path, rank: int) -> None:
    done = run(
        tmp_path,
        """
        with Watchdog(storage, assignment, rank=rank, limit_s=0.5) as watchdog:
            watchdog.follow(lambda: progress)
            stall_here()
        """,
        rank,
    )
    assert done.returncode == EXIT_CODE, done.stderr
    stack = Storage(tmp_path).read(layout.stacks(3, 2, rank))
    assert stack is not None
    assert b"resources.rank_timeout_s" in stack
    assert b"stall_here" in stack


def test_watchdog_kills_a_rank_that_holds_the_interpreter_lock(tmp_path: Path) -> None:
    """PyDLL keeps the interpreter's lock, as an extension in C may."""
    done = run(
        tmp_path,
        """
        with Watchdog(storage, assignment, rank=rank, limit_s=0.5) as watchdog:
            watchdog.follow(lambda: progress)
            until = time.time() + 0.4
            while time.time() < until:
                progress += 1
                time.sleep(0.01)
            ctypes.PyDLL(None).sleep(60)
        """,
    )
    assert done.returncode == 1
    assert "Timeout" in done.stderr


def test_watchdog_reports_progress_and_cleans_up(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        seen = set()
        with Watchdog(storage, assignment, rank=rank, limit_s=1.0) as watchdog:
            watchdog.follow(lambda: progress)
            until = time.time() + 3
            while time.time() < until:
                progress += 1
                time.sleep(0.01)
                seen.update(storage.names("progress"))
        print(seen, storage.names("progress"))
        """,
    )
    assert (done.returncode, done.stdout) == (0, "{'000003-2'} []\n"), done.stderr


def test_watchdog_reports_a_rank_without_progress_count_as_alive(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        seen = set()
        with Watchdog(storage, assignment, rank=rank, limit_s=0.5) as watchdog:
            watchdog.follow(lambda: None)
            while len(seen) < 4:  # None and three different times, which is longer than the limit
                seen.add(storage.read("progress/000003-2"))
                time.sleep(0.05)
        """,
    )
    assert done.returncode == 0, done.stderr


def test_watchdog_without_a_limit_does_nothing(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        with Watchdog(storage, assignment, rank=rank, limit_s=None):
            time.sleep(0.5)
        """,
    )
    assert done.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_watchdog_spares_a_rank_whose_upload_takes_longer_than_its_limit(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        def count():
            global progress
            progress += 1

        with Watchdog(storage, assignment, rank=0, limit_s=0.8) as watchdog:
            watchdog.follow(lambda: progress)
            with storage.with_progress(count).writing("checkpoint") as file:
                for _ in range(10):
                    file.write(bytes(1 << 20))
                    time.sleep(0.2)  # a slow device
        """,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "checkpoint").stat().st_size == 10 << 20
