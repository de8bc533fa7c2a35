"""Dispatch, errors and exit codes."""

from __future__ import annotations

import pytest
from conftest import Cli
from fake_engine import FakeEngine

from pycontain.cli import app
from pycontain.cli.errors import describe, exit_code_of, exit_code_of_end
from pycontain.errors import (
    CommandNotExecutable,
    CommandNotFound,
    ContainerNotFound,
    InvalidInput,
    InvalidSpec,
)


def test_every_verb_is_declared_where_the_table_says() -> None:
    """No verb is missing from its module, and each has a summary."""
    for verb in app.VERBS:
        command = app.command_of(verb)
        assert command.summary
        names = [flag for option in command.options for flag in option.flags]
        assert len(names) == len(set(names)), verb


def test_every_verb_has_help(cli: Cli) -> None:
    """`VERB --help` prints usage and every option to stdout and exits with 0."""
    for verb in app.VERBS:
        ran = cli(*verb.split(), "--help")
        assert (ran.code, ran.err) == (0, "")
        assert f"usage: pycontain {verb}" in ran.out
        for option in app.command_of(verb).options:
            assert option.flags[-1] in ran.out


def test_the_overview_lists_all_verbs(cli: Cli) -> None:
    """Without a verb, or with --help, all verbs are shown."""
    for words in ((), ("--help",), ("help",)):
        ran = cli(*words)
        assert ran.code == 0
        assert all(f"  {verb} " in ran.out for verb in app.VERBS)
    assert "import" in cli("image").out
    assert "  run " not in cli("image").out


def test_global_options_choose_the_roots(cli: Cli, engine: FakeEngine) -> None:
    """--state-root and --data-root come before the verb, with = or as a word of their own."""
    assert cli("--state-root", "/s", "--data-root=/d", "ps").code == 0
    assert engine.roots == {"state_root": "/s", "data_root": "/d"}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("nope",), "pycontain: nope: unknown command (see 'pycontain --help')"),
        (("--nope", "ps"), "pycontain: --nope: unknown option (see 'pycontain --help')"),
        (("image", "nope"), "pycontain: image nope: unknown command (see 'pycontain --help')"),
        (("ps", "extra"), "pycontain: operands: 'extra' is one too many (usage: pycontain ps)"),
        (("inspect", "nope"), "pycontain: no container or image 'nope'"),
    ],
)
def test_mistakes_are_one_line_and_125(cli: Cli, words: tuple[str, ...], line: str) -> None:
    """One line on stderr, nothing on stdout but an empty document, exit code 125."""
    ran = cli(*words)
    assert (ran.code, ran.err) == (125, line + "\n")


def test_a_bug_of_ours_has_no_traceback_unless_asked(
    cli: Cli, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unexpected exception is one line; PYCONTAIN_DEBUG=1 shows the traceback."""
    engine.info = lambda: 1 / 0  # type: ignore[method-assign,assignment,return-value]
    ran = cli("info")
    assert ran.code == 125
    assert ran.err.count("\n") == 1
    assert "internal error: ZeroDivisionError" in ran.err
    monkeypatch.setenv("PYCONTAIN_DEBUG", "1")
    assert "Traceback" in cli("info").err


def test_ctrl_c_is_130_and_a_gone_reader_141(cli: Cli, engine: FakeEngine) -> None:
    """Both are silent."""
    for error, code in ((KeyboardInterrupt(), 130), (BrokenPipeError(), 141)):

        def fail(error: BaseException = error) -> dict[str, object]:
            raise error

        engine.info = fail  # type: ignore[method-assign]
        assert cli("info") == (code, "", "")


def test_the_table_of_exit_codes() -> None:
    """126 and 127 for the command, 125 for all else of ours, 128 + n for a signal."""
    assert exit_code_of(CommandNotFound("x")) == 127
    assert exit_code_of(CommandNotExecutable("x")) == 126
    assert exit_code_of(ContainerNotFound("x")) == 125
    assert exit_code_of_end(7, None) == 7
    assert exit_code_of_end(None, 9) == 137
    assert exit_code_of_end(None, None) == 255


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (InvalidInput("'x' is no size", field="memory"), "--memory: 'x' is no size"),
        (InvalidInput("no", field="pids", hint="h"), "--pids-limit: no (h)"),
        (InvalidSpec("no", field="mounts[3].source"), "--mount: no"),
        (InvalidSpec("no", field="linux.other"), "linux.other: no"),
        (InvalidInput("two\nlines"), "two lines"),
        (FileNotFoundError(2, "No such file", "/x"), "/x: No such file"),
    ],
)
def test_errors_name_the_option_as_typed(error: Exception, text: str) -> None:
    """The library's field becomes the option; a message is always one line."""
    assert describe(error) == text


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_scripts_know_verbs_and_options(cli: Cli, shell: str) -> None:
    """The script offers the verbs, their options, and containers by name."""
    ran = cli("completion", shell)
    assert (ran.code, ran.err) == (0, "")
    for word in ("--memory-swap", "unpause", "_pycontain_containers"):
        assert word in ran.out
