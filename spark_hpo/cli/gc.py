"""`spark-hpo gc`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from spark_hpo.cli.command import Command, json_option
from spark_hpo.cli.console import say, say_json
from spark_hpo.data.cache.cache_folder import CacheFolder, CacheSettings
from spark_hpo.driver.cleanup import clean_snapshots, clean_study
from spark_hpo.errors import ConfigError, LeaseError
from spark_hpo.study_dir.definition import Definition
from spark_hpo.study_dir.driver_settings import Settings
from spark_hpo.study_dir.storage import Storage

_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0, "w": 7 * 86_400.0}


def _age(text: str) -> float:
    """`30d` in seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(s|min|h|d|w)", text)
    if match is None:
        raise click.BadParameter(f"{text!r} is not a valid age; use 12h, 30d or 4w (s, min, h, d, w)")
    return float(match[1]) * _UNITS[match[2]]


@click.command(
    "gc",
    cls=Command,
    examples=[
        "spark-hpo gc studies/quickstart --dry-run",
        "spark-hpo gc studies/* --older-than 30d",
        "spark-hpo gc --cache --older-than 7d",
        "spark-hpo gc --snapshots studies/.snapshots",
    ],
)
@click.argument("studies", metavar="[DIR]...", nargs=-1)
@click.option(
    "--older-than",
    type=_age,
    metavar="AGE",
    help="Of studies that ended at least this long ago, keep only the best model (and the Pareto front's); "
    "they cannot resume with a larger budget then. Of the cache, delete only what was unused for this long.",
)
@click.option("--cache", is_flag=True, help="Also delete decoded tables on this machine that are not in use.")
@click.option(
    "--snapshots",
    metavar="URL",
    help="Also delete the snapshots in this folder that no study needs. gc always looks at the folders where "
    "the studies DIR have theirs.",
)
@click.option("--dry-run", is_flag=True, help="Delete nothing, and print what would be deleted.")
@json_option
def command(
    studies: tuple[str, ...],
    older_than: float | None,
    cache: bool,
    snapshots: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Delete files that studies no longer need.

    In each study directory DIR: checkpoints of trials that are out, and leftovers of killed attempts and
    drivers. What a resumed study needs stays, the best model always does, and a study that is running is
    skipped. Beside them: snapshots of tables whose studies have all been deleted, or have ended
    (--older-than).
    """
    if not studies and not cache and snapshots is None:
        raise click.UsageError("pass a study directory, --snapshots or --cache")
    # `studies/*` also names what MLflow keeps there. A single name that is not a study is a mistake.
    is_study = {study: len(studies) == 1 or _is_study(study) for study in studies}
    there = [Storage(study) for study, is_one in is_study.items() if is_one]
    freed = [
        _Freed(place=study, skipped=f"{study}: skipped, because it is not a study")
        for study, is_one in is_study.items()
        if not is_one
    ]
    freed += [_clean(storage, older_than, dry_run=dry_run) for storage in there]
    found = clean_snapshots(there, snapshots, ended_for_s=older_than, dry_run=dry_run)
    freed += [_Freed(place=url, files=one.files, bytes=one.bytes) for url, one in found.items()]
    if cache:
        freed += [_clean_cache(folder, older_than or 0.0, dry_run=dry_run) for folder in _caches(there)]
    if as_json:
        total = sum(one.bytes for one in freed)
        say_json({"dry_run": dry_run, "bytes": total, "freed": [asdict(one) for one in freed]})
        return
    for one in freed:
        how_much = f"{one.files} files, {_size(one.bytes)}"
        say(one.skipped or f"{one.place}: {'would free' if dry_run else 'freed'} {how_much}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Freed:
    place: str  # a study directory, or a cache
    files: int = 0  # entries, of a cache
    bytes: int = 0
    skipped: str | None = None  # reason, if nothing was deleted


def _is_study(study: str) -> bool:
    return not Path(study).is_file() and Definition.load(Storage(study)) is not None


def _clean(storage: Storage, older_than_s: float | None, *, dry_run: bool) -> _Freed:
    try:
        cleaned = clean_study(storage, ended_for_s=older_than_s, dry_run=dry_run)
    except LeaseError as exc:
        return _Freed(place=storage.url, skipped=str(exc))
    return _Freed(place=storage.url, files=cleaned.files, bytes=cleaned.bytes)


def _clean_cache(folder: str | None, older_than_s: float, *, dry_run: bool) -> _Freed:
    try:
        cache = CacheFolder(CacheSettings(folder=folder))
    except OSError as exc:
        raise ConfigError(f"the node cache cannot be read: {exc}") from exc
    sizes = cache.evict_unused(older_than_s, dry_run=dry_run)
    return _Freed(place=str(cache.path), files=len(sizes), bytes=sum(sizes))


def _caches(studies: Sequence[Storage]) -> list[str | None]:
    """The cache folders in the settings of the studies; None is the default folder."""
    folders: list[str | None] = [None]
    for study in studies:
        settings = Settings.load(study)
        data = settings.config.get("data") if settings else None
        folders.append(((data or {}).get("cache") or {}).get("folder"))
    return list(dict.fromkeys(folders))


def _size(count: int) -> str:
    """`1.2 MB`."""
    amount = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.4g} {unit}"
        amount /= 1000
    return f"{amount:.4g} TB"
