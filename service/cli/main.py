"""``prefect-forward-auth``: finds the command that is asked for, and runs it.

A command's module is loaded when it runs: a worker's machine, and Git, do not wait until the gate is loaded.
"""

import argparse
import os
import signal
import sys
from importlib import import_module
from typing import Final, NamedTuple

from service import __version__
from service.core.mistakes import MistakeError

_READER_GONE: Final = 128 + 13  # SIGPIPE, which Windows does not have


class Command(NamedTuple):
    """What a command does, in the words of the help, and the function that adds its options to a parser."""

    help: str
    module: str
    function: str = "define"


COMMANDS: Final = {
    "serve": Command("answer verify calls", "service.cli.serve"),
    "config": Command("write, look at and change the configuration", "service.cli.config"),
    "users": Command("change the users file", "service.cli.users"),
    "token": Command("issue, list and revoke tokens for machines", "service.cli.tokens"),
    "machines": Command(
        "let machines obtain short tokens from this service with a name and a secret", "service.cli.machines"
    ),
    "explain": Command("show what the gate answers to a call, and why", "service.cli.roles", "define_explain"),
    "routes": Command("print the routes of Prefect, and what opens each", "service.cli.roles", "define_routes"),
    "doctor": Command(
        "look for mistakes on a worker's machine or, with --server, around the service; exit 1 if there are any",
        "service.cli.doctor",
    ),
    "run": Command(
        "run a command, such as a Prefect worker, with a credential that is always fresh",
        "service.agent.command",
        "define_run",
    ),
    "agent": Command(
        "the same for commands that something else starts: print PREFECT_API_URL for them, and serve",
        "service.agent.command",
        "define_agent",
    ),
    "git-credential": Command(
        "answer Git's questions for a credential, as its credential helper", "service.agent.git_credential"
    ),
}


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit: 0 done, 1 no (a wrong password, a refusal), 2 a mistake that is explained.

    Ctrl-C exits with 130, and a reader of the output who has gone with 141, as a shell reports both signals.
    """
    try:
        try:
            code = _run(sys.argv[1:] if arguments is None else arguments)
        finally:
            print(end="", flush=True)
    except KeyboardInterrupt:
        print(file=sys.stderr)  # where the cursor stands behind a prompt
        code = 128 + signal.SIGINT
    except OSError as problem:  # of the output alone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        code = _READER_GONE if isinstance(problem, BrokenPipeError) else 2
        if code != _READER_GONE:
            print(f"prefect-forward-auth: the output cannot be written: {problem.strerror}", file=sys.stderr)
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    options = _parser(arguments[0] if arguments else "").parse_args(arguments)
    try:
        return int(options.run(options))
    except MistakeError as error:
        print(error.report(), file=sys.stderr)
    except BrokenPipeError:
        raise
    except OSError as error:
        print(f"prefect-forward-auth: {error}", file=sys.stderr)
    return 2


def _parser(chosen: str) -> argparse.ArgumentParser:
    """Return the parser of all commands, with the options of the chosen one."""
    parser = argparse.ArgumentParser(
        prog="prefect-forward-auth", description="Forward auth made for Prefect.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="command")
    for name, command in COMMANDS.items():
        text = f"{command.help[0].upper()}{command.help[1:]}."
        one = commands.add_parser(name, help=command.help, description=text)
        if name == chosen:
            getattr(import_module(command.module), command.function)(one)
    return parser
