"""What the pages say is so: links lead somewhere, settings exist, code runs, commands call what there is."""

from __future__ import annotations

import importlib
import json
import re
import runpy
import shlex
import subprocess
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from spark_hpo.config import StudyConfig, build_config
from spark_hpo.search.registry import build_space
from spark_hpo.study_dir import definition
from tests.support.documents import PAGES, ROOT, Block, anchors, blocks, code, targets

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MAKEFILE = (ROOT / "Makefile").read_text()
ALL = [block for page in PAGES for block in blocks(page)]
# What a part of a study file is laid over to be a whole one.
STUDY = {
    "name": "example",
    "study_dir": "study",
    "task": "tabular",
    "data": {"path": "table"},
    "objective": {"metric": "loss", "mode": "min"},
    "space": {"x": {"type": "uniform", "low": 0, "high": 1}},
    "search": {"max_resource": 27},
    "budget": {"trials": 10},
}
CURE = (
    "write what can be tested, or say before it why that cannot be, `<!-- not run: ... -->`, or which test "
    "runs it, `<!-- run by tests/... -->`"
)


def of(*languages: str) -> list[Block]:
    return [block for block in ALL if block.language in languages and not block.is_excused]


# Links ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_links_of_a_page_lead_somewhere(page: str) -> None:
    for line, target in targets(page):
        if re.match(r"[a-z]+:", target):
            assert target.startswith(("https://", "http://localhost")), f"{page}:{line}: {target}"
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page}:{line}: there is no {target}"
        assert ROOT in file.resolve().parents, f"{page}:{line}: {target} is not in the repository"
        if anchor:
            known = anchors(str(file.resolve().relative_to(ROOT)))
            assert anchor in known, f"{page}:{line}: {path or page} has no heading #{anchor}, but {known}"


def test_linked_pages_are_tracked_by_git() -> None:
    kept = set(subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split())
    if not kept:
        pytest.skip("this is no checkout")
    for page in PAGES:
        for line, target in targets(page):
            path = target.partition("#")[0]
            if path and not re.match(r"[a-z]+:", path):
                name = str(((ROOT / page).parent / path).resolve().relative_to(ROOT))
                assert name in kept or any(file.startswith(f"{name}/") for file in kept), (
                    f"{page}:{line}: {name}"
                )


# Settings -------------------------------------------------------------------------------------------------


