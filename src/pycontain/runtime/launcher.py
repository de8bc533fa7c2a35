"""The client of the monitor: connections to it, and starting it when there is none.

One `Launcher` per state root, one `Link` per container. A link is a SOCK_SEQPACKET connection that
carries the container's SPAWNED, FAILED and EXIT; it is pollable, so asyncio waits for it without a
thread, and for a container with PYC_R_LIFELINE its end is the container's end.

    launcher.spawn(blob, fds) -> Link      link.read_reply() -> SPAWNED ... EXIT
    launcher.watch(id) -> Link             a second client of the same container

The mutable state of a Launcher is its pool of idle connections: a deque, whose `append` and `pop`
are atomic, so no lock is held while anything waits. It belongs to the process that filled it.

The monitor runs from a sealed memfd: what a container could reach as /proc/PID/exe is never a file
of the host (CVE-2019-5736).
"""

from __future__ import annotations

import array
import errno
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

from pycontain import _native
from pycontain._native import C, NativeExit, NativeReply
from pycontain.errors import (
    ContainerNotFound,
    InternalError,
    KernelError,
    TimeoutExpired,
    WrongState,
)
from pycontain.runtime.starter import START_TIMEOUT_SEC, start_monitor

SOCKET_NAME = "monitor.sock"
_POOL_LIMIT = 16
_SUN_PATH_BYTES = 108
_INT_BYTES = array.array("i").itemsize


class MonitorLost(InternalError):
    """The monitor went away in mid-conversation; `Launcher.watch` finds the next one."""


class Link:
    """A connection to the monitor about one container. Closing it twice is harmless.

    `pidfd` is the container's, once SPAWNED or PARKED has been read; it is closed with the link.
    """

    __slots__ = ("_launcher", "_socket", "_timeout_sec", "pidfd")

    def __init__(self, launcher: Launcher, connection: socket.socket) -> None:
        self._launcher = launcher
        self._socket = connection
        self._timeout_sec: float | None = None
        self.pidfd = -1

    def fileno(self) -> int:
        """Return the descriptor to poll: readable when a reply has come. -1 when closed."""
        return self._socket.fileno()

    def send(self, request: bytes, fds: Sequence[int] = ()) -> None:
        """The request is on its way to the monitor.

        Raises:
            MonitorLost: nobody listens at the other end any more.
        """
        try:
            if fds:
                rights = array.array("i", fds)
                control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
                self._socket.sendmsg([request], control, socket.MSG_NOSIGNAL)
            else:
                self._socket.send(request, socket.MSG_NOSIGNAL)
        except (BrokenPipeError, ConnectionResetError, ConnectionRefusedError) as error:
            raise MonitorLost("the monitor has closed the connection") from error
        except OSError as error:
            call = f"sendmsg(monitor, {len(fds)} fds)"
            raise KernelError(error.errno or errno.EIO, call) from error

    def read_reply(self, timeout_sec: float | None = None) -> NativeReply | NativeExit:
        """Return the next reply; None waits without end.

        Raises:
            TimeoutExpired: none came in time; the container goes on.
            MonitorLost: the monitor died. The container goes on, unless it is a LIFELINE one.
            NotFound: after `Launcher.watch`: nothing of that id lives.
        """
        reply = self._read(timeout_sec)
        if (
            isinstance(reply, NativeReply)
            and reply.kind == C.PYC_REP_FAILED
            and reply.stage == C.PYC_STAGE_REQUEST
            and reply.err == errno.ENOENT
        ):
            raise ContainerNotFound("nothing of this id runs")
        return reply

    def _read(self, timeout_sec: float | None) -> NativeReply | NativeExit:
        if timeout_sec != self._timeout_sec:
            self._socket.settimeout(timeout_sec)
            self._timeout_sec = timeout_sec
        try:
            data, control, _, _ = self._socket.recvmsg(
                C.PYC_MAX_EXIT_BYTES, socket.CMSG_SPACE(_INT_BYTES), socket.MSG_CMSG_CLOEXEC
            )
        except (TimeoutError, BlockingIOError) as error:
            raise TimeoutExpired(f"no reply within {timeout_sec} s") from error
        except ConnectionResetError:
            data, control = b"", []
        if control:
            self._keep_pidfd(control[0][2])
        if not data:
            raise MonitorLost("the monitor has closed the connection")
        if _native.kind_of(data) == C.PYC_REP_EXIT:
            return _native.decode_exit(data)
        return _native.decode_reply(data)

    def take_pidfd(self) -> int:
        """Return the container's pidfd, now the caller's to close; -1 if there is none."""
        pidfd, self.pidfd = self.pidfd, -1
        return pidfd

    def close(self) -> None:
        """The connection is gone, and with it a container that has it as LIFELINE."""
        pidfd = self.take_pidfd()
        if pidfd >= 0:
            os.close(pidfd)
        self._socket.close()

    def release(self) -> None:
        """The connection serves another request; only after EXIT, FAILED or a plain reply."""
        pidfd = self.take_pidfd()
        if pidfd >= 0:
            os.close(pidfd)
        if self._socket.fileno() < 0:
            return
        if self._timeout_sec is not None:  # a new socket object believes its fd to be blocking
            self._socket.settimeout(None)
        fd = self._socket.detach()
        self._launcher._put_back(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fd))

    def _keep_pidfd(self, rights: bytes) -> None:
        fds = array.array("i")
        fds.frombytes(rights[: len(rights) - len(rights) % _INT_BYTES])
        if self.pidfd >= 0:
            os.close(self.pidfd)
        self.pidfd = fds[0]


