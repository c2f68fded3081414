"""The rendezvous store: works like TCPStore for clients with the key, whatever other clients send."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pickle
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import DistNetworkError, DistStoreError, TCPStore

from spark_hpo.backend.base import BarrierContext
from spark_hpo.errors import BackendError
from spark_hpo.train.rendezvous import frames, store_server
from spark_hpo.train.rendezvous.store import StoreClient
from spark_hpo.train.rendezvous.store_server import StoreServer
from spark_hpo.train.rendezvous.world import Rendezvous, RendezvousServer, connect, init_group

KEY = b"k" * frames.KEY_BYTES
SOON = timedelta(seconds=0.05)
LATER = timedelta(seconds=20)


@pytest.fixture
def server() -> Iterator[StoreServer]:
    server = StoreServer("127.0.0.1", KEY, keep_s=0.1)
    yield server
    server.close()


@pytest.fixture
def client(server: StoreServer) -> Iterator[Callable[..., StoreClient]]:
    with contextlib.ExitStack() as stack:

        def connect(group: str = "attempt", timeout: timedelta = LATER, key: bytes = KEY) -> StoreClient:
            client = StoreClient("127.0.0.1", server.port, key, group=group, timeout=timeout)
            stack.callback(client.close)
            return client

        yield connect


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class TestStore:
    def test_store_answers_like_tcp_store(self, client: Any) -> None:
        ours = client()
        theirs = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=LATER)
        empty = theirs.num_keys()  # TCPStore counts an internal key
        random_ = random.Random(7)

        def both(name: str, *arguments: Any) -> None:
            assert getattr(ours, name)(*arguments) == getattr(theirs, name)(*arguments), (name, arguments)

        for _ in range(500):
            key, value = random_.choice("abcd"), random_.choice(["", "x", "y\n", "ä"])
            match random_.choice(["set", "get", "check", "compare_set", "delete_key", "num_keys", "add"]):
                case "set":
                    both("set", key, value)
                case "get" if theirs.check([key]):
                    both("get", key)
                case "check":
                    both("check", [key, "a"])
                case "compare_set":
                    both("compare_set", key, random_.choice(["", "x"]), value)
                case "delete_key":
                    both("delete_key", key)
                case "num_keys":
                    assert ours.num_keys() == theirs.num_keys() - empty
                case "add":
                    both("add", "count", random_.randint(-9, 9))

    def test_get_returns_the_bytes_that_were_set(self, client: Any) -> None:
        every = bytes(range(256))
        client().set("key", every)
        assert client().get("key") == every

    def test_get_waits_for_a_missing_key(self, client: Any) -> None:
        waiting, setting = client(), client()
        found: list[bytes] = []
        thread = threading.Thread(target=lambda: found.append(waiting.get("key")))
        thread.start()
        setting.set("other", "1")
        setting.set("key", "2")
        thread.join(20)
        assert found == [b"2"]
        waiting.wait(["key", "other"], SOON)

    def test_wait_ends_in_time_and_names_the_key(self, client: Any) -> None:
        with pytest.raises(DistStoreError, match=r"rank/1 .* 0\.05 s"):
            client().wait(["rank/1"], SOON)
        with pytest.raises(DistStoreError, match="rank/1"):
            client(timeout=SOON).get("rank/1")

    def test_clone_does_not_wait_behind_its_original(self, client: Any) -> None:
        original = client()
        clone = original.clone()
        thread = threading.Thread(target=lambda: original.wait(["key"], LATER))
        thread.start()
        clone.set("key", "1")
        thread.join(20)
        assert not thread.is_alive()

    def test_add_is_exact_for_concurrent_ranks(self, client: Any) -> None:
        def add(store: StoreClient) -> None:
            for _ in range(50):
                store.add("sum", 1)
                store.set("other", "1")
            store.add("done", 1)

        adding, waiting = [client() for _ in range(6)], [client() for _ in range(4)]
        threads = [threading.Thread(target=add, args=(store,)) for store in adding]
        threads += [threading.Thread(target=store.wait, args=(["end"], LATER)) for store in waiting]
        for thread in threads:
            thread.start()
        for thread in threads[: len(adding)]:
            thread.join(20)
        counting = client()
        counting.set("end", "")
        assert counting.add("sum", 0) == 300
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()

    def test_interrupted_request_closes_the_connection(
        self, client: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = client()

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("spark_hpo.train.rendezvous.store._read", interrupt)
            with pytest.raises(KeyboardInterrupt):
                store.add("key", 1)
        with pytest.raises(DistNetworkError):
            store.num_keys()

    def test_group_sees_its_own_keys_only(self, client: Any) -> None:
        first, second = client("attempt 1"), client("attempt 2")
        first.set("key", "1")
        assert not second.check(["key"])
        assert second.num_keys() == 0

    def test_group_is_deleted_after_a_delay(self, server: StoreServer, client: Any) -> None:
        first = client()
        first.set("key", "1")
        first.close()
        assert client().get("key") == b"1", "the peer connects after the first client has left"
        for number in range(20):
            other = client(f"{number}")
            other.set("key", "1" * 1000)
            other.close()
        eventually(lambda: len(server._groups) == 1)


class TestStrangers:
    def test_server_refuses_a_client_without_the_key(self, client: Any) -> None:
        client().set("key", "1")
        with pytest.raises(DistNetworkError, match="refuses"):
            client(key=b"x" * frames.KEY_BYTES)

    def test_client_refuses_a_server_without_the_key(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as impostor:

            def pretend() -> None:
                connection, _ = impostor.accept()
                connection.sendall(frames.pack({"nonce": "n"}))
                connection.recv(4096)
                connection.sendall(frames.pack({"proof": "0" * 64}))

            threading.Thread(target=pretend, daemon=True).start()
            port = impostor.getsockname()[1]
            with pytest.raises(DistNetworkError, match="does not know"):
                StoreClient("127.0.0.1", port, KEY, group="g", timeout=LATER)

    def test_proof_is_valid_for_one_connection_only(self, server: StoreServer) -> None:
        def greet(connection: socket.socket, answer: bytes | None = None) -> tuple[bytes, bytes]:
            theirs = json.loads(connection.recv(4096)[4:])["nonce"]
            proof = frames.proof(KEY, "client", theirs, "mine", "g")
            answer = answer or frames.pack({"nonce": "mine", "group": "g", "proof": proof})
            connection.sendall(answer)
            return answer, connection.recv(4096)

        with socket.create_connection(("127.0.0.1", server.port)) as honest:
            heard, reply = greet(honest)
            assert b"proof" in reply
        with socket.create_connection(("127.0.0.1", server.port)) as eavesdropper:
            assert b"error" in greet(eavesdropper, heard)[1]

    def test_server_listens_on_one_address(self, server: StoreServer) -> None:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", server.port), timeout=5)

    def test_server_names_an_address_that_is_not_local(self) -> None:
        with pytest.raises(BackendError, match=r"192\.0\.2\.1"):
            RendezvousServer("192.0.2.1", timeout_s=1.0)

    def test_server_takes_the_first_free_port_of_a_range(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            server = RendezvousServer("127.0.0.1", timeout_s=1.0, ports=range(port, port + 20))
            server.close()
        assert port < server.address.port < port + 20

    def test_server_names_a_range_whose_ports_are_all_taken(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(BackendError, match=rf"resources\.ports .*: {port}-{port}") as caught:
                RendezvousServer("127.0.0.1", timeout_s=1.0, ports=range(port, port + 1))
        assert "one port per study" in str(caught.value)

    def test_server_disconnects_a_silent_client(
        self, server: StoreServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(store_server, "_GREETING_LIMIT_S", 0.1)
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as silent:
            assert silent.recv(4096), "the challenge"
            with contextlib.suppress(ConnectionResetError):
                assert silent.recv(1) == b""

    def test_silent_clients_do_not_keep_ranks_out(self, server: StoreServer, client: Any) -> None:
        with contextlib.ExitStack() as stack:
            for _ in range(store_server._MAX_UNAUTHENTICATED + 50):
                stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            client().set("key", "1")
            assert len(server._unauthenticated) <= store_server._MAX_UNAUTHENTICATED

    @pytest.mark.parametrize(
        "sent",
        [
            struct.pack("!I", 2**31),  # oversized
            struct.pack("!I", frames.MAX_FRAME + 1),
            struct.pack("!I", 5) + b"[1,2]",
            struct.pack("!I", 2) + b"\xff\xfe",
            frames.pack({"op": "set", "key": 7, "value": "eA=="}),
            frames.pack({"op": "get", "key": "key", "timeout_s": "long"}),
            frames.pack({"op": "wait", "keys": [["key"]], "timeout_s": 1.0}),
            frames.pack({"op": "add", "key": "key", "amount": 2**63}),
            frames.pack({"op": "add", "key": "text", "amount": 1}),
            frames.pack({"op": "eval", "key": "key"}),
            struct.pack("!I", 4000) + b"[" * 4000,
            struct.pack("!I", 12) + b'{"op": NaN }',
        ],
    )
    def test_server_disconnects_a_client_that_breaks_the_protocol(
        self, server: StoreServer, client: Any, sent: bytes
    ) -> None:
        witness, wrong = client(), client()
        witness.set("text", "no number")
        wrong._socket.sendall(sent)
        with contextlib.suppress(ConnectionResetError):
            assert wrong._socket.recv(1) == b""
        with pytest.raises(DistNetworkError, match="lost the connection"):
            wrong.check(["key"])
        assert witness.num_keys() == 1

    def test_set_refuses_a_value_that_is_too_large(self, client: Any) -> None:
        with pytest.raises(DistNetworkError, match="bytes do not fit"):
            client().set("key", "x" * frames.MAX_FRAME)

    def test_server_limits_the_keys_of_a_group(self, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(store_server, "_MAX_KEYS", 3)
        ours = client()
        for number in range(3):
            ours.set(str(number), "")
        ours.set("0", "again")
        with pytest.raises(DistNetworkError):
            ours.set("3", "")


def test_rendezvous_pickles_its_key_and_does_not_show_it() -> None:
    rendezvous = Rendezvous(host="h", timeout_s=1.0)
    assert pickle.loads(pickle.dumps(rendezvous)) == rendezvous
    assert rendezvous != Rendezvous(host="h", timeout_s=1.0), "each has its own key"
    assert "key" not in repr(rendezvous)


def test_close_releases_the_port_and_closes_connections() -> None:
    before = set(threading.enumerate())
    server = StoreServer("127.0.0.1", KEY, keep_s=0.1)
    started = set(threading.enumerate()) - before
    client = StoreClient("127.0.0.1", server.port, KEY, group="g", timeout=LATER)
    server.close()
    server.close()
    with pytest.raises(DistNetworkError):
        client.num_keys()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port), timeout=5)
    assert "spark_hpo-store" in {thread.name for thread in started}
    assert not any(thread.is_alive() for thread in started if thread.name == "spark_hpo-store")


def test_process_exits_while_its_store_is_open() -> None:
    program = (
        "from datetime import timedelta; from spark_hpo.train.rendezvous.store_server import StoreServer;"
        "from spark_hpo.train.rendezvous.store import StoreClient;"
        "server = StoreServer('127.0.0.1', b'k', keep_s=9.0);"
        "client = StoreClient('127.0.0.1', server.port, b'k', group='g', timeout=timedelta(seconds=9));"
        "client.set('key', '1')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


# Real ranks ----------------------------------------------------------------------------------------------

RANK = """
import json, pickle, sys, threading
import torch
from spark_hpo.train.rendezvous.world import init_group

