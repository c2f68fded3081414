"""Finding the user's code: `module:name`, or the object itself."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from spark_hpo.errors import ConfigError
from spark_hpo.suggest import closest, suggestion
from spark_hpo.train.task import TrainTask

SHIPPED = {
    "tabular": "spark_hpo.train.tabular:TabularTask",
    "image": "spark_hpo.train.image:ImageTask",
}
"""Short names of the tasks in this package."""

Trainable = type[TrainTask] | Callable[..., Any]


def find_trainable(reference: str | Trainable) -> Trainable:
    """The task class or training function of a reference.

    Args:
        reference: `tabular`, `image`, `module:name`, or the class or function itself.

    Raises:
        ConfigError: it cannot be imported, or is neither a task class nor a function.
    """
    if not isinstance(reference, str):
        return _checked(reference, repr(reference))
    module_name, separator, name = SHIPPED.get(reference, reference).partition(":")
    if not separator:
        raise ConfigError(
            f"task is {reference!r}; it must be the name of a shipped task, or module:name",
            cure=suggestion(reference, SHIPPED),
        )
    try:
        module = importlib.import_module(module_name)
    except Exception as exc:  # the module is the user's: anything may happen in it
        raise ConfigError(
            f"task is {reference!r}: importing {module_name} failed with {type(exc).__name__}: {exc}. "
            "The module must be on the Python path, or be named as path/to/file.py:Name"
        ) from exc
    if not hasattr(module, name):
        guess = closest(name, dir(module))
        cure = f"Did you mean {guess!r}?" if guess else ""
        raise ConfigError(f"task is {reference!r}: {module_name} has no {name!r}", cure=cure)
    return _checked(getattr(module, name), reference)


@dataclass(frozen=True, slots=True)
class Code:
    """A task or a training function, and how another process comes by it."""

    trainable: Trainable
    reference: str
    file: Path | None = None  # to be sent to where it is not installed
    by_value: bool = False  # no other process can import it: it was written in a notebook, or in a function

    @classmethod
    def of(cls, trainable: Trainable) -> Code:
        """Of the object itself. One that wraps a user's function has it as `carries`: its file goes along.

        Raises:
            ConfigError: it is neither a task class nor a function of one argument.
        """
        name = getattr(trainable, "__qualname__", type(trainable).__name__)
        module = sys.modules.get(getattr(trainable, "__module__", None) or "__main__")
        reference = f"{module.__name__ if module else '__main__'}:{name}"
        trainable = _checked(trainable, reference)
        if module is None or module.__name__ == "__main__" or getattr(module, name, None) is not trainable:
            carried = sys.modules.get(getattr(getattr(trainable, "carries", None), "__module__", None) or "")
            return cls(trainable, reference, file=_file_to_send(carried), by_value=True)
        return cls(trainable, reference, file=_file_to_send(module))

    @classmethod
    def named(cls, reference: str, file: Path | None = None) -> Code:
        """Of what has a name.

        Raises:
            ConfigError: as `find_trainable`.
        """
        return cls(find_trainable(reference), reference, file=file)

    @property
    def fingerprint(self) -> str | None:
        """Changes with what the code does; None where another process imports it: it may be mended there.

        Of a class its own methods count, of a function what is written in it; not what they call.
        """
        if not self.by_value:
            return None
        members = vars(self.trainable) if isinstance(self.trainable, type) else {"": self.trainable}
        functions = {name: f for name, f in sorted(members.items()) if inspect.isfunction(f)}
        digest = hashlib.sha256()
        for name, function in functions.items():
            digest.update(f"{name}{_bytecode(function.__code__)}".encode())
        # Another Python has other bytecode.
        return f"{sys.implementation.cache_tag}:{digest.hexdigest()[:16]}"

    def has_changed(self, before: str | None) -> bool:
        """Whether the fingerprint was another one. Not where that cannot be told."""
        now = self.fingerprint
        if before is None or now is None or before.split(":")[0] != now.split(":")[0]:
            return False
        return before != now

    @property
    def shipped(self) -> str | Trainable:
        """What ranks are given."""
        return self.trainable if self.by_value else self.reference


def _bytecode(code: CodeType) -> str:
    """What a function does, as text: the same wherever it stands, and whatever its comments say."""
    constants = []
    for constant in code.co_consts:
        if isinstance(constant, CodeType):  # a function within
            constants.append(_bytecode(constant))
        else:  # a set has no order of its own
            constants.append(
                repr(sorted(constant, key=repr) if isinstance(constant, frozenset) else constant)
            )
    return f"{code.co_code.hex()} {code.co_names} {constants}"


def is_task(trainable: Trainable) -> bool:
    """Whether it is a task class, rather than a function."""
    return isinstance(trainable, type) and issubclass(trainable, TrainTask)


def _file_to_send(module: ModuleType | None) -> Path | None:
    """The file of a module that other machines may lack."""
    if module is None or module.__name__ == "__main__":
        return None
    file = Path(getattr(module, "__file__", None) or "")
    # A package has to be installed on the executors, or be sent by the user.
    is_single = "." not in module.__name__ and file.suffix == ".py" and file.name != "__init__.py"
    is_sent = is_single and "site-packages" not in file.parts and file.is_file()
    return file if is_sent else None


def _checked(candidate: Any, reference: str) -> Trainable:
    if isinstance(candidate, type) and issubclass(candidate, TrainTask):
        missing: frozenset[str] = getattr(candidate, "__abstractmethods__", frozenset())
        if missing:
            raise ConfigError(f"task is {reference}: the class must define {', '.join(sorted(missing))}")
        return candidate
    if isinstance(candidate, type) or not callable(candidate):
        raise ConfigError(
            f"task is {reference}: it must be a subclass of TrainTask or a function of one argument"
        )
    try:
        inspect.signature(candidate).bind(None)
    except (TypeError, ValueError) as exc:
        raise ConfigError(f"task is {reference}: it must be a function of one argument, train(ctx)") from exc
    function: Trainable = candidate
    return function