def fields_of(model: type[BaseModel]) -> dict[str, Any]:
    """Settings by name: a mapping for a section, None for what ends there."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        inner = [kind for kind in (field.annotation, *getattr(field.annotation, "__args__", ())) if kind]
        sections = [kind for kind in inner if isinstance(kind, type) and issubclass(kind, BaseModel)]
        found[name] = fields_of(sections[0]) if sections else None
    return found


FIELDS = fields_of(StudyConfig)


def unknown_setting(dotted: str) -> str | None:
    """The first part of a dotted name that no study file has."""
    known: Any = FIELDS
    for part in dotted.split("."):
        if known is None:
            return None  # within a mapping of the user's
        if part not in known:
            return part
        known = known[part]
    return None


def test_unknown_setting_is_detected() -> None:
    assert unknown_setting("budget.trials") is unknown_setting("spark.spark.master") is None
    assert unknown_setting("budget.trails") == "trails"
    assert unknown_setting("data.cache.gb") == "gb"


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])
def test_settings_on_a_page_exist(page: str) -> None:
    sections = "|".join(name for name, inner in FIELDS.items() if inner)
    for line, text in code(page):
        if found := re.match(rf"((?:{sections})(?:\.[a-z_]+)+)(?![\w/*(.])", text):
            part = unknown_setting(found[1])
            assert part is None, f"{page}:{line}: `{text}`: a study file has no {part!r} there"


def test_study_file_page_lists_all_sections_and_what_a_resumed_study_may_change() -> None:
    page = (ROOT / "docs/study-file.md").read_text()
    table = page.partition("\n## Sections\n")[2].partition("\n## ")[0]
    first_cells = re.findall(r"(?m)^\| (`.*?) \|", table)
    assert set(re.findall(r"`(\w+)`", " ".join(first_cells))) == FIELDS.keys()
    found = set()
    for item in re.findall(
        r"(?m)^- (.*)", page.partition("## Resume with other settings")[2].partition("\n## ")[0]
    ):
        section, colon, names = item.rpartition(": ")
        prefix = f"{section.strip('of `')}." if colon else ""
        found |= {prefix + name for name in re.findall(r"`(\w+)`", names)}
    free = {
        key if not key.startswith("budget.") else "budget" for key in (*definition._FREE, "budget.trials")
    }
    assert found == free - {"study_dir"}


# Blocks of code -------------------------------------------------------------------------------------------

LANGUAGES = ("python", "sh", "yaml", "toml", "json", "text", "properties", "dockerfile", "{eval-rst}")


@pytest.mark.parametrize("block", ALL, ids=str)
def test_code_blocks_are_tested_or_have_a_reason(block: Block) -> None:
    assert block.language in LANGUAGES, f"{block}: language {block.language!r}; it must be one of {LANGUAGES}"
    said = block.note.startswith(("<!-- not run", "<!-- run"))
    assert block.is_excused or not said, f"{block}: {block.note}: {CURE}"
    if block.run_by:
        file = ROOT / block.run_by.partition("::")[0]
        assert file.is_file(), f"{block}: there is no {block.run_by}"
        assert block.page in file.read_text(), f"{block}: {block.run_by} does not read {block.page}"


@pytest.mark.parametrize("block", of("python"), ids=str)
def test_python_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block.text, str(block), "exec"), {"__name__": "example"})


@pytest.mark.parametrize("block", of("yaml"), ids=str)
def test_yaml_is_a_part_of_a_study_file(block: Block) -> None:
    part = yaml.safe_load(block.text)
    if "apiVersion" in part:
        return  # for Kubernetes
    unknown = part.keys() - FIELDS
    assert not unknown, f"{block}: a study file has no {unknown}; {CURE}"
    record: dict[str, Any] = {**STUDY, **part}
    for key, value in part.items():
        before = STUDY.get(key)
        if key != "space" and isinstance(before, Mapping) and isinstance(value, Mapping):
            is_other_table = key == "data" and not value.keys().isdisjoint({"table", "query"})
            record[key] = value if is_other_table else {**before, **value}
    build_space(build_config(record, place=str(block)).space)


@pytest.mark.parametrize("block", of("toml", "json"), ids=str)
def test_toml_and_json_can_be_read(block: Block) -> None:
    {"toml": tomllib.loads, "json": json.loads}[block.language](block.text)


# Commands -------------------------------------------------------------------------------------------------


def commands(block: Block) -> Iterator[list[str]]:
    """The words of each command, without the variables that stand before it."""
    for line in block.text.replace("\\\n", " ").split("\n"):
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;<>")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word and set(word) <= set("&|;"):
                while words and re.match(r"[A-Z_]+=", words[0]):
                    words.pop(0)
                if words:
                    yield words
                words = []
            else:
                words.append(word)


@cache
def help_of(*command: str) -> str:
    """What a script of jobs/, or the installed `spark-hpo`, answers to `--help`."""
    program, *words = command
    out, code = StringIO(), None
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out):
        patch.setattr("sys.argv", [program, *words, "--help"])
        try:
            if program.endswith(".py"):
                runpy.run_path(str(ROOT / program), run_name="__main__")
            else:
                module, _, function = PROJECT["project"]["scripts"][program].partition(":")
                getattr(importlib.import_module(module), function)()
        except SystemExit as exc:
            code = exc.code
    assert not code, f"{' '.join(command)}: there is no such command"
    return out.getvalue()


def check_arguments(program: str, words: list[str]) -> None:
    """Options are in the help, settings in a study file."""
    # What comes first says whose help it is: a command, or `--config FILE`, which stands for one.
    first = 2 if words[:1] == ["--config"] else 1 if words and re.fullmatch("[a-z]+", words[0]) else 0
    within, words = words[:first], words[first:]
    assert not within or help_of(program, *within)
    for word in words:
        if word.startswith("--"):
            option = word.partition("=")[0]
            listed = help_of(program, *within)
            if re.match("[a-z]+$", words[0]):  # a command within a command: prepare csv
                listed += help_of(program, *within, words[0])
            known = re.search(rf"{option}(?![\w-])", listed)
            assert known, f"{' '.join([program, *within])} has no {option}"
        elif re.match(r"[a-z_]+(\.\w+)*=", word) and within[:1] not in (["add"], ["narrow"]):  # of the space
            assert unknown_setting(word.partition("=")[0]) is None, f"there is no setting {word}"


def check_make(words: list[str]) -> None:
    known = set(re.findall(r"[\w./-]+", " ".join(re.findall(r"(?m)^([\w./ -]+):(?!=)", MAKEFILE))))
    for word in words:
        assert "=" in word or word in known, f"make has no {word}"


def check_pip(words: list[str]) -> None:
    assert words[0] == "install"
    extras = PROJECT["project"]["optional-dependencies"]
    for word in words[1:]:
        if found := re.fullmatch(r"(?:.*/)?spark_hpo[^\[]*\[(.+)\]", word):
            assert set(found[1].split(",")) <= extras.keys(), f"spark_hpo has no extra {found[1]}"


def check_script(words: list[str]) -> None:
    """A script of jobs/ with its arguments, behind whatever options its launcher has."""
    at = next((i for i, word in enumerate(words) if word.endswith(".py") and word.startswith("jobs/")), None)
    assert at is not None, "it starts none of jobs/"
    assert (ROOT / words[at]).is_file(), f"there is no {words[at]}"
    check_arguments(words[at], words[at + 1 :])


def check_python(words: list[str]) -> None:
    if words[:1] == ["-m"] and words[1] == "pytest":
        for word in words[2:]:
            assert word.startswith("-") or (ROOT / word.partition("::")[0]).exists(), f"there is no {word}"
    elif words[:1] != ["-m"]:
        check_script(words)


def check_mlflow(words: list[str]) -> None:
    assert words[0] in ("ui", "server")


CHECKS: Mapping[str, Callable[[list[str]], None]] = {
    "make": check_make,
    "pip": check_pip,
    "spark-submit": check_script,
    "python": check_python,
    "mlflow": check_mlflow,
    "spark-hpo": lambda words: check_arguments("spark-hpo", words),
    **dict.fromkeys(("source", "cd", "export", "git"), lambda words: None),
}


def check(block: Block) -> None:
    for program, *words in commands(block):
        assert program in CHECKS, f"{block}: nobody looks at {program!r} here; {CURE}"
        try:
            CHECKS[program](words)
        except (AssertionError, LookupError) as exc:
            raise AssertionError(f"{block}: {shlex.join([program, *words])}: {exc}") from exc


@pytest.mark.parametrize("block", of("sh"), ids=str)
def test_commands_call_what_there_is(block: Block) -> None:
    check(block)


@pytest.mark.parametrize(
    "command",
    [
        "make tunes",
        "cd here && make tunes",
        "pip install 'spark_hpo[petastrom]'",
        "spark-submit jobs/tun.py --config study.yaml",
        "spark-submit jobs/tune.py --config study.yaml budget.trails=3",
        "JAVA_HOME=/opt/java spark-submit jobs/tune.py \\\n  --config study.yaml --resum must",
        "spark-submit jobs/prepare_data.py csv --input a.csv --lable price --output data/a",
        "python -m pytest tests/nowhere",
        "spark-submit jobs/prepare_data.py cvs --input a.csv --label price --output data/a",
        "spark-submit jobs/prepare_data.py nothing",
        "conda install spark_hpo",
    ],
)
def test_unknown_command_is_detected(command: str) -> None:
    with pytest.raises(AssertionError):
        check(Block("page.md", 1, "sh", command, ""))
