"""A small CI runner: the steps of a TOML file, each in a container of its own, in order.

    python examples/ci_runner.py pipeline.toml --workspace . --cache ~/.cache/ci

    image = "oci:./build:latest"      # of every step that names no other
    [[steps]]
    name = "test"
    command = ["make", "test"]        # or: script = "make test"  (sh -e)
    timeout = "10m"                   # any option of pycontain.run: memory, cpus, env, user, ...
    memory = "1G"

The workspace is /workspace and the cache is /cache in every step. Output is shown as it comes; the
first step that fails ends the run, and its exit code is ours.
"""

from __future__ import annotations

import argparse
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pycontain


def command_of(step: dict[str, Any]) -> list[str] | None:
    """Return what the step executes; None is the image's own command."""
    script = step.pop("script", None)
    if script is not None:
        return ["sh", "-ec", script]
    command: list[str] | None = step.pop("command", None)
    return command


def run_step(
    engine: pycontain.Engine, step: dict[str, Any], image: str, volumes: list[str]
) -> pycontain.ExitRecord:
    """Run one step, show its output line by line, and return how it ended."""
    name = step.pop("name", "step")
    image = step.pop("image", image)
    volumes = [*volumes, *step.pop("volumes", ())]
    command = command_of(step)
    # log=True: the output goes through the log, so that no line is lost if we are slow.
    with engine.container(image, command, log=True, volumes=volumes, **step) as container:
        container.start()
        for line in container.logs(follow=True):
            print(f"[{name}] {line.text}", flush=True)
        return container.wait()


def describe(record: pycontain.ExitRecord) -> str:
    """Return in a few words how a step ended."""
    if record.timed_out:
        return "timed out"
    if record.oom_killed:
        return "out of memory"
    if record.signal is not None:
        return f"killed by signal {record.signal}"
    return "ok" if record.exit_code == 0 else f"failed with {record.exit_code}"


def main() -> int:
    """Run the pipeline that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pipeline", type=Path, help="the TOML file")
    parser.add_argument("--workspace", type=Path, default=Path("."))
    parser.add_argument("--cache", type=Path, help="kept between runs")
    arguments = parser.parse_args()

    pipeline = tomllib.loads(arguments.pipeline.read_text())
    volumes = [f"{arguments.workspace.resolve()}:/workspace"]
    if arguments.cache is not None:
        arguments.cache.mkdir(parents=True, exist_ok=True)
        volumes.append(f"{arguments.cache.resolve()}:/cache")
    image = pipeline.get("image", "pycontain/hello")
    engine = pycontain.Engine()
    for number, step in enumerate(pipeline.get("steps", []), 1):
        name = step.setdefault("name", f"step {number}")
        step.setdefault("cwd", "/workspace")
        began = time.monotonic()
        try:
            record = run_step(engine, step, image, volumes)
        except pycontain.PycontainError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 125
        print(f"{name}: {describe(record)} after {time.monotonic() - began:.2f} s", flush=True)
        if record.exit_code != 0:
            return record.exit_code if record.exit_code is not None else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
