"""Files that commands write for their users."""

from __future__ import annotations

from pathlib import Path

from spark_hpo.errors import ConfigError


def write_file(path: str, data: bytes) -> str:
    """Write a file, its folder too, and return its full path.

    Raises:
        ConfigError: it cannot be written.
    """
    file = Path(path).absolute()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    except OSError as exc:
        raise ConfigError(f"--output {path}: {exc.strerror}; choose a place to write to") from exc
    return str(file)
