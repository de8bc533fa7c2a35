"""From the words of a command line to an exit code: global options, the verb's table, dispatch."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from pycontain.cli.arguments import HelpWanted, UsageError, parse
from pycontain.cli.errors import describe, exit_code_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pycontain.cli.arguments import Command
    from pycontain.engine import Engine

__all__ = ["VERBS", "Context", "command_of", "run"]

# Verb -> the module of this package whose COMMANDS has it. Kept here so that one is imported only.
VERBS: dict[str, str] = {
    "attach": "attach_commands",
    "completion": "help",
    "cp": "copy_command",
    "create": "run_command",
    "exec": "exec_command",
    "image import": "image_commands",
    "image inspect": "image_commands",
    "image ls": "image_commands",
    "image rm": "image_commands",
    "info": "host_commands",
    "inspect": "container_commands",
    "kill": "container_commands",
    "logs": "attach_commands",
    "pause": "container_commands",
    "prune": "host_commands",
    "ps": "list_command",
    "rename": "container_commands",
    "restart": "container_commands",
    "rm": "container_commands",
    "run": "run_command",
    "start": "run_command",
    "stats": "stats_command",
    "stop": "container_commands",
    "top": "stats_command",
    "unpause": "container_commands",
    "update": "container_commands",
    "version": "host_commands",
    "wait": "container_commands",
}
_ALIASES = {"images": ["image", "ls"], "rmi": ["image", "rm"]}
_SEE = "see 'pycontain --help'"
_VALUE_OPTIONS = ("--state-root", "--data-root")


class Context:
    """What a verb gets besides its arguments: the roots that were chosen, and the engine on demand.

    `open_engine` is the seam of the tests: anything with `engine.Engine`'s names.
    """

    def __init__(
        self,
        state_root: str | None,
        data_root: str | None,
        open_engine: Callable[..., Engine] | None,
    ) -> None:
        self.state_root = state_root
        self.data_root = data_root
        self._open_engine = open_engine

    def engine(self) -> Engine:
        """The engine of the chosen roots; its import is most of a verb's start-up time."""
        if self._open_engine is not None:
            return self._open_engine(state_root=self.state_root, data_root=self.data_root)
        from pycontain.engine import Engine

        return Engine(state_root=self.state_root, data_root=self.data_root)


def run(words: Sequence[str], *, open_engine: Callable[..., Engine] | None = None) -> int:
    """Do what `words` (without the program's name) ask and return the exit code.

    Errors are one line on stderr, a traceback only with PYCONTAIN_DEBUG=1 or --debug; a reader of
    stdout that went away is silent; ctrl-C is 130.
    """
    debug = os.environ.get("PYCONTAIN_DEBUG", "") not in ("", "0")
    try:
        options, words = _global_options(list(words))
        debug = debug or "--debug" in options
        verb, words = _split_verb(["help"] if "--help" in options else words or ["help"])
        if verb not in VERBS:
            from pycontain.cli.help import print_overview

            print_overview(verb)
            return 0
        context = Context(options.get("--state-root"), options.get("--data-root"), open_engine)
        command = command_of(verb)
        try:
            arguments = parse(command, verb, words)
        except HelpWanted:
            from pycontain.cli.help import print_help

            print_help(verb, command)
            return 0
        return command.run(arguments, context)
    except BaseException as error:
        return _report(error, debug)


def command_of(verb: str) -> Command:
    """The declaration of `verb`, a key of VERBS; imports its module."""
    from importlib import import_module

    module = import_module(f"pycontain.cli.{VERBS[verb]}")
    command: Command = module.COMMANDS[verb]
    return command


def _global_options(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """The options before the verb, and the words from the verb on."""
    options: dict[str, str] = {}
    while words and words[0].startswith("-"):
        word = words.pop(0)
        flag, equals, value = word.partition("=")
        if flag in _VALUE_OPTIONS:
            if not equals:
                if not words:
                    raise UsageError("needs a value", field=flag)
                value = words.pop(0)
            options[flag] = value
        elif word in ("-h", "--help"):
            options["--help"] = ""
        elif word in ("-D", "--debug"):
            options["--debug"] = ""
        elif word in ("-v", "--version"):
            return options, ["version", "--format", "pycontain {{.Version}}"]
        else:
            raise UsageError("unknown option", field=flag, hint=_SEE)
    return options, words


def _split_verb(words: list[str]) -> tuple[str, list[str]]:
    """The verb, a key of VERBS or a group such as "image", and the words after it."""
    if words[0] == "help":
        words = [*words[1:], "--help"]
        if words == ["--help"]:
            return "", words
    words = _ALIASES.get(words[0], words[:1]) + words[1:]
    if len(words) > 1 and f"{words[0]} {words[1]}" in VERBS:
        return f"{words[0]} {words[1]}", words[2:]
    if words[0] in VERBS:
        return words[0], words[1:]
    group = words[0] + " "
    if any(verb.startswith(group) for verb in VERBS):
        if words[1:] and words[1] not in ("-h", "--help"):
            raise UsageError("unknown command", field=" ".join(words[:2]), hint=_SEE)
        return group, words[1:]
    raise UsageError("unknown command", field=words[0], hint=_SEE)


def _report(error: BaseException, debug: bool) -> int:
    """The exit code of `error`, once it is said on stderr."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 125
    code = exit_code_of(error)
    if debug:
        import traceback

        traceback.print_exception(error)
    elif not isinstance(error, KeyboardInterrupt | BrokenPipeError):
        print(f"pycontain: {describe(error)}", file=sys.stderr)
    return code
