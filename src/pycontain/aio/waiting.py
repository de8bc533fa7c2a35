"""The event loop's primitives: a descriptor that becomes readable, a step that must not be torn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from functools import partial
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
    """Return what `call` returns, from the pool. A cancellation waits until it has returned.

    No task of its own: a loop that shuts down cancels every task, and a thread can't be cancelled.
    """
    step = partial(copy_context().run, call, *args)
    return await _unbroken(asyncio.get_running_loop().run_in_executor(None, step))


async def finished(work: Coroutine[Any, Any, _T]) -> _T:
    """Return what `work` returns; a cancellation of the caller takes effect only afterwards."""
    return await _unbroken(asyncio.ensure_future(work))


async def _unbroken(future: asyncio.Future[_T]) -> _T:
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        try:
            await settled(future)
        finally:
            if not future.cancelled():
                future.exception()  # seen: the cancellation is what the caller hears of
        raise


async def settled(future: asyncio.Future[Any]) -> None:
    """Return once `future` is done, through any number of cancellations; they are raised then."""
    cancelled = None
    while not future.done():
        try:
            await asyncio.wait({future})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
