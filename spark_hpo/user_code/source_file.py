"""Imports the user's files of code, each under a module name of its own."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import shutil
import sys
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any, Self

from spark_hpo.errors import ConfigError

_DIGEST_LENGTH = 12
_DIGEST = re.compile(rf"_[0-9a-f]{{{_DIGEST_LENGTH}}}(?=:)")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A Python file of the user's, and the name by which every process imports it.

    A task file is imported under a name of its own, made of its path and its content: two files called
    `my_task.py` are two modules, in this process and on executors, and an edited file is a new module.
    """

    path: Path
    module: str

    @classmethod
    def load(cls, path: Path, *, key: str, value: str) -> Self:
        """Import a file.

        Args:
            path: of the file.
            key: the setting that names it, for messages.
            value: of that setting.

        Raises:
            ConfigError: the file does not exist, or fails when it is imported.
        """
        path = path.resolve()
        content = read_code(path, key=key, value=value)
        digest = hashlib.sha256(f"{path}\n".encode() + content).hexdigest()
        source = cls(path, f"{path.stem}_{digest[:_DIGEST_LENGTH]}")
        if source.module not in sys.modules:
            try:
                source._import()
            except Exception as exc:  # the user's code can raise anything
                raise ConfigError(
                    f"cannot be imported: {type(exc).__name__}: {exc}", key=key, value=value
                ) from exc
        return source

    def _import(self) -> None:
        folder = str(self.path.parent)
        if sys.path[0] != folder:
            sys.path.insert(0, folder)  # the file may import modules beside it
        loader = _Compiler(self.module, str(self.path))
        spec = importlib.util.spec_from_file_location(self.module, self.path, loader=loader)
        assert spec is not None, "the name of the file ends in .py"
        module = importlib.util.module_from_spec(spec)
        sys.modules[self.module] = module  # before it runs: dataclasses look their module up
        try:
            loader.exec_module(module)
        except BaseException:  # a module that failed must not count as imported
            del sys.modules[self.module]
            raise

    def copy_to(self, folder: Path) -> Path:
        """Copy the file to a folder, under the name by which it is imported."""
        return Path(shutil.copyfile(self.path, folder / f"{self.module}.py"))


class _Compiler(SourceFileLoader):
    """Compiles the file each time: cached bytecode may be of another content of the same size and time."""

    def path_stats(self, path: str) -> Any:
        raise OSError("no bytecode is read or written without the time of the file")


def read_code(path: Path, *, key: str, value: str) -> bytes:
    """Read a file of code without importing it; arguments and errors as for `SourceFile.load`."""
    try:
        return path.read_bytes()
    except OSError as exc:
        raise ConfigError(f"names a file that does not exist: {path}", key=key, value=value) from exc


def without_digest(reference: str) -> str:
    """Return `module:name` as it would be without the path and the content of the module's file.

    A trace: without_digest("decode_0123456789ab:pixels") -> "decode:pixels"
    """
    return _DIGEST.sub("", reference)
