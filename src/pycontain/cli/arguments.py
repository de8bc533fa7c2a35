"""Command lines as docker reads them, from options that are declared as data.

Not argparse for reading: docker's grammar (Go's pflag) has `--rm=false`, `-m=1g`, `-itd`, options
that stop at the first operand so that `run IMAGE ls -l` needs no `--`, and argparse can do none of
that the same way in every Python version; it would also cost 10 ms at each start. Help and shell
completion are argparse's: `cli/help.py` builds its parsers from these same declarations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from pycontain.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pycontain.cli.app import Context

__all__ = ["Arguments", "Command", "HelpWanted", "Option", "UsageError", "parse"]

_TRUE = ("true", "1", "t")
_FALSE = ("false", "0", "f")


class UsageError(InvalidInput):
    """The command line is not one that this command has; `field` is the option as typed."""


class HelpWanted(Exception):
    """`-h` or `--help` was among the options."""


class Option(NamedTuple):
    """One option. Without `metavar` it is a switch; its value's name is its last long flag's."""

    flags: tuple[str, ...]
    help: str
    metavar: str = ""
    many: bool = False
    default: Any = None
    choices: tuple[str, ...] = ()
    complete: str = ""  # what shell completion offers: file, directory, container, image

    @property
    def name(self) -> str:
        """`--memory-swap` is read as `arguments.memory_swap`."""
        return self.flags[-1].lstrip("-").replace("-", "_")


class Command(NamedTuple):
    """A verb: its options, how many operands it takes, and the function that runs it.

    `operands` is the usage text, one word per operand (`CONTAINER [COMMAND...]`). With
    `options_end` everything after the first operand is an operand, whatever it looks like.
    """

    summary: str
    operands: str
    run: Callable[[Arguments, Context], int]
    options: tuple[Option, ...] = ()
    least: int = 0
    most: int | None = 0
    options_end: bool = False
    complete: str = ""


class Arguments:
    """What was typed: every option of the command by name, and the operands in order."""

    def __init__(self, values: dict[str, Any], operands: list[str]) -> None:
        self.values = values
        self.operands = operands

    def __getattr__(self, name: str) -> Any:
        try:
            return self.values[name]
        except KeyError:
            raise AttributeError(name) from None


def parse(command: Command, verb: str, words: Sequence[str]) -> Arguments:
    """The values of all options of `command` and its operands, as `words` give them.

    Raises:
        UsageError: an option that the command lacks, without its value, or with an impossible one;
            too few or too many operands.
        HelpWanted: for `-h`, `--help`.
    """
    by_flag = {flag: option for option in command.options for flag in option.flags}
    values: dict[str, Any] = {}
    for option in command.options:
        values[option.name] = _initial(option)
    operands: list[str] = []
    remaining = iter(words)
    for word in remaining:
        if word == "--":
            operands += remaining
        elif word.startswith("--"):
            _read_long(verb, by_flag, values, word, remaining)
        elif word.startswith("-") and word != "-":
            _read_short(verb, by_flag, values, word, remaining)
        else:
            operands.append(word)
            if command.options_end:
                operands += remaining
    _check_count(command, verb, operands)
    return Arguments(values, operands)


def _initial(option: Option) -> Any:
    if option.many:
        return []
    if option.default is None and not option.metavar:
        return False
    return option.default


def _read_long(
    verb: str,
    by_flag: dict[str, Option],
    values: dict[str, Any],
    word: str,
    remaining: Iterator[str],
) -> None:
    """Read `--flag`, `--flag=value` or `--flag value`."""
    flag, equals, value = word.partition("=")
    option = by_flag.get(flag)
    if option is None:
        raise _unknown(verb, flag, by_flag)
    if option.metavar:
        _store(values, option, flag, value if equals else _next(flag, remaining))
    else:
        values[option.name] = _truth(flag, value) if equals else True


def _read_short(
    verb: str,
    by_flag: dict[str, Option],
    values: dict[str, Any],
    word: str,
    remaining: Iterator[str],
) -> None:
    """Read `-it`, `-m1g`, `-m=1g`, `-m 1g` or any run of switches that ends in one of these."""
    letters = word[1:]
    while letters:
        flag = f"-{letters[0]}"
        letters = letters[1:]
        option = by_flag.get(flag)
        if option is None:
            raise _unknown(verb, flag, by_flag)
        if option.metavar:
            value = letters.removeprefix("=") if letters else _next(flag, remaining)
            _store(values, option, flag, value)
            return
        if letters.startswith("="):
            values[option.name] = _truth(flag, letters[1:])
            return
        values[option.name] = True


def _next(flag: str, remaining: Iterator[str]) -> str:
    for word in remaining:
        return word
    raise UsageError("needs a value", field=flag)


def _store(values: dict[str, Any], option: Option, flag: str, value: str) -> None:
    if option.choices and value not in option.choices:
        allowed = ", ".join(option.choices)
        raise UsageError(f"{value!r} is not one of {allowed}", field=flag)
    if option.many:
        values[option.name].append(value)
    else:
        values[option.name] = value


def _truth(flag: str, value: str) -> bool:
    if value.lower() in _TRUE:
        return True
    if value.lower() in _FALSE:
        return False
    raise UsageError(f"{value!r} is neither true nor false", field=flag)


# Docker's options that mean something we do not do: saying so beats "unknown option".
_NOT_HERE = {
    "--privileged": "nothing here runs with all rights; use --cap-add and --device",
    "--publish": "networks do not exist yet; use --network host",
    "-p": "networks do not exist yet; use --network host",
    "--publish-all": "networks do not exist yet; use --network host",
    "--restart": "no daemon watches containers; use a systemd unit or pycontain's Python API",
    "--gpus": "use --device and -v for the driver's files",
    "--volumes-from": "name the volumes with -v",
    "--link": "networks do not exist yet",
    "--dns": "networks do not exist yet; mount a resolv.conf with -v",
    "--kernel-memory": "Linux removed this limit in 5.16",
}


def _unknown(verb: str, flag: str, by_flag: dict[str, Option]) -> Exception:
    if flag in ("-h", "--help"):
        return HelpWanted()
    if verb in ("run", "create") and flag in _NOT_HERE:
        return UsageError("not supported", field=flag, hint=_NOT_HERE[flag])
    hint = f"see 'pycontain {verb} --help'"
    if flag.startswith("--"):
        import difflib

        near = difflib.get_close_matches(flag, by_flag, n=1, cutoff=0.75)
        if near:
            hint = f"did you mean {near[0]}?"
    return UsageError("unknown option", field=flag, hint=hint)


def _check_count(command: Command, verb: str, operands: list[str]) -> None:
    usage = f"pycontain {verb} {command.operands}".rstrip()
    if len(operands) < command.least:
        missing = command.operands.split()[len(operands)].strip("[]").removesuffix("...")
        raise UsageError("missing", field=missing, hint=f"usage: {usage}")
    if command.most is not None and len(operands) > command.most:
        extra = operands[command.most]
        raise UsageError(f"{extra!r} is one too many", field="operands", hint=f"usage: {usage}")
