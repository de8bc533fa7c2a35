"""The event loop's primitives: a descriptor that becomes readable, a step that must not be torn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from select import POLLHUP, POLLIN, poll
from typing import Any, TypeVar

__all__ = ["finished", "in_thread", "is_hung_up", "readable", "settled"]

_T = TypeVar("_T")


async def readable(fd: int) -> None:
    """Return once `fd` is readable, or hung up."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(fd, _resolve, ready)
    try:
        await ready
    finally:
        loop.remove_reader(fd)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def is_hung_up(fd: int) -> bool:
    """Whether the other end is closed; something may still be there to read."""
    look = poll()
    look.register(fd, POLLIN)
    return any(events & POLLHUP for _, events in look.poll(0))


async def in_thread(call: Callable[..., _T], *args: Any) -> _T:
    """Return what `call` returns, from the pool. A cancellation waits until it has returned."""
    return await finished(asyncio.to_thread(call, *args))


async def finished(work: Coroutine[Any, Any, _T]) -> _T:
    """Return what `work` returns; a cancellation of the caller takes effect only afterwards."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await settled(task)
        if not task.cancelled() and task.exception() is not None:
            pass  # retrieved: the cancellation is what the caller asked to hear of
        raise


async def settled(task: asyncio.Task[Any]) -> None:
    """Return once `task` is done, through any number of cancellations; they are raised then."""
    cancelled = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
