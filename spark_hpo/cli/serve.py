"""`spark-hpo serve`."""

from __future__ import annotations

import sys
import webbrowser
from pathlib import Path

import click

from spark_hpo.cli.command import Command
from spark_hpo.cli.console import complain, say
from spark_hpo.errors import ConfigError
from spark_hpo.report.serve.server import TOKEN_VARIABLE, Server


@click.command(
    "serve",
    cls=Command,
    examples=[
        "spark-hpo serve studies --open",
        "spark-hpo serve /mnt/studies s3://bucket/studies",
        "spark-hpo serve studies --host 0.0.0.0 --token-file ~/.spark_hpo_token",
    ],
)
@click.argument("dirs", nargs=-1, metavar="[DIR]...")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="The address to listen on. With an address that other machines reach, the page needs a token.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help="The port; 0 takes any free one.  [default: 7480, or the next free one]",
)
@click.option(
    "--token-file",
    metavar="FILE",
    help=f"Read the token from this file.  [default: {TOKEN_VARIABLE}, or a random token]",
)
@click.option("--open", "show", is_flag=True, help="Open the page in a browser.")
def command(dirs: tuple[str, ...], host: str, port: int | None, token_file: str | None, show: bool) -> None:
    """Show studies on a web page that follows them as they run.

    DIR is a study directory, or a directory that contains some: a path or URL. Without one, it is `studies`,
    or the working directory. The page reads the directories alone, so the studies may run on other machines.
    """
    server = Server(dirs, host=host, port=port, token=None if token_file is None else _read(token_file))
    if server.has_own_token and not sys.stdout.isatty():
        raise ConfigError(
            "listens on an address that other machines reach, and its random token would get into a log",
            key="--host",
            value=host,
            cure=f"Choose the token yourself, with {TOKEN_VARIABLE} or --token-file",
        )
    if not server.is_private:
        complain("The page is not encrypted. Use it in a trusted network, or behind a proxy with TLS.")

    def ready() -> None:
        say(f"serving {', '.join(server.dirs)} at {server.address}")
        if server.has_own_token:
            print(f"open {server.url}", flush=True)  # `say` would hide the token
        if show:
            webbrowser.open(server.url)

    server.run(ready)


def _read(token_file: str) -> str:
    try:
        return Path(token_file).expanduser().read_text().strip()
    except OSError as exc:
        raise ConfigError(
            f"cannot be read: {exc.strerror}", key="--token-file", value=token_file, cure="Check the path"
        ) from exc
