"""Walks states: trees of tensors and plain values (numbers, text, bytes) in mappings and lists."""

from __future__ import annotations

import codecs
import contextlib
import copy
import io
import mmap
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from spark_hpo.errors import CheckpointError, TrialError

# What complex numbers and bytes are pickled with. Later versions of torch than 2.4 allow both by default.
torch.serialization.add_safe_globals([complex, codecs.encode])

# Types that torch always loads with `weights_only`. A value of another type is tried out on its own.
_PLAIN = {type(None), bool, int, float, str, bytes}
_TENSORS = {torch.Tensor, nn.Parameter}  # without attributes, which may be any object
_MAPPINGS = {dict, OrderedDict}
_SEQUENCES = {list, tuple}

_HUGE_PAGE_BYTES = 2 << 20

_TENSOR = "spark_hpo.tensor"  # marks the place of a tensor in a skeleton: (_TENSOR, key)


def check_loadable(state: Any) -> None:
    """Check that torch loads the state without running foreign code.

    Serializing and loading the whole state would answer this too, but needs two more copies of it.

    Raises:
        TrialError: the state holds an object that is neither a tensor nor a plain value.
    """
    _check_loadable(state, set())


def is_sharded(state: Mapping[str, Any]) -> bool:
    """True if the state has tensors that are sharded over the ranks (DTensor)."""
    module = sys.modules.get("torch.distributed.tensor")  # imported by whoever shards: it takes seconds
    kind = getattr(module, "DTensor", None)  # torch 2.4 has the module without the class
    return kind is not None and any(isinstance(one, kind) for one in split(state)[1].values())


def split(state: Mapping[str, Any]) -> tuple[Any, dict[str, Tensor]]:
    """Return the state without its tensors, and the tensors by their place in it.

    A trace: split({"model": {"weight": w}, "epoch": 3})
        -> {"model": {"weight": ("spark_hpo.tensor", "model/weight")}, "epoch": 3}, {"model/weight": w}
    """
    tensors: dict[str, Tensor] = {}

    def take(key: str, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if key in tensors:
            raise TrialError(f"a checkpoint has two tensors at {key!r}: rename a key that contains a slash")
        tensors[key] = value.detach()
        return _TENSOR, key

    return _mapped(state, take), tensors


def join(skeleton: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return the state that `split` has taken apart.

    Raises:
        CheckpointError: a tensor is missing.
    """

    def put(_: str, value: Any) -> Any:
        if (key := _key_of(value)) is None:
            return value
        if key not in tensors:
            raise CheckpointError(f"the tensor {key!r} is missing")
        return tensors[key]

    return _mapped(skeleton, put)


def _mapped(value: Any, change: Callable[[str, Any], Any], key: str = "") -> Any:
    """Return a tree of the same mappings and sequences, with every leaf replaced by `change(key, leaf)`."""

    def below(name: Any, item: Any) -> Any:
        return _mapped(item, change, f"{key}/{name}" if key else str(name))

    if isinstance(value, Mapping):
        result: Any = OrderedDict() if isinstance(value, OrderedDict) else {}
        result.update((name, below(name, item)) for name, item in value.items())
        if isinstance(value, OrderedDict):
            vars(result).update(vars(value))  # the versions of the modules, in a state_dict
        return result
    if type(value) in _SEQUENCES and _key_of(value) is None:
        return type(value)(below(index, item) for index, item in enumerate(value))
    return change(key, value)


def _key_of(value: Any) -> str | None:
    is_mark = type(value) is tuple and len(value) == 2 and type(value[0]) is str and value[0] == _TENSOR
    return str(value[1]) if is_mark else None


class HostCopy:
    """A copy of a state in host memory, whose buffers are used again for the next copy.

    Tensors that share memory, such as tied weights, share it in the copy too.
    """

    def __init__(self) -> None:
        self._buffers: list[torch.UntypedStorage] = []

    def of(self, state: Mapping[str, Any]) -> Any:
        """Return a copy of the state. The copy before is overwritten."""
        before, self._buffers = self._buffers, []
        copies: dict[int, torch.UntypedStorage] = {}  # by the address of the original

        def copied(_: str, value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value if type(value) in _PLAIN else copy.deepcopy(value)
            value = value.detach()
            if value.layout != torch.strided or value.is_quantized or type(value) not in _TENSORS:
                return value.cpu() if value.device.type != "cpu" else copy.deepcopy(value)
            storage = value.untyped_storage()
            address = storage.data_ptr() if storage.nbytes() else id(storage)
            if address not in copies:
                at = len(self._buffers)
                buffer = before[at] if at < len(before) else None
                if buffer is None or buffer.nbytes() != storage.nbytes():
                    buffer = _buffer(storage.nbytes())
                buffer.copy_(storage)
                self._buffers.append(buffer)
                copies[address] = buffer
            result = torch.empty(0, dtype=value.dtype)
            return result.set_(copies[address], value.storage_offset(), value.shape, value.stride())

        return _mapped(state, copied)


def _buffer(size: int) -> torch.UntypedStorage:
    if size < _HUGE_PAGE_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(size, dtype=torch.uint8).untyped_storage()
    # Mapping small pages one by one takes several times as long as copying.
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # the kernel has no huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8).untyped_storage()


def _check_loadable(value: Any, visited: set[int]) -> None:
    kind = type(value)
    if kind in _PLAIN or (kind in _TENSORS and not vars(value)) or id(value) in visited:
        return
    visited.add(id(value))
    if kind in _MAPPINGS:
        _check_loadable(getattr(value, "__dict__", None), visited)  # an OrderedDict may have attributes
        for key, item in value.items():
            _check_loadable(key, visited)
            _check_loadable(item, visited)
    elif kind in _SEQUENCES:
        for item in value:
            _check_loadable(item, visited)
    else:
        _check_loads_back(value)


def _check_loads_back(value: Any) -> None:
    try:
        buffer = io.BytesIO()
        torch.save(value, buffer)
        buffer.seek(0)
        torch.load(buffer, map_location="cpu", weights_only=True)
    except Exception as exc:  # an object may define how it is pickled, and raise anything
        raise TrialError(
            f"a checkpoint cannot hold a {type(value).__module__}.{type(value).__qualname__}, only tensors "
            "and plain values (numbers, text, bytes, lists, mappings): turn NumPy arrays into tensors, and "
            "other objects into a state_dict"
        ) from exc
