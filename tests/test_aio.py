"""pycontain.aio without a kernel: its shape follows the synchronous API, its primitives hold."""

from __future__ import annotations

import asyncio
import inspect
import os
import threading

import pytest

from pycontain import aio
from pycontain.aio.waiting import finished, in_thread, readable
from pycontain.engine import Engine
from pycontain.errors import WrongState
from pycontain.runtime.container import Container
from pycontain.runtime.process import Exec


@pytest.mark.parametrize(
    ("twin", "sync", "names"),
    [
        (aio.Engine, Engine, "run container get list prune info"),
        (
            aio.Container,
            Container,
            "create start wait poll communicate kill terminate send_signal stop pause resume "
            "update stats top exec popen logs remove id name pid",
        ),
        (aio.Exec, Exec, "wait poll communicate kill send_signal stats close"),
    ],
)
def test_names_are_the_same(twin: type, sync: type, names: str) -> None:
    """Every name has its synchronous twin."""
    for name in names.split():
        assert hasattr(twin, name), name
        assert hasattr(sync, name), name


@pytest.mark.parametrize("name", ["wait", "communicate", "stop", "remove", "send_signal"])
def test_parameters_are_the_same(name: str) -> None:
    """What the twins take is what the synchronous methods take."""
    mine = inspect.signature(getattr(aio.Container, name)).parameters
    theirs = inspect.signature(getattr(Container, name)).parameters
    assert list(mine) == list(theirs)
    assert [p.default for p in mine.values()] == [p.default for p in theirs.values()]


def test_a_handle_needs_nothing() -> None:
    """A container that nobody created has looked nothing up and says so."""
    container = aio.Container("no/such:image")
    with pytest.raises(WrongState, match="not created"):
        _ = container.id
    asyncio.run(container.remove())  # there is nothing to remove


def test_readable_takes_no_thread(no_fd_left: None) -> None:
    """Waiting for a descriptor is a reader of the loop, gone afterwards."""

    async def scenario() -> None:
        read_end, write_end = os.pipe()
        read_end_2, write_end_2 = os.pipe()
        waiting = asyncio.create_task(readable(read_end))
        await asyncio.sleep(0)
        assert threading.active_count() == threads
        os.write(write_end, b"x")
        await waiting
        assert not asyncio.get_running_loop().remove_reader(read_end)
        waiting = asyncio.create_task(readable(read_end_2))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        for fd in (read_end, read_end_2, write_end_2):
            os.close(fd)
        os.close(write_end)

    threads = threading.active_count()
    asyncio.run(scenario())


def test_a_step_is_never_torn() -> None:
    """A cancellation, even a second one, takes effect after the step in the thread."""
    go, ended = threading.Event(), threading.Event()

    def step() -> None:
        go.wait(30)
        ended.set()

    async def scenario() -> None:
        task = asyncio.create_task(in_thread(step))
        await asyncio.sleep(0.01)
        for _ in range(2):
            task.cancel()
            await asyncio.sleep(0.01)
            assert not task.done()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()

    asyncio.run(scenario())


def test_errors_of_a_step_reach_the_caller() -> None:
    """What a shielded step raises is raised."""

    async def fail() -> None:
        raise ValueError("so")

    async def scenario() -> None:
        with pytest.raises(ValueError, match="so"):
            await finished(fail())

    asyncio.run(scenario())
