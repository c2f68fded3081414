"""Plugins: found by name, imported when used, and refused if they are broken."""

from __future__ import annotations

import importlib
import sys
import textwrap
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spark_hpo.data.readers import open_reader, resolve_reader
from spark_hpo.errors import ConfigError
from spark_hpo.search.registry import build_explorer, build_sampler, build_scheduler, names_of
from spark_hpo.search.samplers.multivariate_tpe import MultivariateTpeSampler
from spark_hpo.search.samplers.random import RandomSampler
from spark_hpo.search.samplers.transfer import Knowledge
from spark_hpo.search.samplers.wrappers import ConstrainedSampler, WrappedSampler
from spark_hpo.search.space import Space
from spark_hpo.user_code.plugins import load_plugin, plugin_names
from tests.benchmarks.replay.methods import parse_method

SPACE = Space.from_config({"x": {"type": "uniform", "low": 0, "high": 1}})
KNOWLEDGE = Knowledge.none(1)
MODULE = """
from spark_hpo.search.explorers.perturbation import PerturbationExplorer as Explorer
from spark_hpo.search.samplers.random import RandomSampler as Sampler

class Picky(Sampler):
    def __init__(self, space, seed, *, level=1):
        raise KeyError(level)

class Half:
    def __init__(self, seed):
        pass
    def ask(self, trial_id):
        return {"x": 0.1}

class Whole(Half):
    def start(self, trial_id, params):
        pass
    def tell(self, trial_id, *, resource, loss, others=()):
        pass

class Several(Whole):
    def __init__(self, seed, num_objectives=1):
        self.num_objectives = num_objectives

class Declares(Whole):
    supports_multiple_objectives = handles_constraints = handles_limits = is_define_by_run = True
    size = 7
    def learn_from(self, knowledge):
        self.knowledge = knowledge
    def resolve_params(self, trial_id, params, notes):
        self.resolved = params

class Derived(Sampler):
    handles_constraints = supports_multiple_objectives = False

text = "no class"
"""
Install = Callable[..., None]


