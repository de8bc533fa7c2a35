"""Docker's grammar of options."""

from __future__ import annotations

import pytest

from pycontain.cli.arguments import Arguments, Command, HelpWanted, Option, UsageError, parse

COMMAND = Command(
    "test",
    "IMAGE [ARG...]",
    lambda arguments, context: 0,
    (
        Option(("-i", "--interactive"), ""),
        Option(("-t", "--tty"), ""),
        Option(("-m", "--memory"), "", "BYTES"),
        Option(("-e", "--env"), "", "NAME", many=True),
        Option(("--sig-proxy",), "", default=True),
        Option(("--type",), "", "KIND", choices=("a", "b")),
    ),
    least=1,
    most=None,
    options_end=True,
)
INTERSPERSED = COMMAND._replace(options_end=False, most=2)


def read(*words: str, command: Command = COMMAND) -> Arguments:
    return parse(command, "test", words)


@pytest.mark.parametrize("words", [("-m1g",), ("-m=1g",), ("-m", "1g"), ("--memory=1g",)])
def test_a_value_may_be_attached_or_follow(words: tuple[str, ...]) -> None:
    """`-m1g`, `-m=1g`, `-m 1g` and `--memory=1g` are the same."""
    assert read(*words, "image").memory == "1g"


def test_switches_combine_and_the_last_may_take_a_value() -> None:
    """`-itm 1g` is `-i -t -m 1g`."""
    arguments = read("-itm", "1g", "image")
    assert (arguments.interactive, arguments.tty, arguments.memory) == (True, True, "1g")


def test_words_after_the_first_operand_are_never_options() -> None:
    """The command's own options need no `--`, and its `--` is kept."""
    assert read("image", "ls", "-l", "--", "--memory=1g").operands == [
        "image", "ls", "-l", "--", "--memory=1g",
    ]  # fmt: skip


def test_a_double_dash_ends_the_options() -> None:
    """What follows `--` is an operand even if it looks like an option."""
    assert read("-i", "--", "-m").operands == ["-m"]


def test_options_may_follow_operands_of_other_verbs() -> None:
    """`rm NAME -f` works as `rm -f NAME` does."""
    arguments = read("a", "-i", "b", command=INTERSPERSED)
    assert (arguments.operands, arguments.interactive) == (["a", "b"], True)


@pytest.mark.parametrize(("word", "expected"), [("=false", False), ("=1", True), ("", True)])
def test_a_switch_may_be_said_to_be_false(word: str, expected: bool) -> None:
    """`--sig-proxy=false` turns off what is on by default."""
    assert read(f"--sig-proxy{word}", "image").sig_proxy is expected


def test_defaults_and_repeated_options() -> None:
    """Absent is None, False or []; a repeated option gathers; the last of a single one counts."""
    arguments = read("-e", "A=1", "--env=B", "-m", "1", "-m", "2", "image")
    assert (arguments.env, arguments.memory, arguments.tty) == (["A=1", "B"], "2", False)
    assert arguments.sig_proxy is True
    assert arguments.type is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--memroy=1", "i"), "--memroy: unknown option (did you mean --memory?)"),
        (("-x", "i"), "-x: unknown option (see 'pycontain test --help')"),
        (("-ix", "i"), "-x: unknown option (see 'pycontain test --help')"),
        (("--memory",), "--memory: needs a value"),
        (("-m",), "-m: needs a value"),
        (("--tty=maybe", "i"), "--tty: 'maybe' is neither true nor false"),
        (("--type=c", "i"), "--type: 'c' is not one of a, b"),
        (("-i",), "IMAGE: missing (usage: pycontain test IMAGE [ARG...])"),
    ],
)
def test_errors_name_the_option(words: tuple[str, ...], message: str) -> None:
    """Each error says which option was refused and what would help."""
    with pytest.raises(UsageError) as error:
        read(*words)
    assert str(error.value) == message


def test_too_many_operands_are_refused() -> None:
    """A verb with two operands refuses a third by name."""
    with pytest.raises(UsageError, match="'c' is one too many"):
        read("a", "b", "c", command=INTERSPERSED)


def test_known_docker_options_that_are_missing_say_why() -> None:
    """`run --privileged` is answered with what to use instead."""
    with pytest.raises(UsageError, match=r"--privileged: not supported .*--cap-add"):
        parse(COMMAND, "run", ["--privileged", "image"])


def test_help_is_wanted_only_among_options() -> None:
    """`run IMAGE --help` is the image's business."""
    with pytest.raises(HelpWanted):
        read("-i", "--help")
    assert read("image", "--help").operands == ["image", "--help"]
