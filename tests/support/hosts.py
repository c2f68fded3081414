"""Several hosts on one machine: Linux namespaces whose networks are joined by a bridge.

Nothing of them outlives the tests: their first processes die with the test run, even if it is killed, and the
kernel then removes namespaces, interfaces, filters and all other processes of the hosts.
"""

from __future__ import annotations

import contextlib
import ctypes
import signal
import subprocess
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import psutil

_NETWORK = "10.99.7"
_HOST_NAMESPACES = ("--net", "--uts", "--ipc", "--mount", "--pid")
_UNSHARE = ("unshare", *_HOST_NAMESPACES, "--fork", "--kill-child", "--mount-proc")
_PR_SET_PDEATHSIG = 1
_LIMIT_S = 20.0


def missing_parts() -> str:
    """Return what this machine lacks for `Hosts`; "" if it lacks nothing."""
    checks = {
        "permission to create namespaces (root) and iproute2": "ip link add br0 type bridge",
        "nftables": "nft add table inet filter",
    }
    for part, command in checks.items():
        try:
            done = subprocess.run(
                [*_UNSHARE, *command.split()], capture_output=True, check=False, timeout=_LIMIT_S
            )
        except OSError:
            return "Linux with util-linux"
        if done.returncode:
            return part
    return ""


class Host:
    """A host with a name, an address, process ids, temporary files and a /dev/shm of its own.

    It shares all other files with this machine, as hosts share a network disk. As on Debian, its own name
    stands for 127.0.1.1 on the host itself.
    """

    def __init__(
        self, name: str, number: int, *, address: str, private_folder: Path, hosts_file: str
    ) -> None:
        """
        Args:
            private_folder: shows each host its own files.
            hosts_file: the lines with the names of the other hosts.
        """
        self.name = name
        self.address = address
        self.port = f"port{number}"  # of the bridge
        files = private_folder.with_name(f"{private_folder.name}-{name}")
        files.mkdir()
        names = files.with_name(f"{files.name}.hosts")
        names.write_text(f"127.0.0.1 localhost\n127.0.1.1 {name}\n{hosts_file}")
        self._holder, self.init = _hold(
            "ip link set lo up",
            f"hostname {name}",
            f"mount --bind {names} /etc/hosts",
            "mount --bind /dev/null /etc/resolv.conf",  # no name server answers
            f"mount --bind {files} {private_folder}",
            "mount -t tmpfs memory /dev/shm",
        )

    def command(self, folder: Path) -> tuple[str, ...]:
        """Return the prefix that runs a command on this host, in a folder."""
        enter = ("nsenter", f"--target={self.init}", *_HOST_NAMESPACES)
        return (*enter, "sh", "-c", f'cd {folder} && exec "$@"', "sh")

    def run(self, *words: str, stdin: str = "") -> str:
        """Run a command on this host, and return what it prints."""
        done = subprocess.run(
            [*self.command(Path("/")), *words], input=stdin, capture_output=True, text=True, timeout=_LIMIT_S
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def allow_ports(self, *ports: str) -> None:
        """Drop connections that other hosts open to this one, except those to the given ranges of ports."""
        rules = f"""
            flush ruleset
            table inet filter {{
              chain input {{
                type filter hook input priority 0; policy accept;
                iifname "lo" accept
                tcp dport {{ {", ".join(ports)} }} accept
                tcp flags & (syn | ack) == syn counter drop
              }}
            }}"""
        self.run("nft", "-f", "-", stdin=rules)

    def choose_ports_from(self, first: int, last: int) -> None:
        """Give the kernel of this host the ports that it chooses from."""
        self.run("sh", "-c", f"echo {first} {last} > /proc/sys/net/ipv4/ip_local_port_range")

    def refused_connections(self) -> int:
        """Return the number of packets that the filter of `allow_ports` has dropped."""
        line = next(line for line in self.run("nft", "list", "ruleset").splitlines() if "counter" in line)
        return int(line.split("packets")[1].split()[0])

    def kill(self) -> None:
        """Kill all processes of the host at once; its network goes with them."""
        self._holder.kill()
        self._holder.wait(_LIMIT_S)


class Hosts:
    """Hosts that are joined by a bridge, which is in a network namespace of its own."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        """
        Args:
            folder: gets the files of the hosts. Each host has files of its own in `folder / "private"`.
        """
        self.private_folder = folder / "private"
        self.private_folder.mkdir()
        addresses = {name: f"{_NETWORK}.{number}" for number, name in enumerate(names, start=1)}
        self._switch, self._switch_pid = _hold("ip link add br0 type bridge", "ip link set br0 up")
        self._hosts: dict[str, Host] = {}
        for number, (name, address) in enumerate(addresses.items(), start=1):
            others = "".join(f"{a} {other}\n" for other, a in addresses.items() if other != name)
            host = Host(name, number, address=address, private_folder=self.private_folder, hosts_file=others)
            self._hosts[name] = host
            self._bridge(f"ip link add {host.port} type veth peer name eth0 netns {host.init}")
            self._bridge(f"ip link set {host.port} master br0")
            host.run("ip", "address", "add", f"{address}/24", "dev", "eth0")
            host.run("ip", "link", "set", "eth0", "up")
            self.join(host)

    def __getitem__(self, name: str) -> Host:
        return self._hosts[name]

    def cut(self, host: Host) -> None:
        """Pull the cable of a host: packets from and to it are dropped, and nobody is told."""
        self._bridge(f"ip link set {host.port} down")

    def join(self, host: Host) -> None:
        """Plug the cable in."""
        self._bridge(f"ip link set {host.port} up")

    def vanish(self, host: Host) -> None:
        """Cut a host off, and kill all its processes: its peers receive no last packets."""
        self.cut(host)
        host.kill()

    def close(self) -> None:
        """Remove all hosts and their processes. Idempotent."""
        for host in self._hosts.values():
            host.kill()
        self._switch.kill()
        self._switch.wait(_LIMIT_S)

    def _bridge(self, command: str) -> None:
        words = ["nsenter", f"--target={self._switch_pid}", "--net", *command.split()]
        subprocess.run(words, check=True, timeout=_LIMIT_S)


@contextlib.contextmanager
def hosts_of(folder: Path, names: Collection[str]) -> Iterator[Hosts]:
    """Create hosts, and remove them at the end."""
    hosts = Hosts(folder, list(names))
    try:
        yield hosts
    finally:
        hosts.close()


def _hold(*commands: str) -> tuple[subprocess.Popen[str], int]:
    """Run commands in new namespaces, and keep these. Return who holds them, and the first process inside."""
    # The shell stays, because the first process inside must wait for those that have lost their parents.
    script = " && ".join([*commands, "echo ready", "{ sleep infinity & wait; }"])
    holder = subprocess.Popen(
        [*_UNSHARE, "sh", "-c", script], stdout=subprocess.PIPE, text=True, preexec_fn=_die_with_the_tests
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "ready\n"
    [init] = psutil.Process(holder.pid).children()
    return holder, init.pid


def _die_with_the_tests() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
