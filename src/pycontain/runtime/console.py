"""The user's side of a container's terminal.

`relay` copies between the caller's terminal and the monitor's socket until the container's side
ends or the detach keys are typed. The terminal is raw meanwhile and as before afterwards, also
when a signal ends the program.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from pycontain.errors import InvalidInput

__all__ = ["DEFAULT_DETACH_KEYS", "DetachKeys", "parse_detach_keys", "raw_mode", "relay"]

DEFAULT_DETACH_KEYS = "ctrl-p,ctrl-q"
_CHUNK_BYTES = 65536
_MAX_PENDING_BYTES = 1 << 18  # stdin is not read while so much waits for the container
_LEAVE_MSEC = 1000
_END_OF_INPUT = b"\x04"  # VEOF, what ctrl-d sends
_FATAL = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def parse_detach_keys(text: str) -> bytes:
    """The bytes that `ctrl-p,ctrl-q` or `ctrl-a,x` sends; none for an empty text.

    Source: docker's `--detach-keys`: single characters and ctrl- with a letter or one of @[\\]^_.

    Raises:
        InvalidInput: something else.
    """
    keys = bytearray()
    for word in text.split(",") if text else ():
        if len(word) == 1 and word.isascii():
            keys.append(ord(word))
            continue
        prefix, letter = word[:5].lower(), word[5:].upper()
        if prefix != "ctrl-" or len(letter) != 1 or not "@" <= letter <= "_":
            raise InvalidInput(
                f"{word!r} is not a key",
                field="detach_keys",
                hint="use characters and ctrl-LETTER with commas, such as ctrl-a,x",
            )
        keys.append(ord(letter) - 64)
    return bytes(keys)


class DetachKeys:
    """Looks for a sequence of keys in what is typed, however it is cut into pieces."""

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._held = b""  # the beginning of the sequence, not passed on yet

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """(what is to be passed on, whether the sequence is complete)."""
        if not self._keys:
            return data, False
        data = self._held + data
        found = data.find(self._keys)
        if found >= 0:
            self._held = b""
            return data[:found], True
        longest = min(len(self._keys) - 1, len(data))
        while longest and not data.endswith(self._keys[:longest]):
            longest -= 1
        self._held = data[len(data) - longest :]
        return data[: len(data) - longest], False


@contextmanager
def raw_mode(fd: int) -> Iterator[Callable[[], None]]:
    """Inside, the terminal `fd` passes every key on as it is; afterwards it is as it was.

    Gives a function that makes it raw again (a shell resets it when the program was stopped).
    Nothing happens to a `fd` that is no terminal. Typed-ahead input is kept.
    """
    if fd < 0 or not os.isatty(fd):
        yield lambda: None
        return
    import tty

    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd, termios.TCSADRAIN)
        yield lambda: _ignore_gone(lambda: tty.setraw(fd, termios.TCSADRAIN))
    finally:
        _ignore_gone(lambda: termios.tcsetattr(fd, termios.TCSADRAIN, before))


def relay(
    sock: socket.socket,
    *,
    stdin_fd: int,
    stdout_fd: int,
    detach_keys: str = DEFAULT_DETACH_KEYS,
    on_resize: Callable[[int, int], None] | None = None,
) -> bool:
    """All that the container printed is written; True if it was left running by the detach keys.

    Args:
        sock: a stream from `attach`; stays the caller's. What it still holds is drained before the
            end, and input is sent in full, however slowly it is taken.
        stdin_fd: -1 for none. Its end, if it is no terminal, is passed on as ctrl-d.
        on_resize: called with (rows, columns) at the start and whenever the terminal changes; the
            latter only in the main thread, where signals can be heard.

    Raises:
        InvalidInput: `detach_keys`.
        OSError: stdout is gone.
    """
    keys = DetachKeys(parse_detach_keys(detach_keys))
    terminal_fd = next((fd for fd in (stdin_fd, stdout_fd) if fd >= 0 and os.isatty(fd)), -1)

    def resized() -> None:
        if on_resize is not None and terminal_fd >= 0:
            with suppress(OSError):
                size = os.get_terminal_size(terminal_fd)
                on_resize(size.lines, size.columns)

    with _Signals() as signals, raw_mode(stdin_fd) as make_raw:
        resized()
        copier = _Copier(sock, stdin_fd, stdout_fd, keys)
        while not copier.finished:
            for number in copier.step(signals.fd):
                if number == signal.SIGWINCH:
                    resized()
                elif number == signal.SIGCONT:
                    make_raw()
                    resized()
                elif number in signals.fatal:
                    signals.last = number
            if signals.last:
                break
    return copier.detached


class _Copier:
    """The state of one relay: what is on its way, and what has ended."""

    def __init__(
        self, sock: socket.socket, stdin_fd: int, stdout_fd: int, keys: DetachKeys
    ) -> None:
        self._sock, self._stdin_fd, self._stdout_fd = sock, stdin_fd, stdout_fd
        self._keys = keys
        self._pending = bytearray()  # typed, not yet taken by the monitor
        self.detached = False
        self.finished = False

    def step(self, signal_fd: int) -> bytes:
        """Wait until something can be done and do it; the numbers of signals that came."""
        poll = select.poll()
        wanted = 0 if self.detached else select.POLLIN
        wanted |= select.POLLOUT if self._pending else 0
        poll.register(self._sock, wanted)
        if signal_fd >= 0:
            poll.register(signal_fd, select.POLLIN)
        if self._stdin_fd >= 0 and len(self._pending) < _MAX_PENDING_BYTES and not self.detached:
            poll.register(self._stdin_fd, select.POLLIN)
        numbers = b""
        ready = poll.poll(_LEAVE_MSEC if self.detached else None)
        if not ready:
            self._pending.clear()  # nobody reads it, and the user wants to leave
        for fd, events in ready:
            if fd == signal_fd:
                with suppress(BlockingIOError):
                    numbers = os.read(signal_fd, 64)
            elif fd == self._stdin_fd:
                self._read_stdin()
            else:
                if events & select.POLLOUT:
                    self._send()
                if events & ~select.POLLOUT:
                    self._receive()
        if self.detached and not self._pending:
            self.finished = True
        return numbers

    def _read_stdin(self) -> None:
        try:
            data = os.read(self._stdin_fd, _CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:  # EIO: the terminal was hung up
            data = b""
        if data:
            passed, self.detached = self._keys.feed(data)
            self._pending += passed
            return
        if not os.isatty(self._stdin_fd):
            self._pending += _END_OF_INPUT
        self._stdin_fd = -1

    def _send(self) -> None:
        try:
            sent = self._sock.send(self._pending, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            del self._pending[:sent]
        except BlockingIOError:
            pass
        except OSError:
            # The other side has ended; what it said before is still to be read.
            self._pending.clear()
            self._stdin_fd = -1

    def _receive(self) -> None:
        try:
            data = self._sock.recv(_CHUNK_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if not data:
            self.finished = True
        else:
            _write_all(self._stdout_fd, data)


class _Signals:
    """Signals of the terminal arrive at `fd` while entered, in the main thread; else it is -1.

    A signal that would end the program is kept until the terminal is as it was, then raised again.
    Only handlers that are the default are replaced, and all are put back: they belong to the host
    program, and relaying a terminal is what it has asked for.
    """

    def __init__(self) -> None:
        self.fd = self._write_fd = -1
        self.fatal: set[int] = set()
        self.last = 0
        self._handlers: dict[int, Any] = {}
        self._wakeup_fd = -1

    def __enter__(self) -> _Signals:
        if threading.current_thread() is not threading.main_thread():
            return self
        self.fd, self._write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._wakeup_fd = signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        for number in (signal.SIGWINCH, signal.SIGCONT, *_FATAL):
            handler = signal.getsignal(number)
            if handler == signal.SIG_DFL or number == signal.SIGWINCH:
                self._handlers[number] = handler
                signal.signal(number, _kept)  # noqa: TID251  (put back in __exit__)
                if number in _FATAL:
                    self.fatal.add(number)
        return self

    def __exit__(self, *_: object) -> None:
        if self.fd < 0:
            return
        for number, handler in self._handlers.items():
            signal.signal(number, handler)  # noqa: TID251
        signal.set_wakeup_fd(self._wakeup_fd)
        os.close(self.fd)
        os.close(self._write_fd)
        if self.last:
            os.kill(os.getpid(), self.last)


def _kept(number: int, frame: object) -> None:
    """Nothing: the wakeup descriptor has the number."""


def _ignore_gone(call: Callable[[], object]) -> None:
    """Call it; a terminal that has been hung up is no error."""
    with suppress(termios.error):
        call()


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:  # somebody made our stdout non-blocking
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            poll.poll()
