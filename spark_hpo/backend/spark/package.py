"""This package's own files, for machines where it is not installed."""

from __future__ import annotations

import zipfile
from pathlib import Path

_FOLDER = Path(__file__).parents[2]
NAME = _FOLDER.name
_SUFFIXES = (".py", ".typed", ".jinja", ".css", ".js", ".properties")


def write_zip(target: Path) -> Path:
    """Write the package as a zip file for `--py-files`. Equal files give equal bytes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not _FOLDER.is_dir():
        target.write_bytes(_FOLDER.parent.read_bytes())
        return target
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(_FOLDER.rglob("*")):
            if file.suffix in _SUFFIXES:
                info = zipfile.ZipInfo(str(file.relative_to(_FOLDER.parent)))
                info.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(info, file.read_bytes())
    return target


def as_folder(scratch: Path) -> Path:
    """The package as a folder: its own, or one in `scratch` if it was imported from a zip file."""
    if _FOLDER.is_dir():
        return _FOLDER
    with zipfile.ZipFile(_FOLDER.parent) as archive:
        archive.extractall(scratch, [name for name in archive.namelist() if name.startswith(f"{NAME}/")])
    return scratch / NAME
