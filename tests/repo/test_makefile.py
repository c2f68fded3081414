"""What `make` says on a machine that lacks something."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def make(target: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("JAVA_HOME", "MAKEFLAGS", "MAKELEVEL")}
    return subprocess.run(
        ["make", "--no-print-directory", "-f", ROOT / "Makefile", target, *arguments],
        cwd=folder,
        env={**environment, "PATH": f"{folder}:{environment['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def java_of_version(folder: Path, version: str) -> None:
    file = folder / "java"
    file.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\" 2025-04-15' >&2\n")
    file.chmod(0o755)


@pytest.mark.parametrize("version", ["17.0.15", "21.0.1"])
def test_make_accepts_supported_java(tmp_path: Path, version: str) -> None:
    java_of_version(tmp_path, version)
    done = make("java", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("version", ["11.0.2", "1.8.0_392", "25"])
def test_make_with_unsupported_java_prints_what_to_install(tmp_path: Path, version: str) -> None:
    java_of_version(tmp_path, version)
    done = make("java", tmp_path)
    assert done.returncode != 0
    assert done.stderr.splitlines()[0].startswith("Java 17 or 21 is needed, found")
    assert "apt-get install openjdk-17" in done.stderr.splitlines()[0]


def test_make_without_java_prints_what_to_install(tmp_path: Path) -> None:
    file = tmp_path / "java"
    file.write_text("#!/bin/sh\nexit 127\n")
    file.chmod(0o755)
    done = make("java", tmp_path)
    assert done.stderr.splitlines()[0].startswith("Java 17 or 21 is needed, found none")


def test_make_without_python_3_11_prints_what_to_install(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    done = make("setup", tmp_path, "PYTHON=python3.11-that-is-not-there")
    assert done.returncode != 0
    assert done.stderr.splitlines()[0].startswith("Python 3.11, 3.12 or 3.13 is needed")


def test_make_setup_installs_nothing_the_second_time(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "constraints.txt", ".venv/installed"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    done = make("setup", tmp_path, "PYTHON=false")
    assert done.returncode == 0
    assert "pip" not in done.stdout


def test_adult_table_is_downloaded_with_a_header(tmp_path: Path) -> None:
    rows = ["39, State-gov, 77516, <=50K", "50, ?, 83311, >50K"]
    (tmp_path / "adult.data").write_text("\n".join([*rows, "", ""]))
    done = make("data/adult.csv", tmp_path, f"ADULT_URL=file://{tmp_path}/adult.data")
    assert done.returncode == 0, done.stderr
    header, *lines = (tmp_path / "data/adult.csv").read_text().splitlines()
    assert header.startswith("age,workclass,")
    assert header.endswith(",native-country,income-per-year")
    assert lines == ["39,State-gov,77516,<=50K", "50,?,83311,>50K"]
    assert [file.name for file in (tmp_path / "data").iterdir()] == ["adult.csv"]


def test_tune_downloads_the_adult_table_for_its_study_only(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "constraints.txt", ".venv/installed"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    java_of_version(tmp_path, "17.0.1")
    for config, is_needed in (("conf/adult.yaml", True), ("conf/quickstart.yaml", False)):
        plan = make("tune", tmp_path, "--dry-run", f"CONFIG={config}")
        assert ("adult.data" in plan.stdout) == is_needed


@pytest.mark.parametrize("stack", ["modern", "spark35"])
def test_constraints_of_a_stack_override_the_canonical_ones(tmp_path: Path, stack: str) -> None:
    own, canonical = tmp_path / f"constraints-{stack}.txt", tmp_path / "constraints.txt"
    own.write_text("# of the stack\npyspark==9.0\n")
    canonical.write_text("# of all\nnumpy==1.26.4\npyspark==4.0.5\npyspark-client==4.0.5\n")
    assert make(f"build/{stack}/constraints.txt", tmp_path).returncode == 0
    merged = (tmp_path / "build" / stack / "constraints.txt").read_text().splitlines()
    assert [line for line in merged if not line.startswith("#")] == [
        "pyspark==9.0",
        "numpy==1.26.4",
        "pyspark-client==4.0.5",
    ]


@pytest.mark.parametrize("stack", ["modern", "spark35"])
def test_constraints_of_a_stack_differ_from_the_canonical_ones(stack: str) -> None:
    def exact(file: str) -> dict[str, str]:
        lines = (ROOT / file).read_text().splitlines()
        return dict(line.split("==") for line in lines if not line.startswith("#"))

    own, canonical = exact(f"constraints-{stack}.txt"), exact("constraints.txt")
    assert "pyspark" in own
    assert own.items().isdisjoint(canonical.items())


class TestAudit:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """Three stacks, and in the place of pip-audit a script that notes how it is called."""
        (tmp_path / "constraints.txt").write_text("safe==1\nwrong==1\n")
        (tmp_path / "constraints-modern.txt").write_text("# newer\nwrong==2\n")
        (tmp_path / "constraints-spark35.txt").write_text("safe==2\n")
        (tmp_path / "audit.txt").write_text("# accepted\n\nCVE-1: a, why\nPYSEC-2-b: b, why\n")
        script = tmp_path / "build/audit/bin/pip-audit"
        script.parent.mkdir(parents=True)
        script.write_text('#!/bin/sh\necho "$@" >> calls\nfor last; do :; done\n! grep -q wrong==1 "$last"\n')
        script.chmod(0o755)
        (tmp_path / "build/audit/installed").touch()
        return tmp_path

    def test_audit_fails_on_a_vulnerable_package(self, folder: Path) -> None:
        assert make("audit", folder).returncode != 0

    def test_audit_checks_every_stack_except_for_accepted_entries(self, folder: Path) -> None:
        (folder / "constraints.txt").write_text("safe==1\nwrong==2\n")
        done = make("audit", folder)
        assert done.returncode == 0, done.stderr
        calls = (folder / "calls").read_text().splitlines()
        assert [call.split()[-1] for call in calls] == [
            "constraints.txt",
            "build/modern/constraints.txt",
            "build/spark35/constraints.txt",
        ]
        for call in calls:
            assert "--strict" in call, "what cannot be looked up is no success"
            assert "--ignore-vuln CVE-1 --ignore-vuln PYSEC-2-b -r" in call


def test_accepted_vulnerabilities_have_a_reason() -> None:
    for line in (ROOT / "audit.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            assert re.fullmatch(r"(CVE|PYSEC|GHSA)-[\w-]+: [\w-]+, .{40,}", line), line


@pytest.mark.parametrize(("answer", "is_kept"), [("y\n", False), ("n\n", True), ("", True)])
def test_make_clean_asks_and_keeps_tables_and_studies_of_users(
    tmp_path: Path, answer: str, is_kept: bool
) -> None:
    mine = [tmp_path / name for name in ("data/mine", "studies/mine", "studies/mlflow.db")]
    examples = [tmp_path / name for name in ("data/digits", "studies/quickstart")]
    for folder in (*mine, *examples, tmp_path / "build"):
        folder.mkdir(parents=True)
    done = subprocess.run(
        ["make", "-f", ROOT / "Makefile", "clean"],
        cwd=tmp_path,
        input=answer,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert all(folder.exists() for folder in mine)
    assert [folder.exists() for folder in examples] == [is_kept] * 2
    assert not (tmp_path / "build").exists()
