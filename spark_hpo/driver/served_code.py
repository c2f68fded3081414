"""The code that a registered model brings along: what it needs to answer where this package is not installed.

MLflow puts the folder of a model's code in front of everything else that a process can import. A part of this
package would hide the installed one there, so it lies one folder deeper, and a small module loads the model.
"""

from __future__ import annotations

import ast
import pickletools
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from spark_hpo.train.built_in import BUILT_IN_TASKS

LOADER = "spark_hpo_model"  # a module
PARTS = "spark_hpo_parts"  # a folder
_PACKAGE = "spark_hpo"
_LOADER_CODE = f'''"""Loads a model with the installed {_PACKAGE}, or else with the part of it here."""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("{_PACKAGE}") is None:
    sys.path.append(str(Path(__file__).parent / "{PARTS}"))

from {_PACKAGE}.train.predictor import _load_pyfunc
'''
_PUBLIC = "_MODULES"  # in __init__.py: the module of each public name


# A served model is not measured on a table, which takes readers and the training loop.
_NOT_SERVED = "spark_hpo.train.model_metrics"


def write_loader(source: Path, names: Iterable[str], code: Iterable[Path], target: Path) -> list[Path]:
    """Write the module `LOADER`, which has `_load_pyfunc`, and the folder `PARTS` beside it.

    Arguments as for `copy_needed`. All tasks that ship with the package are included, so that a process may
    load several models with the parts of the first one.

    Returns:
        The paths that MLflow has to store.
    """
    loader, parts = target / f"{LOADER}.py", target / PARTS
    loader.write_text(_LOADER_CODE, encoding="utf-8")
    tasks = (reference.partition(":")[0] for reference in BUILT_IN_TASKS.values())
    copy_needed(source, [*names, *tasks], code, parts)
    return [loader, parts]


def copy_needed(source: Path, names: Iterable[str], code: Iterable[Path], target: Path) -> Path:
    """Copy the modules of the package that are reached by import statements, also by those in functions.

    Args:
        source: the folder of the package.
        names: of modules of the package that are needed.
        code: files, or folders of files, whose imports are needed too.
        target: a folder; gets the package as a subfolder.

    Returns:
        The package's folder in `target`.
    """
    package = _Modules(source)
    files = [file for path in code for file in (path.rglob("*.py") if path.is_dir() else [path])]
    wanted = {*names, *(name for file in files for name in package.imports(file))}
    for file in package.reach(wanted):
        copy = target / _PACKAGE / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    return target / _PACKAGE


def possible_modules(data: bytes) -> set[str]:
    """Return the texts in a pickle that may name modules of the package, also of imports in functions."""
    texts = (argument for _, argument, _ in pickletools.genops(data) if isinstance(argument, str))
    return {word for text in texts for word in text.split() if word.startswith(f"{_PACKAGE}.")}


class _Modules:
    """The modules of the package, and what they import."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        root = ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))
        self._public: dict[str, str] = next(
            ast.literal_eval(node.value)
            for node in root.body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == _PUBLIC
        )

    def reach(self, names: Iterable[str]) -> list[Path]:
        """Return the files of these modules, of what they import, and of the packages around them."""
        found: dict[str, Path] = {}
        waiting = list(names)
        while waiting:
            name = waiting.pop()
            file = self._file(name)
            if file is None or name in found or name == _NOT_SERVED:
                continue
            found[name] = file
            parts = name.split(".")
            waiting += [".".join(parts[:end]) for end in range(1, len(parts))]
            waiting += self.imports(file)
        return sorted(found.values())

    def imports(self, file: Path) -> Iterator[str]:
        """Yield the names below the package that a file imports; some are of members, not of modules."""
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in _run(tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module
                for alias in node.names:
                    yield f"{node.module}.{alias.name}"
                    if node.module == _PACKAGE and alias.name in self._public:
                        yield f"{_PACKAGE}.{self._public[alias.name]}"

    def _file(self, name: str) -> Path | None:
        top, _, rest = name.partition(".")
        if top != _PACKAGE:
            return None
        path = self._folder.joinpath(*rest.split(".")) if rest else self._folder
        package = path / "__init__.py"
        module = path.with_suffix(".py")
        return package if package.is_file() else module if module.is_file() else None


def _run(node: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes but those below `if TYPE_CHECKING`."""
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _run(child)
