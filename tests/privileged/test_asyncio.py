"""pycontain.aio against a real kernel: many at once, cancellation, pipes, logs, execs."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import userland

from pycontain import DEVNULL, PIPE, ContainerFailed, Engine, aio
from pycontain.errors import CommandNotFound, ImageNotFound, InvalidInput, TimeoutExpired

HELLO = "pycontain/hello"
FOREVER = ["--sleep", "1000"]
Scenario = Callable[[aio.Engine], Awaitable[None]]


def play(engine: Engine, scenario: Scenario) -> None:
    """Run a scenario in a loop of its own."""

    async def main() -> None:
        await scenario(aio.Engine(engine))

    asyncio.run(main())


@pytest.fixture
def image(tmp_path: Path) -> str:
    return userland.make(tmp_path / "root")


def sh(script: str) -> list[str]:
    return ["sh", "-c", script]


def test_run(engine: Engine, image: str) -> None:
    """`run` has the words of its twin: input, output, text, check."""

    async def scenario(engine: aio.Engine) -> None:
        result = await engine.run(
            image, sh("cat; echo bad >&2; exit 3"), volumes=[userland.USR],
            input="good\n", capture_output=True, text=True,
        )  # fmt: skip
        assert (result.stdout, result.stderr, result.exit_code) == ("good\n", "bad\n", 3)
        with pytest.raises(ContainerFailed) as caught:
            await engine.run(HELLO, ["--exit", "4"], check=True)
        assert caught.value.result.exit_code == 4
        data = os.urandom(1 << 20)
        result = await engine.run(
            image, ["cat"], volumes=[userland.USR], input=data, capture_output=True
        )
        assert result.stdout == data

    play(engine, scenario)


def test_refusals(engine: Engine) -> None:
    """What can't be run raises what the twin raises, and leaves nothing."""

    async def scenario(engine: aio.Engine) -> None:
        with pytest.raises(ImageNotFound):
            await engine.run("no/such:image")
        with pytest.raises(CommandNotFound):
            await engine.run(HELLO, [], entrypoint="/nope")
        with pytest.raises(InvalidInput, match="memory"):
            await engine.run(HELLO, memory="lots")
        async with engine.container(HELLO, [], entrypoint="/nope") as container:
            with pytest.raises(CommandNotFound):
                await container.start()
        assert await engine.list() == []

    play(engine, scenario)


def test_two_hundred_at_once(engine: Engine) -> None:
    """200 containers run at the same time in one loop, with no thread for each."""
    most = 0

    async def scenario(engine: aio.Engine) -> None:
        nonlocal most

        async def one(number: int) -> None:
            nonlocal most
            result = await engine.run(
                HELLO, ["--sleep", "1.5", "--exit", str(number)], capture_output=True
            )
            assert result.exit_code == number
            most = max(most, threading.active_count())

        await asyncio.gather(*(one(number) for number in range(200)))

    play(engine, scenario)
    assert most < 50  # the loop's pool, and what the tests have


def test_timeout(engine: Engine) -> None:
    """`timeout` kills, and is no exception."""

    async def scenario(engine: aio.Engine) -> None:
        result = await engine.run(HELLO, FOREVER, timeout=0.2)
        assert result.timed_out and result.signal == signal.SIGKILL

    play(engine, scenario)


