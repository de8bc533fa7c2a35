"""What ends: waiting for it in any number of tasks, and its pipes, without a thread."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from typing import Any, Protocol, Self

from pycontain.aio.waiting import finished, in_thread, is_hung_up, readable, settled
from pycontain.errors import TimeoutExpired
from pycontain.runtime import process as processes
from pycontain.runtime.stdio import PIPE, Streams, drain
from pycontain.usage import ExitRecord, Usage

__all__ = ["Exec", "Running", "Sync", "pipes"]

_CHUNK_BYTES = 65536


class Sync(Protocol):
    """What containers and execs have in common."""

    @property
    def streams(self) -> Streams | None: ...
    @property
    def connected(self) -> bool: ...
    def fileno(self) -> int: ...
    def wait(self, timeout: float | None = None) -> ExitRecord: ...
    def poll(self) -> ExitRecord | None: ...
    def send_signal(self, signal: int) -> None: ...
    def kill(self) -> None: ...
    def finish_start(self) -> None: ...


class Running:
    """A process that ends. Any number of tasks may wait: one task reads the connection for all.

    The mutable state is `_ending` (that task, while somebody waits), `_waiters` and `_lock`, held
    by whoever reads the connection.
    """

    def __init__(self) -> None:
        self._ending: asyncio.Task[ExitRecord] | None = None
        self._waiters = 0
        self._lock = asyncio.Lock()

    def _process(self) -> Sync:
        raise NotImplementedError

    async def wait(self, timeout: float | None = None) -> ExitRecord:
        """Return how it ended, once it has.

        Raises: TimeoutExpired: it runs on.  WrongState: it was never started.
        """
        if self._ending is None or self._ending.done():
            self._ending = asyncio.create_task(self._await_end())
        ending = self._ending
        self._waiters += 1
        try:
            done, _ = await asyncio.wait({ending}, timeout=timeout)
        finally:
            self._waiters -= 1
            if not self._waiters:
                await self._stop_waiting()
        if not done:
            raise TimeoutExpired(f"it did not end within {timeout} s")
        return ending.result()

    async def _await_end(self) -> ExitRecord:
        process = self._process()
        record = None if process.connected else await self.poll()
        while record is None:
            if not process.connected:  # a handle that did not start it asks the monitor now
                async with self._lock:
                    await in_thread(process.fileno)
            fd = process.fileno()
            await readable(fd)
            async with self._lock:
                with suppress(TimeoutExpired):
                    if is_hung_up(fd):  # perhaps it takes a new monitor to tell
                        record = await in_thread(lambda: process.wait(0))
                    else:
                        record = process.wait(0)
        return record

    async def _stop_waiting(self) -> None:
        """Nobody reads the connection any more, and no reader is registered on it."""
        ending, self._ending = self._ending, None
        if ending is not None:
            ending.cancel()
            await settled(ending)

    async def poll(self) -> ExitRecord | None:
        """Return how it ended, or None if it has not."""
        async with self._lock:
            return await in_thread(self._process().poll)

    async def communicate(
        self, data: bytes | None = None, timeout: float | None = None
    ) -> tuple[bytes | None, bytes | None]:
        """Feed `data` to its stdin pipe and read its output pipes until it has ended.

        Raises: TimeoutExpired: it runs on; what was read so far is lost, as with Popen.
        """
        streams = self._process().streams
        if streams is None or not streams.parent:
            await self.wait(timeout)
            return None, None
        pump = _Pump(streams, data)
        try:
            await self.wait(timeout)
            return pump.finish()
        finally:
            pump.stop()

    async def send_signal(self, signal: int) -> None:
        """Its first process has been sent `signal`.

        Raises: WrongState: it does not run.
        """
        self._process().send_signal(signal)

    async def kill(self) -> None:
        """Every process in it has been sent SIGKILL. Nothing happens if it does not run."""
        await in_thread(self._process().kill)

    async def _finish_start(self) -> None:
        process = self._process()
        await readable(process.fileno())
        process.finish_start()


class Exec(Running):
    """A process started in a running container; `async with` kills it and closes the handle."""

    def __init__(self, sync: processes.Exec) -> None:
        super().__init__()
        self.sync = sync

    def _process(self) -> Sync:
        return self.sync

    async def stats(self) -> Usage:
        """What it uses now."""
        return await in_thread(self.sync.stats)

    async def close(self) -> None:
        """Let go. Unless detached it is killed if it still runs."""
        await finished(self._stop_waiting())
        self.sync.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


class _Pump:
    """The pipes of one process, fed and read by the event loop until `stop`."""

    def __init__(self, streams: Streams, data: bytes | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._streams = streams
        self._pending = memoryview(data or b"")
        self._chunks: dict[str, list[bytes]] = {}
        for name in ("stdout", "stderr"):
            if name in streams.parent:
                self._chunks[name] = []
                self._loop.add_reader(streams.parent[name], self._read, name)
        if "stdin" in streams.parent:
            self._loop.add_writer(streams.parent["stdin"], self._write)

    def _read(self, name: str) -> None:
        fd = self._streams.parent[name]
        if not drain(fd, self._chunks[name], 1):
            self._loop.remove_reader(fd)

    def _write(self) -> None:
        fd = self._streams.parent["stdin"]
        try:
            if self._pending:
                self._pending = self._pending[os.write(fd, self._pending[:_CHUNK_BYTES]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:  # it does not want to read: as subprocess, not an error
            self._pending = memoryview(b"")
        if not self._pending:
            self._loop.remove_writer(fd)
            os.close(self._streams.parent.pop("stdin"))

    def finish(self) -> tuple[bytes | None, bytes | None]:
        """Return all that was written; None for what is no pipe."""
        for name, chunks in self._chunks.items():
            drain(self._streams.parent[name], chunks, None)
        out, err = self._chunks.get("stdout"), self._chunks.get("stderr")
        return (
            None if out is None else b"".join(out),
            None if err is None else b"".join(err),
        )

    def stop(self) -> None:
        """The loop knows none of its descriptors."""
        for name, fd in self._streams.parent.items():
            if name == "stdin":
                self._loop.remove_writer(fd)
            else:
                self._loop.remove_reader(fd)


def pipes(words: dict[str, Any], data: Any, capture_output: bool) -> dict[str, Any]:
    """The words with what `input` and `capture_output` mean for the streams."""
    if data is not None:
        words["stdin"] = PIPE
    if capture_output:
        words["stdout"] = words["stderr"] = PIPE
    return words
