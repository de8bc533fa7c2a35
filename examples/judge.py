"""An online judge: a program against its tests, with exact limits, and a verdict for each.

    python examples/judge.py tests/ --image oci:./gcc:latest --volume ./solution:/solution:ro \\
        --time 1.0 --memory 64M -- /solution/a.out
    python examples/judge.py tests/ -- --alloc 4M       # the embedded image's program

tests/ holds NAME.in and NAME.out. Verdicts: OK, WA (wrong answer), TLE (time limit: CPU time, or
three times as much on the clock), MLE (memory limit), RE (runtime error: exit code or signal).
The verdicts come from the kernel's own account of the container, taken after its last process.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pycontain


class Limits(NamedTuple):
    """Of one test."""

    cpu_sec: float
    memory: str


class Judged(NamedTuple):
    """How one test went."""

    verdict: str
    cpu_msec: float
    memory_mib: float


def judge(
    image: str, command: list[str], volumes: list[str], data: bytes, expected: bytes, limits: Limits
) -> Judged:
    """Run the program on one input and return the verdict."""
    result = pycontain.run(
        image,
        command,
        input=data,
        stdout=pycontain.PIPE,
        stderr=pycontain.DEVNULL,
        memory=limits.memory,
        memory_swap=limits.memory,
        cpus=1,
        pids=16,
        timeout=limits.cpu_sec * 3,  # a sleeping program burns no CPU, and must end too
        read_only=True,
        volumes=volumes,
        user="65534:65534",
        cap_drop=["ALL"],
    )
    cpu_usec = result.usage.cpu_usec or 0
    return Judged(
        verdict(result, cpu_usec, expected, limits),
        cpu_usec / 1000,
        (result.usage.memory_peak_bytes or 0) / (1 << 20),
    )


def verdict(result: pycontain.Result, cpu_usec: int, expected: bytes, limits: Limits) -> str:
    """Return the verdict; a limit comes before what its excess led to."""
    if result.oom_killed:
        return "MLE"
    if result.timed_out or cpu_usec > limits.cpu_sec * 1e6:
        return "TLE"
    if result.exit_code != 0:
        return "RE"
    return "OK" if result.stdout.split() == expected.split() else "WA"


def main() -> int:
    """Judge the program that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tests", type=Path, help="a directory with NAME.in and NAME.out")
    parser.add_argument("--image", default="pycontain/hello")
    parser.add_argument("--volume", action="append", default=[], help="HOST:CONTAINER[:ro]")
    parser.add_argument("--time", type=float, default=1.0, help="seconds of CPU")
    parser.add_argument("--memory", default="64M")
    parser.usage = "%(prog)s [options] tests -- COMMAND [ARGUMENT...]"
    ours, command = sys.argv[1:], []
    if "--" in ours:
        at = ours.index("--")
        ours, command = ours[:at], ours[at + 1 :]
    arguments = parser.parse_args(ours)

    limits = Limits(arguments.time, arguments.memory)
    verdicts: Counter[str] = Counter()
    inputs = sorted(arguments.tests.glob("*.in"))
    if not inputs:
        parser.error(f"{arguments.tests} has no *.in")
    for path in inputs:
        expected = path.with_suffix(".out").read_bytes()
        found = judge(
            arguments.image, command, arguments.volume, path.read_bytes(), expected, limits
        )
        verdicts[found.verdict] += 1
        print(f"{path.stem:<20} {found.verdict:<4} {found.cpu_msec:8.1f} ms "
              f"{found.memory_mib:8.1f} MiB", flush=True)  # fmt: skip
    print(" ".join(f"{name}={count}" for name, count in sorted(verdicts.items())))
    return 0 if set(verdicts) == {"OK"} else 1


if __name__ == "__main__":
    sys.exit(main())
