"""The command line: `spark-hpo COMMAND`, and the same as `spark-submit jobs/tune.py COMMAND`.

A command is a module here, loaded when it is called, that has a `click.Command` named `command`:

    @click.command("status", cls=Command, examples=["spark-hpo status studies/digits"])
    @study_argument
    @json_option
    def command(study: str, as_json: bool) -> None:
        \"""Say where a study stands.

        The line above is the summary; `COMMANDS` in program.py has the same, for `spark-hpo --help`.
        \"""

`command.py` has the arguments that several commands have. What is printed goes through `console.py`, because
credentials may be in it. A command raises `SparkHpoError`s: `main` prints them, and exits with their code.
"""

from __future__ import annotations

from spark_hpo.cli.program import main, prepare_data, tune

__all__ = ["main", "prepare_data", "tune"]
