"""The local backend: one process of this machine per rank."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import selectors
import signal
import socket
import sys
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import cloudpickle

from spark_hpo.backend.base import RankFunction, RanksByRung, SharedSlots, merge_reports
from spark_hpo.backend.local.machine import num_cores, num_out_of_memory_kills
from spark_hpo.backend.local.messages import Ended
from spark_hpo.backend.local.rank import Orders
from spark_hpo.backend.local.server_process import ServerProcess
from spark_hpo.backend.machine_gpus import GpuDealer, Hand, find_gpus, free_gpus
from spark_hpo.trial import Assignment, AssignmentKey, Failure, FailureKind, Part, Report

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class _Rank:
    connection: socket.socket
    answer: bytearray = field(default_factory=bytearray)
    exit_code: int | None = None  # None: it runs


@dataclass(eq=False)
class _Running:
    """An assignment whose ranks run."""

    assignment: Assignment
    hands: list[Hand]
    began: float
    kills_before: int  # for lack of memory, on this machine
    ranks: dict[int, _Rank] = field(default_factory=dict)  # by the number of the process
    failure: Failure | None = None  # a rank has ended without a report
    is_cancelled: bool = False


class LocalBackend:
    """Runs each rank in a new process of this machine, forked from a server that has torch loaded.

    Needs neither Spark nor Java. All methods must be called by one thread.
    """

    def __init__(
        self,
        run_rank: RankFunction,
        *,
        world_size: int | Mapping[int, int] = 1,
        gpus_per_rank: float = 0,
        preloaded: Sequence[str] = (),
        path: Sequence[str] = (),
        temporary: str = "",
    ) -> None:
        """
        Args:
            run_rank: runs one rank; is pickled.
            world_size: ranks of an assignment, or ranks by rung.
            gpus_per_rank: a whole number, or a fraction that lets assignments share a GPU.
            preloaded: names of the modules that the server imports before its first fork.
            path: folders from which ranks import modules, beside those of this process.
            temporary: a folder that is deleted when this process has ended, however it ends.

        Raises:
            CapacityError: the machine has too few GPUs.
        """
        self._ranks, self._gpus_per_rank = RanksByRung.of(world_size), gpus_per_rank
        names = find_gpus() if gpus_per_rank else []
        self._dealer = GpuDealer(names, gpus_per_rank, free_gpus(tuple(names)))
        fewest, most = self._ranks.fewest, self._ranks.most
        if gpus_per_rank:
            self._dealer.num_slots(most)  # raises if there are too few
            self.num_slots = self._dealer.num_slots(fewest)
        else:
            self.num_slots = max(num_cores(), most) // fewest
        threads = max(1, num_cores() // (self.num_slots * fewest))
        environment = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
        self._server_arguments = (tuple(preloaded), environment, temporary)
        self._program = tempfile.TemporaryFile()  # noqa: SIM115 - `close` closes it
        cloudpickle.dump(run_rank, self._program)
        self._program.flush()
        self._path = (*path, *sys.path)
        self._waiting: deque[Assignment] = deque()  # for GPUs that a cancelled assignment gives back
        self._running: dict[AssignmentKey, _Running] = {}
        self._by_process: dict[int, _Running] = {}
        self._reports: deque[Report] = deque()
        self._selector = selectors.DefaultSelector()
        self._waker, self._woken = socket.socketpair()
        self._waker.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._server: ServerProcess | None = None
        self._is_closed = False
        self._running_server()  # it imports while the driver prepares the first trial

    @property
    def shared_slots(self) -> SharedSlots:
        return SharedSlots(key="this machine", size=self._assignment_size, wake=self._wake)

    def submit(self, assignment: Assignment) -> None:
        self._waiting.append(assignment)
        self._start_waiting()

    def wait(self, timeout: float) -> Report | None:
        deadline = time.monotonic() + timeout
        while True:
            is_woken = False
            for key, _ in self._selector.select(max(0.0, deadline - time.monotonic())):
                if key.fileobj is self._woken:
                    self._woken.recv(2**10)
                    is_woken = True
                elif key.data is not None:
                    self._read_answer(key.data)
                else:
                    self._note_end(self._running_server().next_ended())
            self._start_waiting()
            if self._reports:
                return self._reports.popleft()
            if is_woken or time.monotonic() >= deadline:
                return None

    def cancel(self, trial_id: int, part: Part = None) -> None:
        key = trial_id, part
        self._waiting = deque(a for a in self._waiting if a.key != key)
        if (running := self._running.pop(key, None)) is not None:
            running.is_cancelled = True
            self._kill(running)

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        if self._server is not None:
            self._server.close()
        for number, running in self._by_process.items():
            running.ranks[number].connection.close()
        for running in set(self._by_process.values()):
            self._dealer.take_back(running.hands)
        for collection in (self._waiting, self._running, self._by_process, self._reports):
            collection.clear()
        self._selector.close()
        self._waker.close()
        self._woken.close()
        self._program.close()

    def _assignment_size(self) -> Fraction:
        """The size of a slot as a fraction of all cores, or of all GPUs."""
        if self._gpus_per_rank:
            return Fraction(1, self.num_slots)
        return Fraction(self._ranks.fewest, max(num_cores(), self._ranks.most))

    def _wake(self) -> None:
        # The pipe may be full, so the thread is awake already, or closed.
        with contextlib.suppress(OSError):
            self._waker.send(b".")

    def _running_server(self) -> ServerProcess:
        if self._server is None:
            self._server = ServerProcess(*self._server_arguments)
            self._selector.register(self._server.connection, selectors.EVENT_READ)
        return self._server

    def _start_waiting(self) -> None:
        while self._waiting:
            hands = self._dealer.deal(self._ranks.ranks(self._waiting[0].rung))
            if hands is None:
                return
            self._start(self._waiting.popleft(), hands)

    def _start(self, assignment: Assignment, hands: list[Hand]) -> None:
        running = _Running(assignment, hands, time.perf_counter(), num_out_of_memory_kills())
        self._running[assignment.key] = running
        for number, hand in enumerate(hands):
            ours, theirs = socket.socketpair()
            with theirs:
                process = self._running_server().fork(self._program.fileno(), theirs.fileno())
            orders = Orders(
                assignment=assignment,
                rank=number,
                world_size=len(hands),
                gpus=hand.gpus,
                environment=hand.environment,
                path=self._path,
            )
            ours.sendall(json.dumps(orders.to_json()).encode())
            ours.shutdown(socket.SHUT_WR)
            ours.setblocking(False)
            running.ranks[process] = rank = _Rank(ours)
            self._by_process[process] = running
            self._selector.register(ours, selectors.EVENT_READ, rank)

    def _read_answer(self, rank: _Rank) -> None:
        """Read what has arrived of a rank's report."""
        if rank.connection.fileno() < 0:
            return  # its end was in the same batch of events, and came first
        try:
            while piece := rank.connection.recv(2**16):
                rank.answer += piece
        except BlockingIOError:
            return
        except ConnectionError:  # it was killed before it had read its orders
            pass
        self._selector.unregister(rank.connection)
        rank.connection.close()

    def _note_end(self, ended: Ended | None) -> None:
        """Note that a process has ended; None: the server, and with it all processes."""
        if ended is None:
            assert self._server is not None, "its end was read"
            self._selector.unregister(self._server.connection)
            self._server.close()
            self._server = None
            logger.warning("the process that starts ranks has ended; starting another one")
        for number in list(self._by_process) if ended is None else [ended.number]:
            running = self._by_process.pop(number)
            rank = running.ranks[number]
            rank.exit_code = -signal.SIGKILL if ended is None else ended.status
            self._read_answer(rank)
            if not rank.answer and running.failure is None:
                running.failure = _failure(running, list(running.ranks).index(number), rank.exit_code)
                self._kill(running)  # its peers wait for it
            if all(rank.exit_code is not None for rank in running.ranks.values()):
                self._finish(running)

    def _kill(self, running: _Running) -> None:
        for number, rank in running.ranks.items():
            if rank.exit_code is None and self._server is not None:
                self._server.kill(number)

    def _finish(self, running: _Running) -> None:
        self._dealer.take_back(running.hands)
        if running.is_cancelled:
            return
        del self._running[running.assignment.key]
        if running.failure is not None:
            reports = [Report.failed(running.assignment, running.failure)]
        else:
            answers = (json.loads(rank.answer) for rank in running.ranks.values())
            reports = [Report.from_json(answer) for answer in answers]
        self._reports.append(merge_reports(reports, seconds=time.perf_counter() - running.began))


def _failure(running: _Running, rank: int, exit_code: int) -> Failure:
    """Describe the end of a rank that has sent no report."""
    if exit_code == -signal.SIGKILL and num_out_of_memory_kills() > running.kills_before:
        return Failure(
            kind=FailureKind.MEMORY,
            message=f"the system killed rank {rank} because the machine ran out of memory; use a smaller "
            "model or batch, or run fewer trials at once (resources.max_concurrent)",
        )
    try:
        how = f"was killed by {signal.Signals(-exit_code).name}"
    except ValueError:
        how = f"exited with code {exit_code}"
    return Failure(kind=FailureKind.INFRASTRUCTURE, message=f"the process of rank {rank} {how}")
