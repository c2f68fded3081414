"""A network namespace in which the address of the ranks can be removed."""

from __future__ import annotations

import subprocess
from pathlib import Path

_ADDRESS = "10.99.0.1"
_HOST = "ranks"


class Network:
    """A network namespace. Spark uses 127.0.0.1; ranks use another address, which a test can remove.

    Gloo uses the address of the host name, so the namespace has a host name of its own.
    """

    def __init__(self, folder: Path) -> None:
        hosts = folder / "hosts"
        hosts.write_text(f"127.0.0.1 localhost\n{_ADDRESS} {_HOST}\n")
        script = " && ".join(
            [
                "ip link set lo up",
                f"ip address add {_ADDRESS}/32 dev lo",
                f"hostname {_HOST}",
                f"mount --bind {hosts} /etc/hosts",
                "echo ready",
                "exec sleep 600",
            ]
        )
        self._holder = subprocess.Popen(
            ["unshare", "--net", "--uts", "--mount", "sh", "-c", script], stdout=subprocess.PIPE, text=True
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "ready\n"
        self._folder = folder

    @property
    def command(self) -> tuple[str, ...]:
        """The prefix that runs a command inside the namespace."""
        enter = f'cd {self._folder} && exec "$@"'
        return (
            "nsenter",
            f"--target={self._holder.pid}",
            "--net",
            "--uts",
            "--mount",
            "sh",
            "-c",
            enter,
            "sh",
        )

    def cut(self) -> None:
        """Remove the address of the ranks."""
        self._ip("delete")

    def restore(self) -> None:
        self._ip("add")

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait()

    def _ip(self, verb: str) -> None:
        subprocess.run([*self.command, "ip", "address", verb, f"{_ADDRESS}/32", "dev", "lo"], check=True)
