"""A pool of workers on one event loop: each line of standard input is a command for a container.

    seq 1 500 | sed 's/^/--exit 0 --sleep 0./' | python examples/worker_pool.py --workers 50
    printf '%s\\n' 'echo one' 'sleep 60' | python examples/worker_pool.py \\
        --image oci:./debian:latest --timeout 5

Results are printed as they come, one JSON document per line. Ctrl-C kills and removes what runs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
import sys
from typing import Any

import pycontain
from pycontain import aio


class Pool:
    """Runs at most `workers` containers at a time; the rest waits in a queue."""

    def __init__(self, workers: int, image: str, options: dict[str, Any]) -> None:
        self._engine = aio.Engine()
        self._workers = workers
        self._image = image
        self._options = options
        self.failed = 0

    async def run(self, commands: list[str]) -> None:
        """Return when every command has been run."""
        queue: asyncio.Queue[tuple[int, str]] = asyncio.Queue()
        for job in enumerate(commands, 1):
            queue.put_nowait(job)
        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._workers, len(commands))):
                group.create_task(self._work(queue))

    async def _work(self, queue: asyncio.Queue[tuple[int, str]]) -> None:
        while not queue.empty():
            number, command = queue.get_nowait()
            report = {"job": number, "command": command, **await self._one(command)}
            print(json.dumps(report), flush=True)

    async def _one(self, command: str) -> dict[str, Any]:
        try:
            result = await self._engine.run(
                self._image, shlex.split(command), capture_output=True, text=True,
                errors="replace", **self._options,
            )  # fmt: skip
        except (pycontain.PycontainError, ValueError) as error:
            self.failed += 1
            return {"error": str(error)}
        self.failed += result.exit_code != 0
        return {
            "exit_code": result.exit_code,
            "signal": result.signal,
            "timed_out": result.timed_out,
            "oom_killed": result.oom_killed,
            "cpu_usec": result.usage.cpu_usec,
            "stdout": result.stdout,
            "stderr": result.stderr,
        }


def main() -> int:
    """Run the commands on standard input."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image", default="pycontain/hello")
    parser.add_argument("--workers", type=int, default=8, help="containers at a time")
    parser.add_argument("--memory", default="128M")
    parser.add_argument("--pids", type=int, default=64)
    parser.add_argument("--timeout", type=float, help="seconds for each command")
    parser.add_argument("--volume", action="append", default=[], help="HOST:CONTAINER[:ro]")
    arguments = parser.parse_args()

    options = {
        "memory": arguments.memory,
        "pids": arguments.pids,
        "timeout": arguments.timeout,
        "volumes": arguments.volume,
        "stdin": pycontain.DEVNULL,
    }
    pool = Pool(arguments.workers, arguments.image, options)
    try:
        asyncio.run(pool.run([line.strip() for line in sys.stdin if line.strip()]))
    except KeyboardInterrupt:
        return 130
    return 1 if pool.failed else 0


if __name__ == "__main__":
    sys.exit(main())
