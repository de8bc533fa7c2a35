"""One run: a process that the monitor owns, from its start to its exit record.

A container has one run at a time, each exec is one. What a run knows comes from three places that
agree: the connection that started it (or a later one that asked to be told), the file `live` while
it lives, and the file `exit` afterwards.
"""

from __future__ import annotations

import os
import signal as signals
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from pycontain import _native
from pycontain._native import C
from pycontain.errors import InternalError, NotFound, TimeoutExpired, WrongState
from pycontain.runtime import launch
from pycontain.runtime.launcher import Launcher, Link, MonitorLost
from pycontain.runtime.liveness import is_alive
from pycontain.runtime.outcome import exit_record
from pycontain.usage import ExitRecord

if TYPE_CHECKING:
    from socket import socket

__all__ = ["NeverRan", "Run"]

_SETTLE_SEC = 10.0


class NeverRan(MonitorLost):
    """The start was lost with the monitor before anything ran: it may be repeated."""


class Run:
    """The mutable state is `_link` (dropped at the end), `_exit` (once known) and two descriptors.

    One thread at a time may wait. Closing leaves the process alone, unless it was started with a
    lifeline: then it is killed.
    """

    def __init__(
        self,
        launcher: Launcher,
        run_id: str,
        state_dir: str,
        started: launch.Started | None = None,
    ) -> None:
        self._launcher = launcher
        self.id = run_id
        self.state_dir = state_dir
        self._started = started
        self._link: Link | None = started.link if started else None
        self._exit: ExitRecord | None = None
        self._pidfd = -1
        self._terminal: socket | None = None

    def await_start(self) -> None:
        """Return once the command has been executed.

        One that was made to stop before the exec is let go once we are attached to its terminal.
        Raises: what `launch.failure` makes of the refusal; nothing runs then.
        """
        assert self._link is not None
        try:
            reply = self._link.read_reply(None)
            if isinstance(reply, _native.NativeReply) and reply.kind == C.PYC_REP_PARKED:
                self._terminal = self._launcher.attach(self.id)
                self._link.send(_native.encode_request(C.PYC_REQ_START, self.id.encode()))
                reply = self._link.read_reply(None)
                if isinstance(reply, _native.NativeReply) and reply.kind == C.PYC_REP_OK:
                    reply = self._link.read_reply(None)
        except MonitorLost:
            self._drop_link()
            self._start_without_reply()
        else:
            self._take_start(reply)

    def _start_without_reply(self) -> None:
        """The monitor died during the start. The next one goes on with what had executed by then,
        and kills what had not, so this asks for the end only if there was no beginning."""
        with suppress(NotFound):
            self._connection()
        live = self.live()
        if live is None or live.status != C.PYC_ST_RUNNING:
            if not self._read_exit_file():
                with suppress(WrongState):
                    self.wait(_SETTLE_SEC)
            if self._exit is not None and self._exit.exit_code is not None:
                return  # it has run already, to an end of its own
            raise InternalError(
                f"the monitor died while it started {self.id[:12]}, which does not run now",
                hint="start it again",
            )

    def attach(self) -> socket:
        """Return a socket that is its terminal, the caller's to close.

        The first one of a run that was parked for it has all that was ever printed.
        """
        terminal, self._terminal = self._terminal, None
        return terminal if terminal is not None else self._launcher.attach(self.id)

    def _take_start(self, reply: _native.NativeReply | _native.NativeExit) -> None:
        assert self._link is not None
        if isinstance(reply, _native.NativeExit):
            self._finish(reply)
        elif reply.kind == C.PYC_REP_FAILED:
            raise self._failure(reply)
        else:
            self._pidfd = self._link.take_pidfd()

    def _failure(self, reply: _native.NativeReply) -> Exception:
        if self._started is None:
            return launch.failure(reply)
        return launch.failure(reply, self._started.origins, self._started.command)

    def live(self) -> _native.NativeLive | None:
        """The monitor's record while it lives; None if there is none."""
        try:
            with open(f"{self.state_dir}/live", "rb") as file:
                return _native.decode_live(file.read())
        except OSError:
            return None

    def fileno(self) -> int:
        """A descriptor that is readable once it has ended."""
        return self._connection().fileno()

    @property
    def connected(self) -> bool:
        """Whether `fileno` is at hand: no monitor has to be asked for it."""
        return self._link is not None

    def _connection(self) -> Link:
        if self._link is None:
            self._link = self._launcher.watch(self.id)
        return self._link

    def wait(self, timeout: float | None = None) -> ExitRecord:
        """Return how it ended, once it has.

        Raises: TimeoutExpired: it runs on.  WrongState: it does not run and left no record.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            if self._exit is not None:
                return self._exit
            if self._link is None and self._read_exit_file():
                continue
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                reply = self._connection().read_reply(left)
            except NotFound:  # not alive there: it ended just now, or it never ran
                self._drop_link()
                if not self._read_exit_file():
                    raise self._no_record() from None
                continue
            except MonitorLost:  # it was restarted, and knows all its runs again
                self._drop_link()
                continue
            if isinstance(reply, _native.NativeExit):
                self._finish(reply)
            elif reply.kind == C.PYC_REP_FAILED:
                self._drop_link()
                raise self._failure(reply)

    def _no_record(self) -> Exception:
        # The monitor writes `live` before it clones and `exit` before it removes `live`.
        if self._started is not None and os.path.isdir(self.state_dir):
            return NeverRan("the monitor was killed while it started this; nothing has run")
        return WrongState(f"{self.id[:12]} is not running")

    def poll(self) -> ExitRecord | None:
        """Return how it ended, or None if it has not; never waits."""
        if self._exit is None and (self._link is not None or not self._read_exit_file()):
            if self._link is None and self.live() is None:
                return None  # never started: no reason to wake a monitor
            try:
                self.wait(0)
            except (TimeoutExpired, WrongState):
                return None
        return self._exit

    def recorded(self) -> ExitRecord | None:
        """Return how it ended as the file says, or None; any thread may ask at any time."""
        if self._exit is None:
            self._read_exit_file()
        return self._exit

    def _read_exit_file(self) -> bool:
        try:
            with open(f"{self.state_dir}/exit", "rb") as file:
                self._exit = exit_record(_native.decode_exit(file.read()))
        except OSError:
            return False
        return True

    def _finish(self, reply: _native.NativeExit) -> None:
        self._exit = exit_record(reply)
        if self._link is not None:
            self._link.release()
            self._link = None

    def _drop_link(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None

    def pidfd(self) -> int:
        """A pidfd of its process, owned here; proven to be that process by its start time.

        Raises: WrongState: it does not run.
        """
        if self._pidfd >= 0:
            return self._pidfd
        live = self.live()
        if live is not None and live.pid > 0:
            try:
                fd = os.pidfd_open(live.pid)
            except ProcessLookupError:
                fd = -1
            if fd >= 0 and is_alive(live.pid, live.pid_start_ticks):
                self._pidfd = fd
                return fd
            if fd >= 0:
                os.close(fd)
        raise WrongState(f"{self.id[:12]} is not running")

    def send_signal(self, signal: int) -> None:
        """Its process has been sent `signal`.

        Raises: WrongState: it does not run.
        """
        try:
            signals.pidfd_send_signal(self.pidfd(), signal)
        except ProcessLookupError:
            raise WrongState(f"{self.id[:12]} is not running", status="exited") from None

    def close(self) -> None:
        """Give up the connection, the pidfd and a terminal that nobody took. Idempotent."""
        self._drop_link()
        if self._terminal is not None:
            self._terminal.close()
            self._terminal = None
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
