"""The files of a sharded checkpoint: one part per rank, and a manifest that says which bytes are where.

They replace the file format of `torch.distributed.checkpoint`, whose metadata are a pickle.
"""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import math
import os
import secrets
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed._shard._utils import narrow_tensor_by_index
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from spark_hpo.errors import CheckpointError
from spark_hpo.study_dir import layout, manifest
from spark_hpo.study_dir.manifest import Kind, Manifest
from spark_hpo.study_dir.storage import Storage


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A block of a tensor, and the bytes of a part that hold it."""

    offsets: tuple[int, ...]  # in the whole tensor, by dimension
    sizes: tuple[int, ...]
    part: str
    start: int
    length: int
    sha256: str

    def __post_init__(self) -> None:  # JSON has lists
        object.__setattr__(self, "offsets", torch.Size(self.offsets))
        object.__setattr__(self, "sizes", torch.Size(self.sizes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """The manifest of a sharded checkpoint."""

    skeleton: Any  # the state without its tensors
    tensors: dict[str, TensorStorageMetadata]
    chunks: dict[MetadataIndex, Chunk]

    @classmethod
    def read(cls, storage: Storage, path: str) -> Content:
        found = manifest.read(storage, path)
        place = f"{storage.url}/{path}"
        if found is None:
            raise CheckpointError(f"{place}: the checkpoint does not exist; was the study directory cleaned?")
        if found.kind != Kind.SHARDED:
            raise CheckpointError(f"{place}: is a checkpoint of kind {found.kind!r}, not sharded")
        try:
            plain = base64.b64decode(found.content["plain"], validate=True)
            skeleton = torch.load(io.BytesIO(plain), map_location="cpu", weights_only=True)
            tensors: dict[str, TensorStorageMetadata] = {}
            chunks: dict[MetadataIndex, Chunk] = {}
            for key, described in found.content["tensors"].items():
                tensors[key], of_tensor = _tensor(described, found.parts)
                chunks |= {MetadataIndex(key, chunk.offsets): chunk for chunk in of_tensor}
        except Exception as exc:  # damaged bytes may raise anything
            raise CheckpointError(f"{place}: is damaged or is not a checkpoint: {exc}") from exc
        return cls(skeleton=skeleton, tensors=tensors, chunks=chunks)


def _tensor(described: Mapping[str, Any], parts: Sequence[str]) -> tuple[TensorStorageMetadata, list[Chunk]]:
    """Check what the manifest says about a tensor: the file may come from another user."""
    dtype = getattr(torch, described["dtype"])
    size = torch.Size(described["size"])
    chunks = [Chunk(**chunk) for chunk in described["chunks"]]
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{described['dtype']} is not a type of tensors")
    if any(math.prod(chunk.sizes) * dtype.itemsize != chunk.length for chunk in chunks):
        raise ValueError("a block of a tensor has a wrong length")
    if sum(chunk.length for chunk in chunks) != size.numel() * dtype.itemsize:
        raise ValueError("blocks of a tensor are missing")
    if any(chunk.part not in parts for chunk in chunks):
        raise ValueError("a block of a tensor is in an unknown part")
    blocks = [ChunkStorageMetadata(torch.Size(chunk.offsets), torch.Size(chunk.sizes)) for chunk in chunks]
    return TensorStorageMetadata(TensorProperties(dtype=dtype), size, blocks), chunks


class Writer(StorageWriter):
    """Writes the tensors of this rank into one part; rank 0 also writes the manifest."""

    def __init__(
        self, storage: Storage, path: str, skeleton: Any, rank: int, check: Callable[[], None]
    ) -> None:
        self._storage = storage
        self._path = path
        self._skeleton = skeleton
        self._check = check
        # A new name each time: the parts of the checkpoint that is replaced are needed until then.
        stem = path.rpartition("/")[2].removesuffix(layout.MANIFEST)
        self.part = f"{stem}.{secrets.token_hex(6)}-rank-{rank}.part"

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        results = []
        if plan.items:
            with self._storage.writing(manifest.part_path(self._path, self.part)) as file:
                for item in plan.items:
                    tensor = planner.resolve_data(item)
                    assert isinstance(tensor, Tensor), "the planner was given tensors only"
                    assert item.tensor_data is not None
                    data = _bytes_of(tensor.cpu()).numpy().data
                    block = item.tensor_data.chunk
                    chunk = Chunk(
                        offsets=block.offsets,
                        sizes=block.sizes,
                        part=self.part,
                        start=file.tell(),
                        length=len(data),
                        sha256=hashlib.sha256(data).hexdigest(),
                    )
                    file.write(data)
                    results.append(WriteResult(item.index, len(data), chunk))
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        chunks: dict[str, list[Chunk]] = {key: [] for key in metadata.state_dict_metadata}
        for result in itertools.chain.from_iterable(results):
            chunks[result.index.fqn].append(result.storage_data)
        tensors = {}
        for key, tensor in metadata.state_dict_metadata.items():
            assert isinstance(tensor, TensorStorageMetadata), "the planner was given tensors only"
            tensors[key] = {
                "dtype": str(tensor.properties.dtype).removeprefix("torch."),
                "size": list(tensor.size),
                "chunks": [asdict(chunk) for chunk in chunks[key]],
            }
        buffer = io.BytesIO()
        torch.save(self._skeleton, buffer)
        manifest.replace(
            self._storage,
            self._path,
            Manifest(
                kind=Kind.SHARDED,
                parts=tuple(sorted({chunk.part for of_tensor in chunks.values() for chunk in of_tensor})),
                content={"plain": base64.b64encode(buffer.getvalue()).decode(), "tensors": tensors},
            ),
        )

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        pass

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        pass

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        self._check()
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


class Reader(StorageReader):
    """Reads the blocks of the tensors that this rank needs."""

    def __init__(self, storage: Storage, path: str, content: Content) -> None:
        self._storage = storage
        self._path = path
        self._content = content

    def read_metadata(self) -> Metadata:
        return Metadata(dict(self._content.tensors))

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        by_chunk = defaultdict(list)
        for item in plan.items:
            by_chunk[self._content.chunks[item.storage_index]].append(item)
        for chunk, items in by_chunk.items():
            dtype = self._content.tensors[items[0].storage_index.fqn].properties.dtype
            whole = torch.frombuffer(bytearray(self._read(chunk)), dtype=torch.uint8)
            block = whole.view(dtype).reshape(chunk.sizes)
            for item in items:
                source = narrow_tensor_by_index(block, item.storage_offsets, item.lengths)
                target = planner.resolve_tensor(item).detach()
                target.copy_(source)
                planner.commit_tensor(item, target)
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def _read(self, chunk: Chunk) -> bytes:
        path = manifest.part_path(self._path, chunk.part)
        data = self._storage.read_range(path, chunk.start, chunk.start + chunk.length)
        if data is None:
            raise CheckpointError(f"{self._storage.url}/{path}: a part of the checkpoint does not exist")
        if hashlib.sha256(data).hexdigest() != chunk.sha256:
            raise CheckpointError(f"{self._storage.url}/{path}: a part of the checkpoint is damaged")
        return data

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        pass

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool) -> None:
        pass

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


def _bytes_of(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
