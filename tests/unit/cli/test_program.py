import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from spark_hpo import cli
from spark_hpo.cli.command import Command
from spark_hpo.cli.program import COMMANDS, _commands, _with_command
from tests.support.command_line_page import PAGE, commands_of, names, parse, with_help

ROOT = Path(__file__).parents[3]


def run(*arguments: str, program: str = "main") -> int:
    with pytest.raises(SystemExit) as ended:
        getattr(cli, program)(list(arguments))
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.fixture(autouse=True)
def _signals_as_they_were() -> object:
    import signal

    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(params=COMMANDS)
def command(request: pytest.FixtureRequest) -> Command:
    found = _commands.get_command(click.Context(_commands), request.param)
    assert isinstance(found, Command)
    return found


def test_command_line_page_has_the_current_help() -> None:
    page = PAGE.read_text()
    assert commands_of(page) == names()
    assert with_help(page) == page, "python -m tests.support.command_line_page puts it there"


def test_summary_of_a_command_is_the_same_in_both_helps(command: Command) -> None:
    assert command.get_short_help_str(limit=200) == COMMANDS[str(command.name)]


def test_examples_of_every_command_are_valid(command: Command) -> None:
    assert command.examples
    for example in command.examples:
        words = example.split()
        assert words[0] in ("spark-hpo", "spark-submit")
        if words[0] == "spark-hpo":
            assert words[1] == command.name
            end = next((i for i, word in enumerate(words) if word in ("|", ">>", "&&")), len(words))
            parse(command, [word.strip("'") for word in words[2:end]])


def test_help_imports_neither_torch_nor_spark() -> None:
    program = (
        "import sys\n"
        "from spark_hpo.cli import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'torch', 'pyspark', 'mlflow', 'pandas', 'plotly', 'hyperopt'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    for name, summary in COMMANDS.items():
        assert f"{name} " in done.stdout
        assert summary in " ".join(done.stdout.split())


def test_unknown_command_is_refused_in_a_few_lines(capfd: pytest.CaptureFixture[str]) -> None:
    assert run("rnu", "conf/quickstart.yaml") == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert "No such command 'rnu'" in err
    assert "--help" in err
    assert len(err.splitlines()) <= 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run"], "Missing argument 'CONF'"),
        (["run", "a.yaml", "--resume", "perhaps"], "'perhaps' is not one of"),
        (["run", "nowhere.yaml"], "nowhere.yaml: the study file cannot be read"),
        (["export", "nowhere"], "Missing option '--what'"),
        (["status", "nowhere"], "there is no study here"),
        (["resume", "nowhere"], "there is no study here"),
        (["gc", "nowhere"], "there is no study here"),
        (["gc", "nowhere", "--older-than", "soon"], "'soon' is not a valid age; use 12h, 30d or 4w"),
        (["gc"], "pass a study directory, --snapshots or --cache"),
        (["watch", "nowhere", "--interval", "0"], "not in the range"),
        (["prepare", "csv", "--input", "x"], "--output"),
    ],
)
def test_bad_input_is_a_configuration_error_with_one_message(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    out, err = capfd.readouterr()
    assert said in err
    assert "Traceback" not in err
    assert out == ""
    assert os.listdir(tmp_path) == [], "looking makes nothing"


def test_messages_show_no_password(capfd: pytest.CaptureFixture[str]) -> None:
    assert run("status", "s3://me:hunter22@bucket/study") != 0
    assert run("run", "a.yaml", "--resume", "http://me:hunter22@host") == 2
    assert "hunter22" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["--config", "a.yaml"], ["run", "a.yaml"]),
        (["--config=a.yaml", "x=1", "--resume", "must"], ["run", "a.yaml", "x=1", "--resume", "must"]),
        (["--resume", "must", "--config", "a.yaml", "x=1"], ["run", "a.yaml", "--resume", "must", "x=1"]),
        (["x=1", "--config", "a.yaml", "--sync"], ["run", "a.yaml", "x=1", "--sync"]),
        (["run", "a.yaml", "x=1"], ["run", "a.yaml", "x=1"]),
        (["status", "--config", "a"], ["status", "--config", "a"]),
        (["--help"], ["--help"]),
        (["--config"], ["--config"]),
        ([], []),
    ],
)
def test_job_without_a_command_means_run(words: list[str], meant: list[str]) -> None:
    assert _with_command(words) == meant


def test_program_without_a_command_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    assert run("--config", "nowhere.yaml", program="tune") == 2
    assert "nowhere.yaml: the study file cannot be read" in capfd.readouterr().err
    assert run("--config", "nowhere.yaml") == 2
    assert "No such option" in capfd.readouterr().err


@pytest.mark.medium
def test_shell_completes_commands() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from spark_hpo.cli import main; main()"],
        env={
            **os.environ,
            "_SPARK_HPO_COMPLETE": "bash_complete",
            "COMP_WORDS": "spark-hpo re",
            "COMP_CWORD": "1",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert {"plain,resume", "plain,report"} <= set(done.stdout.split())


def test_program_alone_shows_its_help_once(capfd: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    shown = capfd.readouterr()
    assert shown.out.count("Usage: ") == 1
    assert not shown.err
