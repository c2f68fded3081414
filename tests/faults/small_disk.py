"""A small file system for a study, which a test can fill."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.faults.study_run import StudyRun


def can(*command: str) -> bool:
    """Return whether a command succeeds on this machine."""
    return (
        os.path.exists("/proc") and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )


def can_mount() -> bool:
    return can("unshare", "--mount", "true")


class SmallDisk:
    """A file system of `size_kib` that is mounted in a mount namespace of its own."""

    def __init__(self, folder: Path, size_kib: int) -> None:
        self.folder = folder
        folder.mkdir()
        script = f"mount -t tmpfs -o size={size_kib}k small {folder} && echo ready && exec sleep 1200"
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", script], stdout=subprocess.PIPE, text=True
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "ready\n"

    @property
    def host_path(self) -> Path:
        """The path of the disk outside of its namespace."""
        return Path(f"/proc/{self._holder.pid}/root{self.folder}")

    @property
    def command(self) -> tuple[str, ...]:
        """The prefix that runs a command inside the namespace."""
        enter = f'cd {self.folder.parent} && exec "$@"'
        return ("nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", "sh", "-c", enter, "sh")

    def fill(self) -> None:
        """Write until the disk is full."""
        with (self.host_path / "ballast").open("wb", buffering=0) as file:
            try:
                while file.write(b"x" * 1024):
                    pass
            except OSError:
                return

    def make_room(self) -> None:
        """Delete what `fill` has written."""
        (self.host_path / "ballast").unlink()

    def remount(self, options: str) -> None:
        subprocess.run([*self.command, "mount", "-o", f"remount,{options}", self.folder], check=True)

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait()

    def attach(self, study: StudyRun) -> StudyRun:
        """Run the drivers of a study in the namespace, because its directory is on this disk."""
        study.study_dir = self.host_path / "study"
        study.command = (*self.command, *study.command)
        return study
