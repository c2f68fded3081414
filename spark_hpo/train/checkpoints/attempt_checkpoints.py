"""The checkpoints of one attempt at an assignment: the state it resumes from, and the states it saves."""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from spark_hpo.errors import CheckpointError, StorageError
from spark_hpo.study_dir import layout, manifest
from spark_hpo.study_dir.manifest import Kind
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train.checkpoints import checkpoint, folder, state_tree
from spark_hpo.train.checkpoints.background import BackgroundWriter
from spark_hpo.train.rendezvous.world import World
from spark_hpo.trial import Assignment

logger = logging.getLogger(__name__)

_ASSIGNMENT = "assignment"  # the key, in a partial checkpoint, of the assignment that it belongs to
_KINDS = tuple(Kind)
_GROUP_TIMEOUT = timedelta(minutes=10)

Like = Callable[[str], Tensor | None]
"""Returns a tensor that is sharded as the tensor with a key of a checkpoint should be; None: not sharded."""


@dataclass(eq=False)
class AttemptCheckpoints:
    """Loads and saves the checkpoints of one attempt.

    Each attempt has its own file names, and saves nothing once the driver has started another attempt.
    Partial checkpoints are written in the background, from a copy of the state: the only one in memory.

    A trace:
        attempt 1: save_partial(a); save_partial(b); killed
        attempt 2: resume(load) -> load(b); save_partial(c); save(9, d) -> "checkpoints/.../000009-2.pt"

    A state whose value `function` is a Path is saved as a folder, and one with sharded tensors by all ranks
    together. Both have a manifest instead of the file.
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
        self._background_group: dist.ProcessGroup | None = None
        self._held: Path | None = None  # a copy of the folder that was reported last

    def resume(self, load: Callable[[Mapping[str, Any]], None], like: Like | None = None) -> bool:
        """Call `load` with the newest state that an earlier attempt saved. Every rank must call this.

        A damaged checkpoint is skipped in favour of an older one.

        Args:
            like: as for `load`.

        Returns:
            False: no earlier attempt has saved a state.

        Raises:
            CheckpointError: from `load`, or because this rank does not see the file that rank 0 has read.
        """
        number = self.assignment.attempt
        while True:
            number, kind, state = self._newest(number) if self.world.rank == 0 else (0, Kind.FILE, None)
            message = torch.tensor([number, _KINDS.index(kind)], device=self.world.device)
            self.world.broadcast([message])
            number, kind = int(message[0]), _KINDS[int(message[1])]
            if number == 0:
                return False
            path = self._partial_of(number, kind)
            try:
                state = self.load(path, like) if state is None else state
                break
            except CheckpointError as exc:
                if kind is not Kind.SHARDED or like is None:  # the other ranks have not failed
                    raise
                logger.warning("%s; trying an older checkpoint", exc)
        self.resumed_from = path
        del state[_ASSIGNMENT]
        load(state)
        return True

    def load(self, path: str, like: Like | None = None) -> dict[str, Any]:
        """Load a checkpoint. The local copy of a folder exists until `close`.

        Args:
            like: if it is given, every rank must call this, and each loads its own part of a sharded
                checkpoint: see `sharded.load`. None: the whole state.

        Raises:
            CheckpointError: the checkpoint is missing or damaged.
            StorageError: the study directory cannot be read.
        """
        if like is not None and checkpoint.kind_of(self.storage, path) is Kind.SHARDED:
            from spark_hpo.train.checkpoints import sharded

            state: dict[str, Any] = {}
            sharded.load(self.storage, path, state, self.world, like=like)
            return state
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
        state = {**state, _ASSIGNMENT: self._identity()}
        kind = _kind(state)
        if not self._takes_part(kind):
            return
        self._writer.wait()  # there is room for one copy
        path = self._partial_of(self.assignment.attempt, kind)
        if self._partial is not None and self._partial != path and self.world.rank == 0:
            self._delete(self._partial)  # the function reports another kind of checkpoint now
        self._partial = path
        if kind is Kind.FOLDER:
            source = state["function"]
            state["function"] = folder.stage(source, link=source == self._held)
            self._writer.start(partial(self._save_staged, path, state))
        elif kind is Kind.SHARDED:
            self._writer.start(self._sharded(path, state, self._copy.of, group=self._group()))
        else:
            state_tree.check_loadable(state)
            self._writer.start(partial(self._save, path, self._copy.of(state)))

    def save(self, resource: int, state: Mapping[str, Any]) -> str:
        """Save the state at the end of the assignment, and return its path in the study directory.

        Raises:
            TrialError: the state holds what cannot be saved.
            StorageError: this checkpoint or the partial one before could not be saved.
        """
        assignment, kind = self.assignment, _kind(state)
        path = layout.checkpoint(
            assignment.trial_id, resource, assignment.attempt, assignment.part, suffix=_suffix(kind)
        )
        if self._takes_part(kind):
            self._writer.wait()
            if kind is Kind.SHARDED:
                self._sharded(path, state, dict)()
            else:
                self._save(path, state)
            self.delete_partial()
        return path

    def _takes_part(self, kind: Kind) -> bool:
        return self.world.rank == 0 or kind is Kind.SHARDED  # DDP keeps the parameters of all ranks equal

    @property
    def is_saving(self) -> bool:
        """True if a partial checkpoint is being written."""
        return self._writer.is_writing

    def wait(self) -> None:
        """Wait until the last partial checkpoint is durable.

        Raises:
            StorageError: it could not be saved.
        """
        self._writer.wait()

    def delete_partial(self) -> None:
        """Delete what this attempt has saved within the assignment."""
        self._writer.wait()
        if self._partial is not None and self.world.rank == 0:
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

    def _partial_of(self, attempt: int, kind: Kind) -> str:
        return layout.partial(self.assignment.trial_id, attempt, self.assignment.part, suffix=_suffix(kind))

    def _group(self) -> dist.ProcessGroup | None:
        """A group for the background: its messages must not mix with those of the training."""
        if self._background_group is None and self.world.is_distributed:
            self._background_group = dist.new_group(backend="gloo", timeout=_GROUP_TIMEOUT)
        return self._background_group

    def _sharded(
        self, path: str, state: Mapping[str, Any], copy: Callable[..., Any], **options: Any
    ) -> Callable[[], None]:
        from spark_hpo.train.checkpoints import sharded

        snapshot, check = sharded.take(state, copy), partial(self._check_fence, path)
        return partial(sharded.write, self.storage, path, snapshot, self.world, check=check, **options)

    def _save_staged(self, path: str, state: Mapping[str, Any]) -> None:
        try:
            self._save(path, state)
        finally:
            shutil.rmtree(state["function"], ignore_errors=True)

    def _save(self, path: str, state: Mapping[str, Any]) -> None:
        self._check_fence(path)
        if isinstance(source := state.get("function"), Path):
            rest = {key: value for key, value in state.items() if key != "function"}
            self._folders.save(path, source, rest)
        else:
            checkpoint.save(self.storage, path, state)

    def _check_fence(self, path: str) -> None:
        assignment = self.assignment
        fence = self.storage.read(layout.fence(assignment.trial_id, assignment.rung, assignment.part))
        if fence is not None and int(fence) > assignment.attempt:
            raise StorageError(
                f"{self.storage.url}/{path}: not saved, because the driver has given attempt "
                f"{assignment.attempt} up and started attempt {int(fence)}"
            )

    def _newest(self, before: int) -> tuple[int, Kind, dict[str, Any] | None]:
        """Return number, kind and state of the last attempt before this one that saved a checkpoint.

        The number is 0 if there is none. The state is None if it is sharded: all ranks load it together.
        """
        for number in range(before - 1, 0, -1):
            for path in (self._partial_of(number, kind) for kind in (Kind.FILE, Kind.FOLDER)):
                if not self.storage.size(path):
                    continue
                try:
                    kind = checkpoint.kind_of(self.storage, path)
                    state = self._described(path) if kind is Kind.SHARDED else self.load(path)
                except CheckpointError as exc:
                    logger.warning("%s; trying an older checkpoint", exc)
                    continue
                if state.get(_ASSIGNMENT) == self._identity():
                    return number, kind, None if kind is Kind.SHARDED else state
        return 0, Kind.FILE, None

    def _described(self, path: str) -> dict[str, Any]:
        from spark_hpo.train.checkpoints.sharded_files import Content

        skeleton: dict[str, Any] = Content.read(self.storage, path).skeleton
        return skeleton

    def _identity(self) -> dict[str, int]:
        return {
            "rung": self.assignment.rung,
            "resource_from": self.assignment.resource_from,
            "resource_to": self.assignment.resource_to,
            "without": len(self.assignment.excluded_files),
        }


def _kind(state: Mapping[str, Any]) -> Kind:
    if isinstance(state.get("function"), Path):
        return Kind.FOLDER
    return Kind.SHARDED if state_tree.is_sharded(state) else Kind.FILE


def _suffix(kind: Kind) -> str:
    return layout.FILE if kind is Kind.FILE else layout.MANIFEST
