"""Builds the native part: the CFFI extension `_ext` and the static programs in bin/.

setup.py uses it (`ffibuilder`, `build_programs`); as a script it offers the developers' steps:
    python build.py programs [DIR]      CC=aarch64-linux-gnu-gcc cross-compiles
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import cffi

HERE = Path(__file__).resolve().parent

# Program -> sources (globs). The freestanding ones share start.c (entry) and freestanding.c (mem*).
PROGRAMS: dict[str, tuple[str, ...]] = {
    "monitor": (
        "monitor.c",
        "monitor_*.c",
        "keeper.c",
        "start.c",
        "freestanding.c",
        "plan_check.c",
        "record_check.c",
        "child.c",
        "child_*.c",
        "child_mount.c",
    ),
    "init": ("init.c", "start.c", "freestanding.c"),
    "hello": ("hello.c", "start.c", "freestanding.c"),
}

FREESTANDING_FLAGS = (
    "-std=gnu17",
    "-Os",
    "-ffreestanding",
    "-fno-pic",
    "-fno-asynchronous-unwind-tables",
    "-fno-unwind-tables",
    "-fno-stack-protector",
    # Otherwise gcc turns the loop inside memset() into a call of memset().
    "-fno-tree-loop-distribute-patterns",
    "-ffunction-sections",
    "-fdata-sections",
)
LINK_FLAGS = (
    "-static",
    "-nostdlib",
    "-no-pie",
    "-Wl,--gc-sections",
    "-Wl,--build-id=none",
    "-Wl,-z,noexecstack",
    # One read-execute segment instead of three: two pages fewer to map at every start.
    "-Wl,-z,noseparate-code",
    "-s",
)


def _marked_region(name: str) -> str:
    """Return the lines of a source file between CFFI-BEGIN and CFFI-END."""
    text = (HERE / name).read_text()
    begin = text.index("CFFI-BEGIN")
    return text[text.index("\n", begin) + 1 : text.rindex("\n", begin, text.index("CFFI-END"))]


def _version() -> str:
    namespace: dict[str, str] = {}
    exec((HERE / "version.py").read_text(), namespace)
    return namespace["VERSION"]


def _make_ffibuilder() -> cffi.FFI:
    builder = cffi.FFI()
    prototypes = _marked_region("sys.c")
    builder.cdef(_marked_region("plan.h"))
    builder.cdef(prototypes)
    relative = os.path.relpath(HERE)
    builder.set_source(
        "pycontain._native._ext",
        f'#include "plan.h"\n{prototypes}',
        sources=[f"{relative}/{name}.c" for name in ("sys", "plan_check", "record_check")],
        depends=[f"{relative}/{name}" for name in ("plan.h", "sys.h", "check.h", "build.py", "version.py")],
        include_dirs=[relative],
        define_macros=[("PYC_VERSION", f'"{_version()}"')],
        extra_compile_args=["-std=gnu17", "-O2", "-Wall"],
    )
    return builder


def program_sources(name: str) -> list[Path]:
    """Return the sources of a program, in a fixed order; a pattern may match nothing."""
    return [path for pattern in PROGRAMS[name] for path in sorted(HERE.glob(pattern))]


def build_programs(target: Path, cc: str | None = None) -> list[Path]:
    """Make the static programs in `target` newer than their sources; return all of them."""
    compiler = shlex.split(cc or os.environ.get("CC") or "gcc")
    target.mkdir(parents=True, exist_ok=True)
    made = []
    for name, patterns in PROGRAMS.items():
        if any(not (HERE / p).exists() for p in patterns if "*" not in p):
            continue
        sources = program_sources(name)
        inputs = [*sources, *HERE.glob("*.h"), HERE / "build.py"]
        output = target / name
        made.append(output)
        if output.exists() and output.stat().st_mtime > max(p.stat().st_mtime for p in inputs):
            continue
        partial = output.with_suffix(".new")
        command = [*compiler, *FREESTANDING_FLAGS, *LINK_FLAGS, "-o", str(partial)]
        subprocess.run([*command, *map(str, sources)], check=True)
        partial.replace(output)  # whoever executes the old program keeps it
    return made


if __name__ == "__main__":
    if sys.argv[1:2] == ["programs"]:
        print(*build_programs(Path(sys.argv[2]) if sys.argv[2:] else HERE / "bin"), sep="\n")
else:
    ffibuilder = _make_ffibuilder()
