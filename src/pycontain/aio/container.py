"""A container for asyncio: `runtime.Container` with awaitables."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

from pycontain.aio.running import Exec, Running, Sync, pipes
from pycontain.aio.waiting import finished, in_thread, readable
from pycontain.errors import PycontainError, TimeoutExpired, WrongState
from pycontain.runtime import container as containers
from pycontain.runtime import logs as logs_
from pycontain.runtime import process as processes
from pycontain.runtime.processes import ProcessInfo
from pycontain.usage import ExitRecord, Usage

if TYPE_CHECKING:
    from pycontain.aio import Engine

__all__ = ["Container"]

_KILL_WAIT_SEC = 30.0
_LINES_PER_TURN = 200  # of a log, before other tasks have their turn


class Container(Running):
    """`pycontain.Container` with awaitables; `async with` always kills, waits and removes."""

    def __init__(
        self,
        image: str,
        command: Sequence[str] | None = None,
        *,
        engine: Engine | None = None,
        **words: Any,
    ) -> None:
        super().__init__()
        self._sync: containers.Container | None = None
        if engine is None:
            from pycontain.aio import Engine

            engine = Engine()
        maker = engine.sync
        self._make: Callable[[], containers.Container] = lambda: maker.container(
            image, command, **words
        )

    @classmethod
    def around(cls, sync: containers.Container) -> Container:
        """Return an asynchronous handle around a handle that nobody else waits with."""
        self = cls.__new__(cls)
        Running.__init__(self)
        self._sync = sync
        return self

    @property
    def sync(self) -> containers.Container:
        """The handle beneath: everything that needs no waiting, such as `name` and `status`.

        Raises: WrongState: neither created nor started yet, so the image is not known.
        """
        if self._sync is None:
            raise WrongState("it is not created yet")
        return self._sync

    def _process(self) -> Sync:
        return self.sync

    def __repr__(self) -> str:
        return f"<aio.Container {self._sync.name if self._sync else 'not created'}>"

    @property
    def id(self) -> str:
        """64 hexadecimal digits."""
        return self.sync.id

    @property
    def name(self) -> str:
        """Its unique name."""
        return self.sync.name

    @property
    def pid(self) -> int | None:
        """Its first process's pid on the host while it runs."""
        return self.sync.pid

    # -- life -----------------------------------------------------------------------------------

    async def create(self) -> Container:
        """It exists: its state and its writable layer are there, nothing runs."""
        await in_thread(self._create)
        return self

    def _create(self) -> containers.Container:
        if self._sync is None:
            self._sync = self._make()
        return self._sync.create()

    async def start(self, *, quiet: bool = False) -> Container:
        """Its process has executed the command; see `pycontain.Container.start`.

        Cancelling it leaves a container that never ran, or that has been killed.
        """
        try:
            async with self._lock:
                await in_thread(lambda: self._create().start(quiet=quiet, wait=False))
                if not quiet:
                    await self._finish_start()
        except asyncio.CancelledError:
            if self._sync is not None:
                await finished(in_thread(self._sync.kill))
            raise
        return self

    async def terminate(self) -> None:
        """It has been sent its stop signal."""
        self.sync.terminate()

    async def stop(self, timeout_sec: float | None = None) -> ExitRecord:
        """It has ended: asked by its stop signal, killed if that took too long."""
        if timeout_sec is None:
            timeout_sec = self.sync.blueprint.stop_timeout_usec / 1e6
        ended = await self.poll()
        if ended is not None:
            return ended
        await in_thread(self.sync.ask_to_stop)
        try:
            return await self.wait(timeout_sec)
        except TimeoutExpired:
            await self.kill()
            return await self.wait(_KILL_WAIT_SEC)

    async def remove(self, force: bool = False) -> None:
        """Nothing of it is left: no process, cgroup, layer, log or state. Idempotent.

        Cancelling it takes effect afterwards.
        Raises: WrongState: it runs and `force` is not given.
        """
        sync = self._sync
        if sync is None:
            return
        try:
            await finished(self._remove(sync, force))
        except asyncio.CancelledError:  # by a loop that shuts down, perhaps, which cancels all
            await in_thread(lambda: sync.remove(force=force))
            raise

    async def _remove(self, sync: containers.Container, force: bool) -> None:
        await self._stop_waiting()
        if force and sync.pid is not None:
            await in_thread(sync.kill)
            with suppress(PycontainError):  # a failed start; or stuck: then `remove` says so
                await self.wait(_KILL_WAIT_SEC)
        async with self._lock:
            await in_thread(lambda: sync.remove(force=force))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.remove(force=True)

    # -- quotas, accounting, freezing -----------------------------------------------------------

    async def pause(self) -> None:
        """None of its processes runs until `resume`."""
        await in_thread(self.sync.pause)

    async def resume(self) -> None:
        """Its processes run again."""
        await in_thread(self.sync.resume)

    async def update(self, **options: Any) -> None:
        """The given quotas (the words of `run`) hold from now on."""
        await in_thread(lambda: self.sync.update(**options))

    async def stats(self) -> Usage:
        """What it uses now; of an ended one, what it used in all."""
        return await in_thread(self.sync.stats)

    async def stats_stream(self, interval_sec: float = 1.0) -> AsyncIterator[Usage]:
        """Yield what it uses, at once and then every `interval_sec`, until it has ended."""
        while True:
            yield await self.stats()
            with suppress(TimeoutExpired):
                await self.wait(interval_sec)
                return

    async def top(self) -> list[ProcessInfo]:
        """Its processes, by pid of the host."""
        return await in_thread(self.sync.top)

    # -- output and more processes --------------------------------------------------------------

    async def logs(self, **options: Any) -> AsyncIterator[logs_.LogLine]:
        """Yield its log lines, oldest first; follow, since, until, tail as `Container.logs`."""
        steps = self.sync.log_steps(**options)
        try:
            for number, step in enumerate(steps):
                if not isinstance(step, logs_.Pause):
                    yield step
                    if number % _LINES_PER_TURN == 0:
                        await asyncio.sleep(0)
                    continue
                usec = step.timeout_usec
                with suppress(TimeoutError):
                    async with asyncio.timeout(None if usec < 0 else usec / 1e6):
                        await readable(step.watch.fd)
                step.over = not step.watch.wait(timeout_usec=0)
        finally:
            steps.close()

    async def popen(self, args: Sequence[str], **options: Any) -> Exec:
        """Return a started process in the container; the options are those of the sync twin."""
        begun: list[processes.Exec] = []
        try:
            await in_thread(
                lambda: begun.append(processes.Exec.start(self.sync, args, wait=False, **options))
            )
            process = Exec(begun[0])
            await process._finish_start()
        except asyncio.CancelledError:
            if begun:
                begun[0].close()
            raise
        return process

    async def exec(
        self,
        args: Sequence[str],
        *,
        input: Any = None,
        capture_output: bool = False,
        text: bool = False,
        encoding: str | None = None,
        errors: str | None = None,
        check: bool = False,
        **options: Any,
    ) -> processes.Result:
        """Run one more process in the container to its end; cancelling kills all it started."""
        codec = processes.decoder(text, encoding, errors)
        async with await self.popen(args, **pipes(options, input, capture_output)) as process:
            out, err = await process.communicate(codec.encode(input))
            record = await process.wait()
        result = processes.finish(
            f"{self.id}/{process.sync.id}", process.sync.args, record,
            codec.decode(out), codec.decode(err),
        )  # fmt: skip
        return result.check() if check else result
