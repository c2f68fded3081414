"""A small disk of its own for a study, which a test can fill."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.faults.live import LiveStudy


def can(*command: str) -> bool:
    return (
        os.path.exists("/proc") and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )


def can_mount() -> bool:
    return can("unshare", "--mount", "true")


class SmallDisk:
    """A file system that only the processes of a mount namespace see. `size`: in KiB."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder = folder
        folder.mkdir()
        script = f"mount -t tmpfs -o size={size}k small {folder} && echo ready && exec sleep 1200"
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", script], stdout=subprocess.PIPE, text=True
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "ready\n"

    @property
    def seen_from_here(self) -> Path:
        return Path(f"/proc/{self._holder.pid}/root{self.folder}")

    @property
    def command(self) -> tuple[str, ...]:
        """Before a command that is to run where the disk is."""
        enter = f'cd {self.folder.parent} && exec "$@"'
        return ("nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", "sh", "-c", enter, "sh")

    def fill(self) -> None:
        with (self.seen_from_here / "ballast").open("wb", buffering=0) as file:
            try:
                while file.write(b"x" * 1024):
                    pass
            except OSError:
                return

    def make_room(self) -> None:
        (self.seen_from_here / "ballast").unlink()

    def remount(self, options: str) -> None:
        subprocess.run([*self.command, "mount", "-o", f"remount,{options}", self.folder], check=True)

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait()

    def hold(self, study: LiveStudy) -> LiveStudy:
        """A study whose directory is here, which its drivers therefore start in the namespace."""
        study.study_dir = self.seen_from_here / "study"
        study.command = (*self.command, *study.command)
        return study
