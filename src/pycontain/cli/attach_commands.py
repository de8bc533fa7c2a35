"""`attach` and `logs`: what a container prints, and its terminal."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from pycontain.cli.arguments import Arguments, Command, Option, UsageError
from pycontain.cli.errors import exit_code_of_end
from pycontain.cli.run_options import unsigned
from pycontain.cli.session import (
    DETACH_KEYS,
    SignalForwarder,
    check_terminal,
    say_why_it_ended,
)
from pycontain.errors import InvalidInput, NotFound, WrongState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from socket import socket

    from pycontain.cli.app import Context
    from pycontain.runtime.container import Container
    from pycontain.runtime.logs import LogLine

__all__ = ["COMMANDS", "attach_to", "relay", "relay_terminal"]

_NO_STDIN = Option(("--no-stdin",), "do not pass stdin on")
_SIG_PROXY = Option(("--sig-proxy",), "pass signals on to the container (true)", default=True)


def relay_terminal(container: Container, interactive: bool, detach_keys: str | None) -> bool:
    """Connect our terminal to the container's until it ends; True if the user left it running."""
    return relay(container.attach(), interactive, detach_keys, container.resize)


def relay(
    sock: socket,
    interactive: bool,
    detach_keys: str | None,
    on_resize: Callable[[int, int], None],
) -> bool:
    """Copy between our terminal and `sock` until its end; True if the detach keys were typed."""
    from pycontain.runtime import console

    def resize(rows: int, columns: int) -> None:
        with suppress(NotFound, WrongState):  # it ended meanwhile, which the relay will see
            on_resize(rows, columns)

    options = {} if detach_keys is None else {"detach_keys": detach_keys}
    with sock:
        left: bool = console.relay(
            sock, stdin_fd=0 if interactive else -1, stdout_fd=1, on_resize=resize, **options
        )
        return left


def attach_to(
    container: Container,
    interactive: bool,
    detach_keys: str | None,
    *,
    since: float | None = None,
    sig_proxy: bool = True,
) -> int:
    """Show what a running container prints until it ends, and return its exit code.

    A terminal is relayed; otherwise the log is followed from `since` on (seconds since the epoch),
    and signals are passed on.
    """
    if container.inspect()["Config"]["Tty"]:
        check_terminal(interactive, tty=True)
        if relay_terminal(container, interactive, detach_keys):
            return 0
    else:
        _follow(container, since, sig_proxy)
    record = container.wait()
    code = exit_code_of_end(record.exit_code, record.signal)
    if code != 0:
        say_why_it_ended(container.name, record)
    return code


def _follow(container: Container, since: float | None, sig_proxy: bool) -> None:
    """Copy the log to stdout and stderr until the container has ended."""
    if not sig_proxy:
        _print_lines(container.logs(follow=True, since=since))
        return
    from threading import Thread

    with SignalForwarder() as signals:
        copier = Thread(target=lambda: _print_lines(container.logs(follow=True, since=since)))
        copier.start()
        signals.wait(container)
        copier.join()


def _print_lines(lines: Iterable[LogLine], *, timestamps: bool = False) -> None:
    """Write each line to the stream that the container wrote it to, bytes as they are."""
    streams = {"stdout": sys.stdout.buffer, "stderr": sys.stderr.buffer}
    unfinished: set[str] = set()
    for line in lines:
        stream = streams[line.stream]
        if timestamps and line.stream not in unfinished:
            stream.write(line.timestamp.encode() + b" ")
        stream.write(line.data)
        if line.partial:
            unfinished.add(line.stream)
        else:
            unfinished.discard(line.stream)
            stream.write(b"\n")
        stream.flush()


def _attach(arguments: Arguments, context: Context) -> int:
    """Connect to a container that runs, until it ends."""
    container = context.engine().get(arguments.operands[0])
    if container.status not in ("running", "paused"):
        raise WrongState(
            f"container {container.name} does not run",
            status=str(container.status),
            hint="see 'pycontain logs' and 'pycontain start -a'",
        )
    interactive = not arguments.no_stdin
    return attach_to(
        container,
        interactive,
        arguments.detach_keys,
        since=time.time(),
        sig_proxy=arguments.sig_proxy,
    )


def _logs(arguments: Arguments, context: Context) -> int:
    """Print what a container has printed, and with -f what it prints."""
    container = context.engine().get(arguments.operands[0])
    tail = None if arguments.tail in (None, "all") else unsigned(arguments.tail, "--tail")
    lines = container.logs(
        follow=arguments.follow,
        since=_moment(arguments.since, "--since"),
        until=_moment(arguments.until, "--until"),
        tail=tail,
    )
    _print_lines(lines, timestamps=arguments.timestamps)
    return 0


def _moment(text: str | None, flag: str) -> float | None:
    """Seconds since the epoch of a date, such a number, or a duration before now (`10m`)."""
    if text is None:
        return None
    number = text.removeprefix("-").replace(".", "", 1)
    if number.isascii() and number.isdigit() and len(number) < 30:
        return float(text)
    if any(char in text for char in "-T:"):
        from datetime import datetime

        try:
            return datetime.fromisoformat(text).timestamp()
        except ValueError:
            pass
    else:
        from pycontain.runtime.units import parse_duration

        try:
            return time.time() - parse_duration(text) / 1e6
        except InvalidInput:
            pass
    raise UsageError(
        f"{text!r} is not a time", field=flag, hint="use 10m, 2026-01-31T12:00:00Z or a Unix time"
    )


COMMANDS = {
    "attach": Command(
        "connect to a container that runs",
        "CONTAINER",
        _attach,
        (DETACH_KEYS, _NO_STDIN, _SIG_PROXY),
        least=1,
        most=1,
        complete="container",
    ),
    "logs": Command(
        "print what a container has printed",
        "CONTAINER",
        _logs,
        (
            Option(("-f", "--follow"), "go on until it ends"),
            Option(("--since",), "from this time on: 10m, a date or a Unix time", "TIME"),
            Option(("--until",), "up to this time", "TIME"),
            Option(("-n", "--tail"), "only the last N lines", "N"),
            Option(("-t", "--timestamps"), "put the time before each line"),
        ),
        least=1,
        most=1,
        complete="container",
    ),
}
