"""Nothing foreign is run by reading it: what can unpickle or evaluate is listed here, with its reason."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted([*(ROOT / "spark_hpo").rglob("*.py"), *(ROOT / "jobs").glob("*.py")])

# Modules whose loading functions run what they read.
DANGEROUS_MODULES = {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve", "cloudpickle"}
DANGEROUS_CALLS = {"eval", "exec", "compile", "__import__"}
HARMLESS_CALLS = {"register_pickle_by_value"}

ALLOWED = {
    ("spark_hpo/testing/readers.py", "import pickle"): "writes a pickle that a reader must not load",
    (
        "spark_hpo/backend/spark/probe.py",
        "import cloudpickle",
    ): "sends a module of ours; loads nothing",
    (
        "spark_hpo/backend/local/backend.py",
        "import cloudpickle",
    ): "sends the study's code to processes of its own; loads nothing",
    (
        "spark_hpo/backend/local/rank.py",
        "import pickle",
    ): "loads what the driver has sent through an inherited file that has no name",
    (
        "spark_hpo/driver/rehearsal.py",
        "import cloudpickle",
    ): "measures what is sent; loads nothing",
    (
        "spark_hpo/train/model_folder.py",
        "import cloudpickle",
    ): "writes such a task; loads nothing",
    (
        "spark_hpo/train/predictor.py",
        "import cloudpickle",
    ): "a model whose task was written in a notebook: its code comes with it, as any model's does",
    (
        "spark_hpo/data/petastorm_codecs.py",
        "depickle_legacy_package_name_compatible",
    ): "Petastorm's metadata, where data.trust_petastorm_metadata says so",
}


def dangers(tree: ast.AST) -> Iterator[str]:
    """What in a module could run what it reads."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (f"import {n.name}" for n in names if n.name.split(".")[0] in DANGEROUS_MODULES)
            case ast.ImportFrom(module=str(module), names=names):
                yield from (
                    f"import {name}"
                    for name in [module.split(".")[0], *(n.name for n in names)]
                    if name in DANGEROUS_MODULES
                )
            case ast.Call(func=ast.Name(id=name)) if name in DANGEROUS_CALLS or "pickle" in name:
                yield name
            case ast.Call(func=ast.Attribute(attr=name)) if (
                "pickle" in name and name != "register_pickle_by_value"
            ):
                yield name
            case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr="load"), keywords=keywords):
                if not _says(keywords, "weights_only", True):
                    yield "torch.load without weights_only=True"
            case ast.Call(func=ast.Attribute(value=ast.Name(id="yaml"), attr=name), keywords=keywords):
                if "load" in name and name != "safe_load" and not _has_safe_loader(keywords, tree):
                    yield f"yaml.{name} without a safe loader"
            case ast.Call(keywords=keywords) if _says(keywords, "allow_pickle", True):
                yield "allow_pickle=True"
            case ast.Call(keywords=keywords) if _says(keywords, "shell", True):
                yield "shell=True"


def _says(keywords: list[ast.keyword], name: str, value: object) -> bool:
    return any(
        k.arg == name and isinstance(k.value, ast.Constant) and k.value.value is value for k in keywords
    )


def _has_safe_loader(keywords: list[ast.keyword], tree: ast.AST) -> bool:
    """Whether the loader is yaml.SafeLoader, or a class of this module that is made from it."""
    safe = {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        and [ast.unparse(base) for base in node.bases] == ["yaml.SafeLoader"]
    }
    return any(k.arg == "Loader" and ast.unparse(k.value) in {"yaml.SafeLoader", *safe} for k in keywords)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_package_unpickles_and_evaluates_nothing_unlisted(file: Path) -> None:
    place = str(file.relative_to(ROOT))
    for danger in dangers(ast.parse(file.read_text())):
        assert (place, danger) in ALLOWED, f"{place}: {danger}"


def test_exemptions_are_needed() -> None:
    found = {
        (str(file.relative_to(ROOT)), danger)
        for file in FILES
        for danger in dangers(ast.parse(file.read_text()))
    }
    assert found == set(ALLOWED)


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "from pyspark import cloudpickle",
        "import joblib.numpy_pickle",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.load(text)",
        "yaml.unsafe_load(text)",
        "yaml.full_load_all(text)",
        "np.load(file, allow_pickle=True)",
        "pd.read_pickle(file)",
        "eval(text)",
        "exec(text)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_dangerous_calls_are_detected(line: str) -> None:
    assert list(dangers(ast.parse(line)))


@pytest.mark.parametrize(
    "text",
    [
        "torch.load(file, weights_only=True)",
        "yaml.safe_load(text)",
        "class Ours(yaml.SafeLoader): ...\nyaml.load(text, Loader=Ours)",
        "model.eval()",
        "re.compile(text)",
        "np.load(file)",
    ],
)
def test_harmless_calls_are_allowed(text: str) -> None:
    assert not list(dangers(ast.parse(text)))