class Launcher:
    """The way to the monitor of one state root. Threads share it; a forked child starts afresh.

    Args:
        state_root: made with mode 0700 if it is missing.
        idle_sec: how long a monitor started by us stays when nobody needs it.
        on_start: called with the monitor's pid right after we started it (for systemd scopes).
        program: the monitor's file; None = the one of this installation.
    """

    def __init__(
        self,
        state_root: str,
        idle_sec: int = 10,
        *,
        on_start: Callable[[int], None] | None = None,
        program: str | None = None,
    ) -> None:
        self.state_root = os.path.abspath(state_root)
        self.idle_sec = idle_sec
        self.on_start = on_start
        self._program = program
        self._owner_pid = os.getpid()
        self._pool: deque[socket.socket] = deque(maxlen=_POOL_LIMIT)

    def spawn(self, blob: bytes, fds: Sequence[int]) -> Link:
        """Return a link on which SPAWNED (or PARKED), FAILED and EXIT will come.

        Args:
            blob: record and plan. fds: the slots; they stay the caller's.
        """
        memory = _native.memfd("pycontain-plan", blob)
        try:
            return self._send(_native.encode_request(C.PYC_REQ_SPAWN), (memory, *fds))
        finally:
            os.close(memory)

    def watch(self, id: str) -> Link:
        """Return a link on which EXIT of the living container `id` will come.

        `read_reply` raises NotFound there if nothing called `id` lives. For a LIFELINE container
        whose connection died with the monitor's worker the link is its new lifeline.
        """
        return self._send(_native.encode_request(C.PYC_REQ_WAIT, id.encode()), ())

    def request(
        self, kind: int, id: str = "", num0: int = 0, num1: int = 0, fds: Sequence[int] = ()
    ) -> NativeReply:
        """Return the reply to a request that has just one; FAILED is returned like any other."""
        link = self._send(_native.encode_request(kind, id.encode(), num0, num1), fds)
        try:
            reply = link._read(None)
            assert isinstance(reply, NativeReply)
        except BaseException:
            link.close()
            raise
        link.release()
        return reply

    def start(self, id: str) -> Link:
        """Open the gate of a parked container; the link brings SPAWNED or FAILED, then EXIT."""
        link = self._send(_native.encode_request(C.PYC_REQ_START, id.encode()), ())
        try:
            _require_ok(link._read(None), id)
        except BaseException:
            link.close()
            raise
        return link

    def attach(self, id: str) -> socket.socket:
        """Return a stream socket that is the terminal of `id`; closing it detaches.

        While an attached program does not read, the container's terminal output waits for it.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            with theirs:
                reply = self.request(C.PYC_REQ_ATTACH, id, fds=(theirs.fileno(),))
            _require_ok(reply, id)
        except BaseException:
            ours.close()
            raise
        return ours

    def resize(self, id: str, rows: int, columns: int) -> None:
        """The terminal of `id` has this size."""
        _require_ok(self.request(C.PYC_REQ_RESIZE, id, rows << 32 | columns), id)

    def set_deadline(self, id: str, usec: int) -> None:
        """`id` will be killed `usec` from now unless it ends before; 0 = never."""
        _require_ok(self.request(C.PYC_REQ_DEADLINE, id, usec), id)

    def info(self) -> NativeReply:
        """Return INFO: `pid` of the worker, the keeper's child; `num` = alive, clients."""
        return self.request(C.PYC_REQ_INFO)

    def shutdown(self) -> bool:
        """Return True if no monitor lives any more, False if it has living containers."""
        self.close()
        try:
            connection = self._dial()
        except (FileNotFoundError, ConnectionRefusedError):
            return True
        link = Link(self, connection)
        try:
            link.send(_native.encode_request(C.PYC_REQ_SHUTDOWN))
            reply = link._read(None)
            if isinstance(reply, NativeReply) and reply.kind == C.PYC_REP_FAILED:
                return False
            link._read(None)  # end of file: it has left
        except MonitorLost:
            pass
        finally:
            link.close()
        return True

    def close(self) -> None:
        """No idle connection is left, so that the monitor may leave. Links are not affected."""
        while self._pool:
            self._pool.pop().close()

    def __del__(self) -> None:
        with suppress(Exception):  # half-made, or the interpreter is going down
            self.close()

    def _send(self, request: bytes, fds: Sequence[int]) -> Link:
        """Send on an idle connection, or on a new one if that turns out to be dead."""
        if self._owner_pid != os.getpid():  # forked: the connections are our parent's
            self._owner_pid = os.getpid()
            self.close()
        try:
            connection = self._pool.pop()
        except IndexError:
            pass
        else:
            link = Link(self, connection)
            try:
                link.send(request, fds)
                return link
            except MonitorLost:
                link.close()
            except BaseException:
                link.close()
                raise
        link = Link(self, self._connect())
        try:
            link.send(request, fds)
        except BaseException:
            link.close()
            raise
        return link

    def _put_back(self, connection: socket.socket) -> None:
        if self._owner_pid == os.getpid() and len(self._pool) < _POOL_LIMIT:
            self._pool.append(connection)
        else:
            connection.close()

    # ---- connecting and starting ----------------------------------------------------------

    def _dial(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        path = f"{self.state_root}/{SOCKET_NAME}"
        try:
            if len(os.fsencode(path)) < _SUN_PATH_BYTES:
                connection.connect(path)
            else:
                dir_fd = os.open(self.state_root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    connection.connect(f"/proc/self/fd/{dir_fd}/{SOCKET_NAME}")
                finally:
                    os.close(dir_fd)
        except BaseException:
            connection.close()
            raise
        return connection

    def _connect(self) -> socket.socket:
        """Return a connection that a monitor has answered on, starting one if none lives.

        The answer matters: a monitor that is about to leave can take a connection with it, but
        none leaves while it serves somebody.
        """
        deadline = time.monotonic() + START_TIMEOUT_SEC
        pause_sec = 0.001
        started = False
        while True:
            try:
                connection = self._dial()
            except (FileNotFoundError, ConnectionRefusedError):
                started = start_monitor(self.state_root, self.idle_sec, self._program) or started
            except OSError as error:
                call = f"connect({self.state_root}/{SOCKET_NAME})"
                raise KernelError(error.errno or errno.EIO, call) from error
            else:
                pid = self._greet(connection)
                if pid is not None:
                    if started and self.on_start is not None:
                        self.on_start(pid)
                    return connection
            if time.monotonic() > deadline:
                raise InternalError(f"no monitor answers in {self.state_root}")
            if not started:  # another client's monitor is about to listen, or to leave
                time.sleep(pause_sec)
                pause_sec = min(pause_sec * 2, 0.05)

    def _greet(self, connection: socket.socket) -> int | None:
        """Return the pid that the monitor answers with, None if it leaves."""
        link = Link(self, connection)
        try:
            link.send(_native.encode_request(C.PYC_REQ_INFO))
            reply = link._read(None)
            assert isinstance(reply, NativeReply)
        except MonitorLost:
            connection.close()
            return None
        except BaseException:
            connection.close()
            raise
        if reply.kind != C.PYC_REP_INFO:
            connection.close()
            raise InternalError(
                f"the monitor in {self.state_root} speaks another protocol",
                hint="it was started by another version of pycontain; end its containers first",
            )
        return reply.pid


def _require_ok(reply: NativeReply | NativeExit, id: str) -> None:
    """Return if the reply is OK.

    Raises:
        NotFound: nothing called `id` lives.  WrongState: it is not in a state for this.
    """
    if isinstance(reply, NativeExit) or reply.kind != C.PYC_REP_FAILED:
        return
    if reply.err == errno.ENOENT:
        raise ContainerNotFound(f"nothing called {id} runs")
    raise WrongState(f"{id}: {os.strerror(reply.err)}")
