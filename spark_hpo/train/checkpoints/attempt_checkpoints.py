"""The checkpoints of one attempt at an assignment: the state it resumes from, and the states it saves."""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from spark_hpo.errors import CheckpointError, StorageError
from spark_hpo.study_dir import layout, manifest
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train.checkpoints import checkpoint, folder, state_tree
from spark_hpo.train.checkpoints.background import BackgroundWriter
from spark_hpo.train.rendezvous.world import World
from spark_hpo.trial import Assignment

logger = logging.getLogger(__name__)

_ASSIGNMENT = "assignment"  # the key, in a partial checkpoint, of the assignment that it belongs to
_SUFFIXES = (layout.FILE, layout.MANIFEST)


@dataclass(eq=False)
class AttemptCheckpoints:
    """Loads and saves the checkpoints of one attempt.

    Each attempt has its own file names, and saves nothing once the driver has started another attempt.
    Partial checkpoints are written in the background, from a copy of the state: the only one in memory.

    A trace:
        attempt 1: save_partial(a); save_partial(b); killed
        attempt 2: resume(load) -> load(b); save_partial(c); save(9, d) -> "checkpoints/.../000009-2.pt"

    A state whose value `function` is a Path is saved as a folder, with a manifest instead of the file.
    """

    storage: Storage
    assignment: Assignment
    world: World

    def __post_init__(self) -> None:
        assignment = self.assignment
        self.resumed_from: str | None = None  # the checkpoint of an earlier attempt
        self._partial: str | None = None  # that this attempt has saved
        self._writer = BackgroundWriter()
        self._copy = state_tree.HostCopy()
        self._folders = folder.FolderStore(
            self.storage, f"{assignment.rung}-{assignment.attempt}", assignment.checkpoint
        )
        self._downloads: Path | None = None  # the folder of local copies
        self._held: Path | None = None  # a copy of the folder that was reported last

    def resume(self, load: Callable[[Mapping[str, Any]], None]) -> bool:
        """Call `load` with the newest state that an earlier attempt saved. Every rank must call this.

        A damaged checkpoint is skipped in favour of an older one.

        Returns:
            False: no earlier attempt has saved a state.

        Raises:
            CheckpointError: from `load`, or because this rank does not see the file that rank 0 has read.
        """
        number, kind, state = self._newest() if self.world.rank == 0 else (0, 0, None)
        message = torch.tensor([number, kind], dtype=torch.int64, device=self.world.device)
        self.world.broadcast([message])
        number, kind = (int(value) for value in message)
        if number == 0:
            return False
        self.resumed_from = self._partial_of(number, _SUFFIXES[kind])
        if state is None:
            state = self.load(self.resumed_from)
        del state[_ASSIGNMENT]
        load(state)
        return True

    def load(self, path: str) -> dict[str, Any]:
        """Load a checkpoint. The local copy of a folder exists until `close`.

        Raises:
            CheckpointError: the checkpoint is missing or damaged.
            StorageError: the study directory cannot be read.
        """
        if self._downloads is None and manifest.is_manifest(path):
            self._downloads = Path(tempfile.mkdtemp(prefix="spark-hpo-"))
        return checkpoint.load(self.storage, path, folder=self._downloads)

    def hold(self, source: Path) -> Path:
        """Copy a folder that may change before it is saved. The copy exists until the next one, or `close`.

        Raises:
            TrialError: the folder holds what cannot be saved.
            StorageError: the local disk is full.
        """
        if self.world.rank != 0:
            return source
        before, self._held = self._held, folder.stage(source)
        if before is not None:
            shutil.rmtree(before, ignore_errors=True)
        return self._held

    def save_partial(self, state: Mapping[str, Any]) -> None:
        """Save a state within the assignment, in the background. It replaces the last one of this attempt.

        The state may change when this returns.

        Raises:
            TrialError: the state holds what cannot be saved.
            StorageError: the partial checkpoint before could not be saved.
        """
        if self.world.rank != 0:  # DDP keeps the parameters of all ranks equal
            return
        self._writer.wait()  # there is room for one copy
        state = {**state, _ASSIGNMENT: self._identity()}
        path = self._partial_of(self.assignment.attempt, _suffix(state))
        if self._partial is not None and self._partial != path:
            self._delete(self._partial)  # the function reports another kind of checkpoint now
        self._partial = path
        if isinstance(source := state.get("function"), Path):
            copied = folder.stage(source, link=source == self._held)
            self._writer.start(partial(self._save_staged, path, {**state, "function": copied}))
        else:
            state_tree.check_loadable(state)
            self._writer.start(partial(self._save, path, self._copy.of(state)))

    def save(self, resource: int, state: Mapping[str, Any]) -> str:
        """Save the state at the end of the assignment, and return its path in the study directory.

        Raises:
            TrialError: the state holds what cannot be saved.
            StorageError: this checkpoint or the partial one before could not be saved.
        """
        assignment = self.assignment
        path = layout.checkpoint(assignment.trial_id, resource, assignment.attempt, suffix=_suffix(state))
        if self.world.rank == 0:
            self._writer.wait()
            self._save(path, state)
            self.delete_partial()
        return path

    def wait(self) -> None:
        """Wait until the last partial checkpoint is durable.

        Raises:
            StorageError: it could not be saved.
        """
        self._writer.wait()

    def delete_partial(self) -> None:
        """Delete what this attempt has saved within the assignment."""
        self._writer.wait()
        if self._partial is not None:
            self._delete(self._partial)

    def close(self) -> None:
        """Wait for the background writer, and delete local copies. Idempotent."""
        self._writer.close()
        for copied in (self._downloads, self._held):
            if copied is not None:
                shutil.rmtree(copied, ignore_errors=True)

    def _delete(self, path: str) -> None:
        with contextlib.suppress(StorageError):  # a file that is left over does no harm
            self._folders.delete(path)

    def _partial_of(self, attempt: int, suffix: str) -> str:
        return layout.partial(self.assignment.trial_id, attempt, self.assignment.fold, suffix=suffix)

    def _save_staged(self, path: str, state: Mapping[str, Any]) -> None:
        try:
            self._save(path, state)
        finally:
            shutil.rmtree(state["function"], ignore_errors=True)

    def _save(self, path: str, state: Mapping[str, Any]) -> None:
        assignment = self.assignment
        fence = self.storage.read(layout.fence(assignment.trial_id, assignment.rung, assignment.fold))
        if fence is not None and int(fence) > assignment.attempt:
            raise StorageError(
                f"{self.storage.url}/{path}: not saved, because the driver has given attempt "
                f"{assignment.attempt} up and started attempt {int(fence)}"
            )
        if isinstance(source := state.get("function"), Path):
            rest = {key: value for key, value in state.items() if key != "function"}
            self._folders.save(path, source, rest)
        else:
            checkpoint.save(self.storage, path, state)

    def _newest(self) -> tuple[int, int, dict[str, Any] | None]:
        """Return number, kind and state of the last attempt that saved one; 0, 0 and None: there is none."""
        for number in range(self.assignment.attempt - 1, 0, -1):
            for kind, suffix in enumerate(_SUFFIXES):
                path = self._partial_of(number, suffix)
                if not self.storage.size(path):
                    continue
                try:
                    state = self.load(path)
                except CheckpointError as exc:
                    logger.warning("%s; trying an older checkpoint", exc)
                    continue
                if state.get(_ASSIGNMENT) == self._identity():
                    return number, kind, state
        return 0, 0, None

    def _identity(self) -> dict[str, int]:
        return {
            "rung": self.assignment.rung,
            "resource_from": self.assignment.resource_from,
            "resource_to": self.assignment.resource_to,
            "without": len(self.assignment.excluded_files),
        }


def _suffix(state: Mapping[str, Any]) -> str:
    return layout.MANIFEST if isinstance(state.get("function"), Path) else layout.FILE
