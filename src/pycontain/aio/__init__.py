"""The library for asyncio: the same names, as awaitables and asynchronous iterators.

    from pycontain import aio
    result = await aio.run("pycontain/hello", ["--exit", "3"], memory="64M", timeout=10)

Waiting is readiness: one reader on a container's connection to the monitor and one on each pipe,
so a thousand running containers cost no thread. What touches the disk (finding an image, making
and removing a container) runs in the loop's thread pool; a cancelled task waits for such a step,
so that it can undo it. Every object here is a thin one around its twin, `sync`, and belongs to one
event loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pycontain import engine as engines
from pycontain.aio.container import Container
from pycontain.aio.running import Exec, pipes
from pycontain.aio.waiting import in_thread
from pycontain.runtime import process as processes
from pycontain.runtime.pruning import PruneReport
from pycontain.runtime.run import NeverRan

__all__ = ["Container", "Engine", "Exec", "run"]


async def run(
    image: str, command: Sequence[str] | None = None, *, engine: Engine | None = None, **words: Any
) -> processes.Result:
    """Run a container to its end, remove it, and return how it ended; see `pycontain.run`.

    Cancelling it kills and removes the container first.
    """
    return await (engine or Engine()).run(image, command, **words)


class Engine:
    """`pycontain.Engine` for one event loop; without arguments the usual one of this user."""

    def __init__(self, sync: engines.Engine | None = None, **roots: str | None) -> None:
        self.sync = sync or (engines.Engine(**roots) if roots else engines.default_engine())

    def container(
        self, image: str, command: Sequence[str] | None = None, **words: Any
    ) -> Container:
        """Return a handle; the image is looked up when it is created or started."""
        return Container(image, command, engine=self, **words)

    async def run(
        self,
        image: str,
        command: Sequence[str] | None = None,
        *,
        input: Any = None,
        capture_output: bool = False,
        text: bool = False,
        encoding: str | None = None,
        errors: str | None = None,
        check: bool = False,
        **words: Any,
    ) -> processes.Result:
        """As `pycontain.run`. Cancelling it kills and removes the container first."""
        codec = processes.decoder(text, encoding, errors)
        container = self.container(image, command, **pipes(words, input, capture_output))
        try:
            for attempt in range(engines.START_ATTEMPTS):
                try:
                    await container.start(quiet=True)
                    out, err = await container.communicate(codec.encode(input))
                    record = await container.wait()
                    break
                except NeverRan:
                    if attempt == engines.START_ATTEMPTS - 1:
                        raise
                    await in_thread(engines.discard_start, container.sync)
        finally:
            await container.remove(force=True)
        result = processes.finish(
            container.id, container.sync.args, record, codec.decode(out), codec.decode(err)
        )
        return result.check() if check else result

    async def get(self, ref: str) -> Container:
        """Return a handle of an existing container by id, unique prefix of one, or name."""
        return Container.around(await in_thread(self.sync.get, ref))

    async def list(self) -> list[Container]:
        """Return handles of all containers, newest first."""
        return [Container.around(found) for found in await in_thread(self.sync.list)]

    async def prune(self, *, exited: bool = True) -> PruneReport:
        """No ended container is left, nor anything that a crash left of one."""
        return await in_thread(lambda: self.sync.prune(exited=exited))

    async def info(self) -> dict[str, Any]:
        """Return what this host can do and, where it can't, why not."""
        return await in_thread(self.sync.info)
