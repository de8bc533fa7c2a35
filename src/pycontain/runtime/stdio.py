"""Standard streams of a container: what the caller gave becomes descriptors, and pipes are pumped.

The words are those of `subprocess`: None inherits, PIPE, DEVNULL and STDOUT, a descriptor, or
anything with fileno().
"""

from __future__ import annotations

import errno
import os
import select
import time
from typing import IO, Any, Protocol

from pycontain.errors import InvalidInput, TimeoutExpired

__all__ = ["DEVNULL", "PIPE", "STDOUT", "Streams", "communicate", "drain"]

PIPE, STDOUT, DEVNULL = -1, -2, -3  # the values of the subprocess module
Stream = int | IO[Any] | None
_CHUNK_BYTES = 65536
_NAMES = ("stdin", "stdout", "stderr")


class _Ending(Protocol):
    def fileno(self) -> int: ...
    def wait(self, timeout: float | None = None) -> object: ...


class Streams:
    """Three descriptors for a container and, for pipes, our ends of them.

    The mutable state is `child` (what to close once the container has its copies) and `parent`
    (name -> our end, O_CLOEXEC and non-blocking; owned here until `close`).
    """

    __slots__ = ("_ours", "child", "parent")

    def __init__(self, stdin: Stream, stdout: Stream, stderr: Stream) -> None:
        self._ours: list[int] = []
        self.parent: dict[str, int] = {}
        try:
            fds = [self._open(i, s) for i, s in enumerate((stdin, stdout))]
            fds.append(fds[1] if stderr == STDOUT else self._open(2, stderr))
        except BaseException:
            self.close()
            raise
        self.child: tuple[int, int, int] = (fds[0], fds[1], fds[2])

    def _open(self, number: int, stream: Stream) -> int:
        if stream is None:
            return number
        if isinstance(stream, int):
            if stream == PIPE:
                return self._pipe(number)
            if stream == DEVNULL:
                fd = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
                self._ours.append(fd)
                return fd
            if stream < 0:
                raise InvalidInput(f"{stream} is no descriptor", field=_NAMES[number])
            return stream
        try:
            return stream.fileno()
        except (AttributeError, OSError) as error:
            raise InvalidInput(
                f"{stream!r} has no file descriptor", field=_NAMES[number], hint="or use PIPE"
            ) from error

    def _pipe(self, number: int) -> int:
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        theirs, ours = (read_end, write_end) if number == 0 else (write_end, read_end)
        os.set_blocking(ours, False)
        self._ours.append(theirs)
        self.parent[_NAMES[number]] = ours
        return theirs

    def started(self) -> None:
        """Close the container's ends here: else a pipe would never report its end."""
        for fd in self._ours:
            os.close(fd)
        self._ours.clear()

    def close(self) -> None:
        """Close everything that is still open here. Idempotent."""
        self.started()
        for fd in self.parent.values():
            os.close(fd)
        self.parent.clear()


def communicate(
    streams: Streams, ending: _Ending, data: bytes | None, timeout: float | None
) -> tuple[bytes | None, bytes | None, bool]:
    """Feed `data` to stdin and read both outputs until the container has ended.

    Returns (stdout, stderr, ended); an output that is no pipe is None. `ended` is False when
    `timeout` seconds passed first. Ended means what `ending.wait` says: a lost monitor makes it
    readable too. What a background process of an exec may still hold open is not waited for.
    """
    pending = memoryview(data or b"")
    outputs: dict[int, list[bytes]] = {}
    poll = select.poll()
    stdin = streams.parent.get("stdin", -1)
    if stdin >= 0 and not pending:
        os.close(streams.parent.pop("stdin"))
    elif stdin >= 0:
        poll.register(stdin, select.POLLOUT)
    for name in ("stdout", "stderr"):
        fd = streams.parent.get(name, -1)
        if fd >= 0:
            outputs[fd] = []
            poll.register(fd, select.POLLIN)
    ending_fd = ending.fileno()
    poll.register(ending_fd, select.POLLIN)
    deadline = None if timeout is None else time.monotonic() + timeout
    ended = False
    while not ended:
        left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        ready = poll.poll(left)
        if not ready and left == 0:
            break
        for fd, _events in ready:
            if fd == stdin:
                pending = _feed(streams, poll, pending)
            elif fd in outputs:
                if not drain(fd, outputs[fd], 1):
                    poll.unregister(fd)
            else:
                try:
                    ending.wait(0)
                    ended = True
                except TimeoutExpired:  # the monitor was replaced, and with it our connection
                    poll.unregister(ending_fd)
                    ending_fd = ending.fileno()
                    poll.register(ending_fd, select.POLLIN)
    for fd, chunks in outputs.items():
        drain(fd, chunks, None)
    texts = [
        b"".join(outputs[streams.parent[name]]) if name in streams.parent else None
        for name in ("stdout", "stderr")
    ]
    return texts[0], texts[1], ended


def _feed(streams: Streams, poll: select.poll, pending: memoryview) -> memoryview:
    fd = streams.parent["stdin"]
    try:
        pending = pending[os.write(fd, pending[:_CHUNK_BYTES]) :]
    except BlockingIOError:
        return pending
    except OSError as error:
        if error.errno != errno.EPIPE:  # it does not want to read: as subprocess, not an error
            raise
        pending = memoryview(b"")
    if not pending:
        poll.unregister(fd)
        os.close(streams.parent.pop("stdin"))
    return pending


def drain(fd: int, chunks: list[bytes], most: int | None) -> bool:
    """Read up to `most` chunks, or all there is. False at the end of the stream."""
    while most is None or most > 0:
        try:
            chunk = os.read(fd, _CHUNK_BYTES)
        except BlockingIOError:
            return True
        if not chunk:
            return False
        chunks.append(chunk)
        most = None if most is None else most - 1
    return True