def test_cancelled_at_any_moment(engine: Engine) -> None:
    """A cancelled run is killed and removed, wherever it was at that moment."""

    async def scenario(engine: aio.Engine) -> None:
        await engine.run(HELLO, ["--exit", "0"])  # the image is unpacked, the monitor runs
        for number in range(30):
            task = asyncio.create_task(engine.run(HELLO, FOREVER, capture_output=True))
            await asyncio.sleep(number * 0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await engine.list() == []
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await engine.run(HELLO, FOREVER)
        assert await engine.list() == []

    play(engine, scenario)


def test_a_loop_that_shuts_down(engine: Engine) -> None:
    """When the main task ends first, asyncio.run cancels all: the containers are removed."""
    engine.run(HELLO, ["--exit", "0"])
    tasks = []

    async def scenario(engine: aio.Engine) -> None:
        tasks.extend(
            asyncio.create_task(engine.run(HELLO, FOREVER, capture_output=True)) for _ in range(10)
        )
        await asyncio.sleep(0.03)  # some run, some are being made, some wait for a thread

    play(engine, scenario)
    assert all(task.cancelled() for task in tasks)
    assert engine.list() == []


def test_several_tasks_wait(engine: Engine) -> None:
    """Any number of tasks wait for one container; a cancelled or late one disturbs none."""

    async def scenario(engine: aio.Engine) -> None:
        async with engine.container(HELLO, FOREVER) as container:
            await container.start()
            waiters = [asyncio.create_task(container.wait()) for _ in range(5)]
            with pytest.raises(TimeoutExpired):
                await container.wait(0.05)
            waiters.pop().cancel()
            assert await container.poll() is None
            other = await engine.get(container.id)
            waiters.append(asyncio.create_task(other.wait()))
            await asyncio.sleep(0.05)
            await container.kill()
            records = await asyncio.gather(*waiters)
            assert {record.signal for record in records} == {signal.SIGKILL}
            assert await container.poll() == await container.wait() == records[0]

    play(engine, scenario)


def test_life(engine: Engine) -> None:
    """pause, resume, update, stats, top, stop as awaitables."""

    async def scenario(engine: aio.Engine) -> None:
        async with engine.container(HELLO, FOREVER, name="alpha") as container:
            await container.create()
            await container.start()
            await container.pause()
            assert container.sync.status == "paused"
            await container.resume()
            await container.update(pids=9)
            assert (await container.stats()).pids_current == 1
            assert [p.pid for p in await container.top()] == [container.pid]
            assert [c.name for c in await engine.list()] == ["alpha"]
            assert (await container.stop(0.05)).signal == signal.SIGKILL
        assert (await engine.prune()).containers == ()
        assert await engine.info()

    play(engine, scenario)


def test_stats_stream(engine: Engine) -> None:
    """Usage comes at intervals until the end."""

    async def scenario(engine: aio.Engine) -> None:
        async with engine.container(HELLO, ["--sleep", "0.3"]) as container:
            await container.start()
            seen = [usage async for usage in container.stats_stream(0.05)]
        assert len(seen) >= 2

    play(engine, scenario)


def test_exec(engine: Engine, image: str) -> None:
    """Execs run side by side; a cancelled one is killed with all that it started."""

    async def scenario(engine: aio.Engine) -> None:
        async with engine.container(image, sh("sleep 1000"), volumes=[userland.USR]) as container:
            await container.start()
            results = await asyncio.gather(
                *(container.exec(sh(f"cat; exit {n}"), input=b"x", capture_output=True)
                  for n in range(8))
            )  # fmt: skip
            assert [r.exit_code for r in results] == list(range(8))
            assert {r.stdout for r in results} == {b"x"}
            with pytest.raises(CommandNotFound):
                await container.exec(["nope"])
            task = asyncio.create_task(container.exec(sh("setsid sleep 997 & sleep 997")))
            while not any("997" in p.args for p in await container.top()):
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            while any("997" in p.args for p in await container.top()):
                await asyncio.sleep(0.01)
            async with await container.popen(["cat"], stdin=PIPE, stdout=PIPE) as process:
                assert await process.poll() is None
                assert await process.communicate(b"through") == (b"through", None)
                assert (await process.wait()).exit_code == 0

    play(engine, scenario)


def test_logs_as_they_come(engine: Engine, image: str) -> None:
    """`async for` follows a log to the container's end while the loop does other things."""

    async def scenario(engine: aio.Engine) -> None:
        script = "for i in 1 2 3 4 5; do echo $i; sleep 0.02; done"
        async with engine.container(
            image, sh(script), volumes=[userland.USR], detach=True
        ) as container:
            await container.start()
            ticks = 0

            async def tick() -> None:
                nonlocal ticks
                while True:
                    ticks += 1
                    await asyncio.sleep(0.005)

            ticking = asyncio.create_task(tick())
            lines = [line.text async for line in container.logs(follow=True)]
            ticking.cancel()
            assert lines == ["1", "2", "3", "4", "5"]
            assert ticks > 3
            assert [line.text async for line in container.logs(tail=2)] == ["4", "5"]

    play(engine, scenario)


def test_following_may_stop_early(engine: Engine, image: str) -> None:
    """Leaving the loop over a followed log leaves no descriptor and no reader."""

    async def scenario(engine: aio.Engine) -> None:
        async with engine.container(
            image, sh("echo one; sleep 1000"), volumes=[userland.USR], detach=True
        ) as container:
            await container.start()
            lines = container.logs(follow=True)
            assert (await anext(lines)).text == "one"
            waiting = asyncio.create_task(anext(lines))  # type: ignore[arg-type]
            await asyncio.sleep(0.05)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await lines.aclose()  # type: ignore[attr-defined]

    play(engine, scenario)


def test_a_killed_monitor(engine: Engine, image: str) -> None:
    """Waiting and reading go on when the monitor's worker is killed."""

    async def scenario(async_engine: aio.Engine) -> None:
        async with async_engine.container(
            image, sh("echo before; read x; echo $x; exit 44"), volumes=[userland.USR],
            stdin=PIPE, stdout=PIPE,
        ) as container:  # fmt: skip
            await container.start()
            waiting = asyncio.create_task(container.wait())
            await asyncio.sleep(0.05)
            os.kill(engine.host.launcher.info().pid, signal.SIGKILL)
            await asyncio.sleep(0.05)
            assert await container.communicate(b"after\n") == (b"before\nafter\n", None)
            assert (await waiting).exit_code == 44

    play(engine, scenario)


def test_the_loop_stays_responsive(engine: Engine) -> None:
    """Starting and removing containers never holds up the loop for long."""
    longest = 0.0

    async def scenario(engine: aio.Engine) -> None:
        nonlocal longest
        loop = asyncio.get_running_loop()

        async def watch() -> None:
            nonlocal longest
            while True:
                before = loop.time()
                await asyncio.sleep(0.005)
                longest = max(longest, loop.time() - before)

        watching = asyncio.create_task(watch())
        for _ in range(10):
            await asyncio.gather(
                *(engine.run(HELLO, ["--exit", "1"], stdout=DEVNULL) for _ in range(4))
            )
        watching.cancel()

    play(engine, scenario)
    assert longest < 2.0  # a hang, not a measure
