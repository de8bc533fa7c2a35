"""Run Python code that nobody trusts, with limits, and say what became of it.

    python examples/sandbox.py --image oci:./python:latest program.py
    echo 'print(6 * 7)' | python examples/sandbox.py --image rootfs:/srv/python -
    python examples/sandbox.py            # no image: shows what the code would be able to see

The code has no network, no way to write but /tmp, and no right on the host. What it writes is
captured up to a limit, and the exit code of this program is 0 only if the code ended with 0.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pycontain

OUTPUT_LIMIT_BYTES = 1 << 20


def limits(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options of every sandboxed run."""
    return {
        "memory": arguments.memory,
        "memory_swap": arguments.memory,  # memory and swap together: no swap
        "cpus": arguments.cpus,
        "pids": arguments.pids,
        "timeout": arguments.timeout,
        "network": "none",
        "read_only": True,
        "tmpfs": ["/tmp:size=16m,mode=1777"],
        "user": "65534:65534",
        "cap_drop": ["ALL"],
        "ulimits": ["core=0", "fsize=16777216"],
        "volumes": arguments.volume,
        "capture_output": True,
    }


def verdict(result: pycontain.Result) -> str:
    """Return in words how the code ended."""
    if result.timed_out:
        return "took too long"
    if result.oom_killed:
        return "needed too much memory"
    if result.pids_limit_hit:
        return f"wanted too many processes, then exit code {result.returncode}"
    if result.signal is not None:
        return f"was killed by signal {result.signal}"
    return f"exit code {result.exit_code}"


def main() -> int:
    """Run the program that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("program", nargs="?", help="a Python file; - is standard input")
    parser.add_argument("--image", help="an image with python3; without it the embedded one")
    parser.add_argument("--volume", action="append", default=[], help="HOST:CONTAINER:ro")
    parser.add_argument("--memory", default="128M")
    parser.add_argument("--cpus", type=float, default=1.0)
    parser.add_argument("--pids", type=int, default=32)
    parser.add_argument("--timeout", type=float, default=5.0, help="seconds")
    arguments = parser.parse_args()

    if arguments.image is None or arguments.program is None:
        result = pycontain.run("pycontain/hello", **limits(arguments))
    else:
        if arguments.program == "-":
            code = sys.stdin.buffer.read()
        else:
            code = Path(arguments.program).read_bytes()
        # -I: no site directory and no variables of the environment; the code comes by its stdin.
        command = ["python3", "-I", "-"]
        result = pycontain.run(arguments.image, command, input=code, **limits(arguments))

    sys.stdout.buffer.write(result.stdout[:OUTPUT_LIMIT_BYTES])
    sys.stderr.buffer.write(result.stderr[:OUTPUT_LIMIT_BYTES])
    cpu_msec = (result.usage.cpu_usec or 0) / 1000
    peak_mib = (result.usage.memory_peak_bytes or 0) / (1 << 20)
    print(f"-- {verdict(result)}; {cpu_msec:.0f} ms of CPU, {peak_mib:.1f} MiB", file=sys.stderr)
    return 0 if result.exit_code == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