def entry_points(noun: str, **entries: str) -> str:
    return f"[spark_hpo.{noun}s]\n" + "\n".join(f"{name} = {value}" for name, value in entries.items())


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """What pip leaves of a package: its module, its metadata and its entry points."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(package: str, points: str, module: str = MODULE) -> None:
        info = tmp_path / f"{package}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(points)
        (tmp_path / f"{package}.py").write_text(textwrap.dedent(module))
        importlib.invalidate_caches()

    yield install
    for name in set(sys.modules) - before:
        if name.startswith("theirs"):
            del sys.modules[name]


def test_plugin_is_found_by_name_and_listed_after_built_in_ones(install: Install) -> None:
    install("theirs", entry_points("sampler", coin="theirs:Sampler"))
    assert type(build_sampler("coin", SPACE, 0)).__module__ == "spark_hpo.search.samplers.random"
    assert names_of("sampler")[-1] == "coin"
    with pytest.raises(ConfigError, match=r"'coin'.* random, grid, .*, coin"):
        build_sampler("coins", SPACE, 0)
    assert parse_method("coin+asha").sampler == "coin", "and it can be replayed beside the others"


def test_explorer_plugin_is_found_by_name(install: Install) -> None:
    install("theirs", entry_points("explorer", step="theirs:Explorer"))
    assert build_explorer("step", SPACE, 0, perturbation=0.2).perturbation == 0.2  # type: ignore[attr-defined]
    with pytest.raises(ConfigError) as error:
        build_explorer("step", SPACE, 0, perturbations=0.2)
    assert error.value.key == "explore.perturbations"


def test_plugin_cannot_replace_a_built_in_name(install: Install) -> None:
    install("theirs", entry_points("sampler", tpe="theirs:Sampler", random="theirs:Nothing"))
    assert isinstance(build_sampler("tpe", SPACE, 0), MultivariateTpeSampler)
    assert isinstance(build_sampler("random", SPACE, 0), RandomSampler)
    assert names_of("sampler").count("tpe") == 1


def test_broken_plugin_is_an_error_only_when_it_is_used(install: Install) -> None:
    install("theirs_broken", entry_points("sampler", coin="theirs_broken:Sampler"), "import no_such_module")
    assert "theirs_broken" not in sys.modules
    assert isinstance(build_sampler("random", SPACE, 0), RandomSampler)
    assert plugin_names("sampler") == ["coin"]
    assert "theirs_broken" not in sys.modules
    with pytest.raises(ConfigError) as error:
        build_sampler("coin", SPACE, 0)
    assert (error.value.key, error.value.value) == ("sampler", "coin")
    for part in ("theirs_broken 1.2", "'theirs_broken:Sampler'", "No module named 'no_such_module'"):
        assert part in str(error.value)


def test_plugin_name_that_two_packages_provide_is_refused(install: Install) -> None:
    for package in ("theirs", "theirs_too"):
        install(package, entry_points("scheduler", slow=f"{package}:Half"))
    with pytest.raises(ConfigError) as error:
        build_scheduler("slow")
    assert (error.value.key, error.value.value) == ("scheduler", "slow")
    for package in ("theirs 1.2", "theirs_too 1.2"):
        assert package in str(error.value)


WRONG = {
    "gone": ("theirs:Gone", "AttributeError: "),
    "text": ("theirs:text", "'no class'"),
    "half": ("theirs:Half", "lacks start, tell"),
    "picky": ("theirs:Picky", "KeyError: 1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_plugin_that_is_not_a_sampler_is_refused(install: Install, name: str) -> None:
    value, part = WRONG[name]
    install("theirs", entry_points("sampler", **{name: value}))
    with pytest.raises(ConfigError) as error:
        build_sampler(name, SPACE, 0)
    assert (error.value.key, error.value.value) == ("sampler", name)
    assert part in str(error.value)


def test_plugin_settings_are_checked_like_built_in_ones(install: Install) -> None:
    install("theirs", entry_points("sampler", coin="theirs:Picky"))
    with pytest.raises(ConfigError) as error:
        build_sampler("coin", SPACE, 0, levle=2)
    assert error.value.key == "sampler_settings.levle"
    assert "'level'" in error.value.cure


def test_plugin_that_accepts_num_objectives_supports_several(install: Install) -> None:
    install("theirs", entry_points("sampler", one="theirs:Whole", several="theirs:Several"))
    several = build_sampler("several", SPACE, 0, num_objectives=2)
    assert several.sampler.num_objectives == 2  # type: ignore[attr-defined]
    with pytest.raises(ConfigError) as error:
        build_sampler("one", SPACE, 0, num_objectives=2)
    assert (error.value.key, error.value.value) == ("sampler", "one")


def test_sampler_without_a_base_class_gets_the_defaults(install: Install) -> None:
    install("theirs", entry_points("sampler", whole="theirs:Whole"))
    sampler = build_sampler("whole", SPACE.constrained(["x > 0.5"]), 0, knowledge=KNOWLEDGE)
    assert (sampler.size, sampler.is_define_by_run) == (None, False)
    assert sampler.ask(0)["x"] > 0.5, "its proposals are repaired"


def test_sampler_without_a_base_class_may_declare_what_it_supports(install: Install) -> None:
    install("theirs", entry_points("sampler", declares="theirs:Declares"))
    space = SPACE.constrained(["x > 0.5"])
    sampler = build_sampler("declares", space, 0, num_objectives=2, knowledge=KNOWLEDGE)
    assert (sampler.size, sampler.is_define_by_run) == (7, True)
    assert sampler.ask(0) == {"x": 0.1}, "it handles constraints itself"
    sampler.resolve_params(0, {"x": 1}, {})
    # It does not say whether it accepts trials outside of its space, so an adapter says that it does not.
    assert isinstance(sampler, WrappedSampler)
    assert not sampler.accepts_foreign
    assert vars(sampler.sampler) == {"resolved": {"x": 1}, "knowledge": KNOWLEDGE}


def test_sampler_that_derives_from_the_protocol_is_used_as_it_is(install: Install) -> None:
    install("theirs", entry_points("sampler", derived="theirs:Derived"))
    assert type(build_sampler("derived", SPACE, 0)).__name__ == "Derived"
    assert isinstance(build_sampler("derived", SPACE.constrained(["x > 0.5"]), 0), ConstrainedSampler)
    with pytest.raises(ConfigError):
        build_sampler("derived", SPACE, 0, num_objectives=2)


def test_reader_plugin_is_found_and_an_unknown_reader_is_refused(install: Install) -> None:
    made = "def make(manifest, schema):\n    return manifest, schema"
    install("theirs", entry_points("reader", own="theirs:make", broken="theirs:nothing"), made)
    assert resolve_reader("own") == "own"
    assert open_reader("own", 1, 2) == (1, 2)  # type: ignore[arg-type,comparison-overlap]
    with pytest.raises(ConfigError, match="petastorm, arrow, auto, broken, own"):
        resolve_reader("parquet")
    with pytest.raises(ConfigError, match=r"theirs 1\.2") as error:
        resolve_reader("broken")
    assert (error.value.key, error.value.value) == ("reader", "broken")


def test_plugin_in_a_zip_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "theirs.zip", "w") as archive:
        archive.writestr("theirs_zipped.py", MODULE)
        archive.writestr("theirs_zipped-3.dist-info/METADATA", "Name: theirs_zipped\nVersion: 3\n")
        archive.writestr(
            "theirs_zipped-3.dist-info/entry_points.txt", entry_points("sampler", far="theirs_zipped:Half")
        )
    assert load_plugin("sampler", "far") is None
    monkeypatch.syspath_prepend(str(tmp_path / "theirs.zip"))
    assert load_plugin("sampler", "far").__name__ == "Half"
