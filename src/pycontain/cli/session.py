"""A command in the foreground: pass signals on, relay a terminal, wait for the end.

Signals reach a pipe (`signal.set_wakeup_fd`) that is polled beside the process that is waited for,
so none is lost between a check and a sleep and no library code runs inside a handler.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from typing import TYPE_CHECKING, Protocol, Self

from pycontain.cli.arguments import Option, UsageError

if TYPE_CHECKING:
    from types import FrameType, TracebackType

    from pycontain.usage import ExitRecord

__all__ = ["DETACH_KEYS", "SignalForwarder", "check_terminal", "say_why_it_ended", "stdin_fd"]

DETACH_KEYS = Option(
    ("--detach-keys",), "keys that leave the container's terminal (ctrl-p,ctrl-q)", "KEYS"
)

_FORWARDED = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGCONT,
    signal.SIGWINCH,
)
_FORCE_AFTER = 3
_DEVNULL = -3  # subprocess.DEVNULL, whose import would cost 5 ms


class Waitable(Protocol):
    """What a container and an exec have in common."""

    def fileno(self) -> int:
        """A descriptor that is readable once it has ended."""

    def send_signal(self, signal: int, /) -> None:
        """Send a signal to its first process."""

    def kill(self) -> None:
        """End all of it."""


class SignalForwarder:
    """While entered, signals of this process are kept for `wait`, which sends them on.

    Entering before the start and waiting after it loses none that arrives in between. The third
    SIGINT or SIGTERM kills: pid 1 of a container ignores signals that it has no handler for.
    """

    def __init__(self) -> None:
        self._read_fd = self._write_fd = -1
        self._old_wakeup = -1
        self._old_handlers: dict[int, object] = {}
        self._asked_to_end = 0

    def __enter__(self) -> Self:
        self._read_fd, self._write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._old_wakeup = signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        for number in _FORWARDED:
            self._old_handlers[number] = signal.signal(number, _kept)  # noqa: TID251  (ours)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # noqa: TID251
        signal.set_wakeup_fd(self._old_wakeup)
        os.close(self._read_fd)
        os.close(self._write_fd)

    def wait(self, target: Waitable) -> None:
        """Return once `target` has ended; until then every signal is sent on to it."""
        poll = select.poll()
        poll.register(self._read_fd, select.POLLIN)
        target_fd = target.fileno()
        poll.register(target_fd, select.POLLIN)
        while True:
            ready = [descriptor for descriptor, _ in poll.poll()]
            if self._read_fd in ready:
                for number in os.read(self._read_fd, 64):
                    self._forward(target, number)
            if target_fd in ready:
                return

    def _forward(self, target: Waitable, number: int) -> None:
        if number not in _FORWARDED:
            return
        if number in (signal.SIGINT, signal.SIGTERM):
            self._asked_to_end += 1
            if self._asked_to_end >= _FORCE_AFTER:
                print("pycontain: asked to end three times: killing it", file=sys.stderr)
                target.kill()
                return
        target.send_signal(number)


def _kept(number: int, frame: FrameType | None) -> None:
    """Do nothing: the wakeup descriptor has the number."""


def stdin_fd(interactive: bool) -> int:
    """What the engine takes for the command's stdin: ours with `-i`, else /dev/null, as docker."""
    return 0 if interactive else _DEVNULL


def check_terminal(interactive: bool, tty: bool) -> None:
    """Nothing hinders relaying a terminal.

    Raises:
        UsageError: `-it` while stdin is something else: the relay could not read it as a terminal.
    """
    if interactive and tty and not os.isatty(0):
        raise UsageError(
            "stdin is not a terminal", field="--tty", hint="leave -t out to pass a file or a pipe"
        )


def say_why_it_ended(name: str, record: ExitRecord) -> None:
    """Say on stderr what an exit code alone does not tell: which limit ended the command."""
    if record.timed_out:
        reason = "killed: its --timeout ran out"
    elif record.oom_killed:
        reason = "out of memory: the kernel killed a process of it (see --memory)"
    elif record.pids_limit_hit:
        reason = "could not start a process: it reached its --pids-limit"
    elif not record.known:
        reason = "ended while nobody could watch: its exit code is unknown"
    else:
        return
    print(f"pycontain: {name}: {reason}", file=sys.stderr)
