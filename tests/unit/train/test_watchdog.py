"""A rank that makes no step any more ends, and says where it stood. Each in a process of its own."""

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
    moves = 0
    def stand_here_for_ever():
        time.sleep(60)
"""


def run(folder: Path, body: str, rank: int = 0) -> subprocess.CompletedProcess[str]:
    code = textwrap.dedent(START) + textwrap.dedent(body)
    command = [sys.executable, "-c", code, str(folder), str(rank)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_stands_ends_and_says_where(tmp_path: Path, rank: int) -> None:
    done = run(
        tmp_path,
        """
        with Watchdog(storage, assignment, rank=rank, limit_s=0.5) as watchdog:
            watchdog.follow(lambda: moves)
            stand_here_for_ever()
        """,
        rank,
    )
    assert done.returncode == EXIT_CODE, done.stderr
    told = Storage(tmp_path).read(layout.stacks(3, 2, rank))
    assert told is not None
    assert b"resources.rank_timeout_s" in told
    assert b"stand_here_for_ever" in told


def test_one_that_lets_no_other_thread_run_ends_too(tmp_path: Path) -> None:
    """PyDLL keeps the interpreter's lock, as code in C may that is at work for ever."""
    done = run(
        tmp_path,
        """
        with Watchdog(storage, assignment, rank=rank, limit_s=0.5) as watchdog:
            watchdog.follow(lambda: moves)
            until = time.time() + 0.4
            while time.time() < until:
                moves += 1
                time.sleep(0.01)
            ctypes.PyDLL(None).sleep(60)
        """,
    )
    assert done.returncode == 1
    assert "Timeout" in done.stderr


def test_a_rank_that_moves_is_left_alone_and_leaves_nothing(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        seen = set()
        with Watchdog(storage, assignment, rank=rank, limit_s=1.0) as watchdog:
            watchdog.follow(lambda: moves)
            until = time.time() + 3
            while time.time() < until:
                moves += 1
                time.sleep(0.01)
                seen.update(storage.names("progress"))
        print(seen, storage.names("progress"))
        """,
    )
    assert (done.returncode, done.stdout) == (0, "{'000003-2'} []\n"), done.stderr


def test_of_a_rank_that_does_not_say_that_it_moves_it_is_told_that_it_lives(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        seen = set()
        with Watchdog(storage, assignment, rank=rank, limit_s=0.5) as watchdog:
            watchdog.follow(lambda: None)
            while len(seen) < 4:  # nothing, and three different seconds: longer than the limit
                seen.add(storage.read("progress/000003-2"))
                time.sleep(0.05)
        """,
    )
    assert done.returncode == 0, done.stderr


def test_without_a_limit_nothing_is_watched(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        with Watchdog(storage, assignment, rank=rank, limit_s=None):
            time.sleep(0.5)
        """,
    )
    assert done.returncode == 0
    assert list(tmp_path.iterdir()) == []
