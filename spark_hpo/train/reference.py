"""Finds the user's code: a task class or a training function, by name, by file, or as an object."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Self

from spark_hpo.errors import ConfigError, closest, suggestion
from spark_hpo.train.built_in import BUILT_IN_TASKS, MOVED_TASKS
from spark_hpo.train.task import TrainTask
from spark_hpo.user_code.source_file import SourceFile

Trainable = type[TrainTask] | Callable[..., Any]


def find_trainable(reference: str | Trainable) -> Trainable:
    """Return the task class or training function of a reference.

    Args:
        reference: `tabular`, `image`, `module:name`, or the class or function itself.

    Raises:
        ConfigError: it cannot be imported, or is neither a task class nor a function.
    """
    if not isinstance(reference, str):
        return _checked(reference, repr(reference))
    current = MOVED_TASKS.get(reference, reference)
    module_name, separator, name = BUILT_IN_TASKS.get(current, current).partition(":")
    if not separator:
        raise ConfigError(
            "must be the name of a built-in task, module:Name or path/to/file.py:Name",
            key="task",
            value=reference,
            cure=suggestion(reference, BUILT_IN_TASKS),
        )
    try:
        module = importlib.import_module(module_name)
    except Exception as exc:  # the user's module can raise anything
        raise ConfigError(
            f"cannot be imported: {type(exc).__name__}: {exc}",
            key="task",
            value=reference,
            cure="Put the module on the Python path, or use path/to/file.py:Name",
        ) from exc
    return _checked(_member(module, name, reference), reference)


@dataclass(frozen=True, slots=True)
class Code:
    """A task or a training function, and how another process gets it."""

    trainable: Trainable
    reference: str  # module:name
    source: SourceFile | None = None  # to be sent to processes where it is not installed
    by_value: bool = False  # no other process can import it: it was defined in a notebook or a function

    @classmethod
    def of(cls, trainable: Trainable) -> Self:
        """Describe an object. The file of the function that it wraps, `wrapped_function`, is sent too.

        Raises:
            ConfigError: it is neither a task class nor a function of one argument.
        """
        name = getattr(trainable, "__qualname__", type(trainable).__name__)
        module = sys.modules.get(getattr(trainable, "__module__", None) or "__main__")
        reference = f"{module.__name__ if module else '__main__'}:{name}"
        trainable = _checked(trainable, reference)
        if module is None or module.__name__ == "__main__" or getattr(module, name, None) is not trainable:
            wrapped = getattr(trainable, "wrapped_function", None)
            home = sys.modules.get(getattr(wrapped, "__module__", None) or "")
            return cls(trainable, reference, source=_source_of(home), by_value=True)
        return cls(trainable, reference, source=_source_of(module))

    @classmethod
    def named(cls, reference: str) -> Self:
        """Import code by name, as `find_trainable` does."""
        return cls(find_trainable(reference), reference)

    @classmethod
    def in_file(cls, path: Path, name: str, *, value: str) -> Self:
        """Import a class or function from a file, as `find_trainable` does.

        Args:
            value: the setting `task`, for messages.
        """
        source = SourceFile.load(path, key="task", value=value)
        trainable = _checked(_member(sys.modules[source.module], name, value), value)
        return cls(trainable, f"{source.module}:{name}", source=source)

    @property
    def fingerprint(self) -> str | None:
        """A hash of what the code does; None where other processes import it, because it may be fixed there.

        It covers the methods of a class or the body of a function, but not the functions that they call.
        """
        if not self.by_value:
            return None
        members = vars(self.trainable) if isinstance(self.trainable, type) else {"": self.trainable}
        functions = {name: f for name, f in sorted(members.items()) if inspect.isfunction(f)}
        digest = hashlib.sha256()
        for name, function in functions.items():
            digest.update(f"{name}{_bytecode(function.__code__)}".encode())
        # The cache tag, because another Python compiles to other bytecode.
        return f"{sys.implementation.cache_tag}:{digest.hexdigest()[:16]}"

    def has_changed(self, before: str | None) -> bool:
        """Return True if the fingerprint differs from an earlier one; False if they cannot be compared."""
        now = self.fingerprint
        if before is None or now is None or before.split(":")[0] != now.split(":")[0]:
            return False
        return before != now

    @property
    def shipped(self) -> str | Trainable:
        """The form in which ranks receive the code: a name to import, or the object to be pickled."""
        return self.trainable if self.by_value else self.reference


def _bytecode(code: CodeType) -> str:
    """Return a function's bytecode as text that does not depend on its position or its comments."""
    constants = []
    for constant in code.co_consts:
        if isinstance(constant, CodeType):  # a nested function
            constants.append(_bytecode(constant))
        else:  # a set has no fixed order
            constants.append(
                repr(sorted(constant, key=repr) if isinstance(constant, frozenset) else constant)
            )
    return f"{code.co_code.hex()} {code.co_names} {constants}"


def is_task(trainable: Trainable) -> bool:
    """Return True for a task class, False for a training function."""
    return isinstance(trainable, type) and issubclass(trainable, TrainTask)


def _source_of(module: ModuleType | None) -> SourceFile | None:
    """Return the file of a module that other machines may lack."""
    if module is None or module.__name__ == "__main__":
        return None
    file = Path(getattr(module, "__file__", None) or "")
    # A package has to be installed on the executors, or be sent by the user.
    is_single = "." not in module.__name__ and file.suffix == ".py" and file.name != "__init__.py"
    is_sent = is_single and "site-packages" not in file.parts and file.is_file()
    return SourceFile(file, module.__name__) if is_sent else None


def _member(module: ModuleType, name: str, reference: str) -> Any:
    if not hasattr(module, name):
        guess = closest(name, dir(module))
        raise ConfigError(
            f"is not there: {module.__name__} has no {name!r}",
            key="task",
            value=reference,
            cure=f"Did you mean {guess!r}?" if guess else "",
        )
    return getattr(module, name)


def _checked(candidate: Any, reference: str) -> Trainable:
    if isinstance(candidate, type) and issubclass(candidate, TrainTask):
        missing: frozenset[str] = getattr(candidate, "__abstractmethods__", frozenset())
        if missing:
            raise ConfigError(f"lacks the methods {', '.join(sorted(missing))}", key="task", value=reference)
        return candidate
    if isinstance(candidate, type) or not callable(candidate):
        raise ConfigError(
            "must be a subclass of TrainTask or a function of one argument, train(ctx)",
            key="task",
            value=reference,
        )
    try:
        inspect.signature(candidate).bind(None)
    except (TypeError, ValueError) as exc:
        raise ConfigError(
            "must be a function of one argument, train(ctx)", key="task", value=reference
        ) from exc
    function: Trainable = candidate
    return function