torch.set_num_threads(1)
rank, size = int(sys.argv[1]), int(sys.argv[2])
rendezvous = pickle.loads(bytes.fromhex(sys.stdin.readline()))
for number, _ in enumerate(sys.stdin):
    key, device = f"study/{number}", torch.device("cpu")
    with init_group(rendezvous, key=key, rank=rank, size=size, device=device) as world:
        print(json.dumps(world.sum([1.0, rank])), flush=True)
"""


class Ranks:
    """Processes that form a group on demand."""

    def __init__(self, rendezvous: Rendezvous, size: int = 2) -> None:
        self.size = size
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-c", RANK, str(rank), str(size)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
            )
            for rank in range(size)
        ]
        for process in self._processes:
            self._send(process, pickle.dumps(rendezvous).hex())

    def all_reduce(self) -> list[list[float]]:
        """Return what each rank has after an all_reduce."""
        for process in self._processes:
            self._send(process, "all_reduce")
        return [json.loads(process.stdout.readline()) for process in self._processes if process.stdout]

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()

    @staticmethod
    def _send(process: subprocess.Popen[str], text: str) -> None:
        assert process.stdin
        process.stdin.write(f"{text}\n")
        process.stdin.flush()


@pytest.fixture(scope="module")
def store() -> Iterator[RendezvousServer]:
    server = RendezvousServer("127.0.0.1", timeout_s=60.0)
    yield server
    server.close()


@pytest.fixture(scope="module")
def ranks(store: RendezvousServer) -> Iterator[Ranks]:
    ranks = Ranks(store.address)
    yield ranks
    ranks.close()


class TestRanks:
    def test_ranks_reduce_in_two_processes(self, ranks: Ranks) -> None:
        for _ in range(3):
            assert ranks.all_reduce() == [[2.0, 1.0]] * 2

    def test_ranks_reduce_while_strangers_attack_the_store(
        self, store: RendezvousServer, ranks: Ranks
    ) -> None:
        """A port scan, oversized and truncated frames, and 100,000 random frames."""
        address = ("127.0.0.1", store.address.port)
        random_ = random.Random(11)
        noise = [_noise(random_) for _ in range(1000)]
        done = threading.Event()
        sent = 0

        def attack() -> None:
            nonlocal sent
            while sent < 100_000:
                with contextlib.suppress(ConnectionError), socket.create_connection(address) as connection:
                    # A port scan sends nothing; the others send 100 frames before they are disconnected.
                    burst = random_.choices(noise, k=100) if random_.random() < 0.8 else []
                    sent += len(burst)
                    connection.sendall(b"".join(burst))
            done.set()

        attacker = threading.Thread(target=attack, daemon=True)
        attacker.start()
        groups = 0
        while not done.is_set() or groups < 3:
            assert ranks.all_reduce() == [[2.0, 1.0]] * 2
            groups += 1
        attacker.join()
        assert sent >= 100_000
        eventually(lambda: not store._store._unauthenticated)
        assert set(store._store._groups) <= {f"study/{n}" for n in range(groups + 100)}


def test_random_frames_have_no_effect_outside_the_protocol(server: StoreServer) -> None:
    """Passes 100,000 frames to a group directly, because a socket is closed after the first wrong one."""
    random_ = random.Random(13)
    operations = ["set", "get", "wait", "check", "add", "compare_set", "delete_key", "num_keys", "exec", 7]
    fields = ["key", "keys", "value", "amount", "expected", "desired", "timeout_s"]
    values = ["key", "MQ==", "?", "", 1, -1, 2**80, 0.0, -1.0, None, True, [], ["key"], [1], {}, {"key": []}]

    async def send() -> int:
        group, answered = store_server._Group(), 0
        for _ in range(100_000):
            if random_.random() < 0.3:
                data = random_.randbytes(random_.randrange(40))
            else:
                record = {name: random_.choice(values) for name in random_.sample(fields, 3)}
                data = json.dumps({"op": random_.choice(operations), **record}).encode()
            try:
                reply = await server._answer(group, frames.parse(data))
            except frames.WrongFrame:
                continue
            assert reply.keys() <= {"result", "error"}
            answered += 1
        assert group.values.keys() <= {"key", "MQ==", "?", ""}
        return answered

    assert 0 < asyncio.run(send()) < 100_000


def _noise(random_: random.Random) -> bytes:
    """Return a frame that breaks the protocol, or a part of one."""
    body = random_.choice(
        [
            random_.randbytes(random_.randrange(64)),
            json.dumps({"nonce": "n", "group": "g", "proof": "0" * 64}).encode(),
            json.dumps({"nonce": "n", "group": "g", "proof": ["\ud800"]}).encode(),
            json.dumps({"op": "set", "key": "0", "value": "eA=="}).encode(),
            b"[" * 500,
        ]
    )
    frame = struct.pack("!I", random_.choice([len(body), len(body) + 9, 2**32 - 1, 0])) + body
    return frame[: random_.choice([len(frame), random_.randrange(len(frame) + 1)])]


def test_every_rank_learns_that_rank_0_has_no_free_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        rendezvous = Rendezvous(host=None, timeout_s=20.0, ports=(port,))
        barrier, texts = threading.Barrier(2), ["", ""]
        failures: list[str] = []

        def run(rank: int) -> None:
            def gather(text: str) -> list[str]:
                texts[rank] = text
                barrier.wait(20)
                return texts

            context = BarrierContext(host="127.0.0.1", gather=gather)
            try:
                with connect(rendezvous, context, key="attempt", rank=rank, size=2):
                    pass
            except DistStoreError as exc:
                failures.append(str(exc))

        threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert len(failures) == 2
    assert all(f"resources.ports are taken: {port}-{port}" in failure for failure in failures)


def test_store_of_rank_0_refuses_another_key() -> None:
    """Both ranks are threads, because nothing is computed here."""
    barrier, texts = threading.Barrier(2), ["", ""]
    rendezvous = Rendezvous(host=None, timeout_s=20.0)
    seen: list[bytes] = []

    def run(rank: int) -> None:
        def gather(text: str) -> list[str]:
            texts[rank] = text
            barrier.wait(20)
            return texts

        with connect(
            rendezvous, BarrierContext(host="127.0.0.1", gather=gather), key="attempt", rank=rank, size=2
        ) as store:
            store.set(f"{rank}", "here")
            seen.append(store.get(f"{1 - rank}"))
            if rank == 1:
                port = int(texts[0].split()[1])
                with pytest.raises(DistNetworkError):
                    StoreClient("127.0.0.1", port, KEY, group="attempt", timeout=LATER)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert seen == [b"here", b"here"]


def test_init_group_times_out_with_an_error_of_torch() -> None:
    server = RendezvousServer("127.0.0.1", timeout_s=0.3)
    with (
        pytest.raises(torch.distributed.DistError, match="no other rank"),
        init_group(server.address, key="k", rank=0, size=2, device=torch.device("cpu")),
    ):
        pass
    server.close()
