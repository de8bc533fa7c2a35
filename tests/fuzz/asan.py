"""Builds plan_fuzz.c with ASan and UBSan and runs it: `python tests/fuzz/asan.py [ITERATIONS]`."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
NATIVE = HERE.parents[1] / "src/pycontain/_native"
FLAGS = ("-std=gnu17", "-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def build(directory: Path) -> Path:
    """Return the driver, compiled into `directory`; CalledProcessError if that is not possible."""
    program = directory / "plan_fuzz"
    sources = [HERE / "plan_fuzz.c", NATIVE / "plan_check.c", NATIVE / "record_check.c"]
    command = ["gcc", *FLAGS, f"-I{NATIVE}", "-o", str(program), *map(str, sources)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return program


def run(program: Path, iterations: int, seed: int = 1) -> str:
    """Mutate the sample; return the driver's summary, or raise with the sanitizer's report."""
    sys.path.insert(0, str(HERE.parent / "native"))
    import plans

    from pycontain import _native as native

    ops, arena, header = plans.every_op()
    sample = program.with_name("sample")
    sample.write_bytes(plans.record() + native.encode_plan(ops, arena, **header))
    command = [str(program), str(sample), str(plans.RECEIVED), str(iterations), str(seed)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise AssertionError(done.stdout + done.stderr)
    return done.stdout


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        count = int(sys.argv[1]) if sys.argv[1:] else 200_000
        print(run(build(Path(name)), count), end="")
