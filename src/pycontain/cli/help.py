"""Help texts and shell completion: argparse parsers built from the declared commands.

The only user of argparse and shtab, so that no other verb pays for their import.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from pycontain.cli.app import VERBS, command_of
from pycontain.cli.arguments import Arguments, Command, Option
from pycontain.errors import Unsupported

if TYPE_CHECKING:
    from pycontain.cli.app import Context

__all__ = ["COMMANDS", "print_help", "print_overview", "whole_parser"]

_GLOBAL_OPTIONS = (
    Option(("--state-root",), "where running containers are known", "DIR", complete="directory"),
    Option(("--data-root",), "where images and layers are kept", "DIR", complete="directory"),
    Option(("-D", "--debug"), "show a traceback with each error"),
    Option(("-v", "--version"), "print the version"),
)

# What completion offers for names that only the program knows: it asks the program.
_PREAMBLE = {
    "bash": """
_pycontain_containers() {
  compgen -W "$(pycontain ps -a --format '{{.Names}}' 2>/dev/null)" -- "$1"
}
_pycontain_images() {
  compgen -W "$(pycontain image ls --format '{{.Reference}}' 2>/dev/null)" -- "$1"
}
""",
    "zsh": """
_pycontain_containers() {
  compadd -- ${(f)"$(pycontain ps -a --format '{{.Names}}' 2>/dev/null)"}
}
_pycontain_images() {
  compadd -- ${(f)"$(pycontain image ls --format '{{.Reference}}' 2>/dev/null)"}
}
""",
}


def print_overview(group: str = "") -> None:
    """Print all verbs, or those of `group` ("image "), with one line about each."""
    parser = argparse.ArgumentParser(
        prog="pycontain",
        usage=f"pycontain [--state-root DIR] [--data-root DIR] {group or 'VERB '}...",
        description="Run containers without a daemon.",
        epilog="'pycontain VERB --help' says more about one verb.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    lines = []
    for verb in sorted(VERBS):
        if verb.startswith(group):
            lines.append(f"  {verb:<15} {command_of(verb).summary}")
    assert parser.description is not None
    parser.description += "\n\n" + "\n".join(lines)
    if not group:
        _add_options(parser, _GLOBAL_OPTIONS)
    parser.print_help()


def print_help(verb: str, command: Command) -> None:
    """Print the usage and every option of one verb."""
    parser = argparse.ArgumentParser(
        prog=f"pycontain {verb}",
        usage=f"pycontain {verb} {'[OPTIONS] ' if command.options else ''}{command.operands}",
        description=command.summary[0].upper() + command.summary[1:] + ".",
        add_help=False,
    )
    _add_options(parser, command.options)
    parser.print_help()


def whole_parser() -> argparse.ArgumentParser:
    """All verbs and options as one tree, for shtab."""
    parser = argparse.ArgumentParser(prog="pycontain")
    _add_options(parser, _GLOBAL_OPTIONS)
    verbs = parser.add_subparsers(dest="verb")
    groups: dict[str, Any] = {}
    for verb in sorted(VERBS):
        command = command_of(verb)
        parent, name = verbs, verb
        if " " in verb:
            group, name = verb.split(" ")
            if group not in groups:
                made = verbs.add_parser(group, help=f"verbs about {group}s")
                groups[group] = made.add_subparsers(dest="subverb")
            parent = groups[group]
        one = parent.add_parser(name, help=command.summary.replace("%", "%%"), add_help=False)
        one.add_argument("--help", action="help", help="say more about this verb")
        _add_options(one, command.options)
        if command.complete:
            _complete(one.add_argument("operands", nargs="*"), command.complete)
    return parser


def _add_options(parser: argparse.ArgumentParser, options: tuple[Option, ...]) -> None:
    for option in options:
        text = option.help.replace("%", "%%")
        if not option.metavar:
            parser.add_argument(*option.flags, action="store_true", help=text)
            continue
        added = parser.add_argument(
            *option.flags,
            metavar=option.metavar,
            help=text,
            action="append" if option.many else "store",
        )
        if option.choices:
            added.choices = option.choices
        _complete(added, option.complete)


def _complete(action: argparse.Action, kind: str) -> None:
    """Tell shtab what to offer for `action`."""
    words: dict[str, Any]
    if kind in ("container", "image"):
        words = dict.fromkeys(_PREAMBLE, f"_pycontain_{kind}s")
    elif kind:
        import shtab

        words = shtab.DIRECTORY if kind == "directory" else shtab.FILE
    else:
        return
    action.complete = words  # type: ignore[attr-defined]  # shtab reads this


def _completion(arguments: Arguments, context: Context) -> int:
    """Print the completion script of a shell."""
    try:
        import shtab
    except ImportError:
        raise Unsupported("shell completion", needs="the Python package shtab") from None
    shell = arguments.operands[0]
    if shell not in _PREAMBLE:
        from pycontain.cli.arguments import UsageError

        raise UsageError(f"{shell!r} is not one of bash, zsh", field="SHELL")
    sys.stdout.write(shtab.complete(whole_parser(), shell=shell, preamble=_PREAMBLE[shell]) + "\n")
    return 0


COMMANDS = {
    "completion": Command(
        "print the completion script of a shell: bash or zsh",
        "bash|zsh",
        _completion,
        least=1,
        most=1,
    ),
}
