"""The command line: `spark-hpo COMMAND`, and the same as `spark-submit jobs/tune.py COMMAND`.

A command is a module here, loaded when it is called, that has a `click.Command` named `command`:

    @click.command("status", cls=Command, examples=["spark-hpo status studies/digits"])
    @study_argument
    @json_option
    def command(study: str, as_json: bool) -> None:
        \"""Print the state of a study.

        The line above is the summary. `COMMANDS` in program.py has the same text for `spark-hpo --help`.
        \"""

`command.py` has the arguments that several commands have. Commands print through `console.py`, which
removes credentials. They raise `SparkHpoError`s; `main` prints these, and exits with their code.
"""

from __future__ import annotations

from spark_hpo.cli.program import main, prepare_data, tune

__all__ = ["main", "prepare_data", "tune"]
