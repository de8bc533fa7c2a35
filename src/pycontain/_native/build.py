"""Builds the native part: the CFFI extension `_ext` and the static programs in bin/.

setup.py uses it (`ffibuilder`, `build_programs`); as a script it offers the developers' steps:
    python build.py programs [DIR]      CC=aarch64-linux-gnu-gcc cross-compiles
    python build.py stub                writes _ext.pyi
    python build.py lint                strict warnings and -fanalyzer over all C files
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import cffi

HERE = Path(__file__).resolve().parent

# Program -> sources (globs). The freestanding ones share start.c (entry) and freestanding.c (mem*).
PROGRAMS: dict[str, tuple[str, ...]] = {
    "monitor": (
        "monitor.c",
        "monitor_cri.c",
        "monitor_exit.c",
        "monitor_log.c",
        "monitor_spawn.c",
        "monitor_state.c",
        "monitor_sys.c",
        "monitor_tty.c",
        "monitor_*.c",
        "keeper.c",
        "start.c",
        "freestanding.c",
        "plan_check.c",
        "record_check.c",
        "child.c",
        "child_*.c",
    ),
    "init": ("init.c", "start.c", "freestanding.c"),
    "hello": ("hello.c", "hello_*.c", "start.c", "freestanding.c"),
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


_STUB_HEAD = """\
# Generated from plan.h and sys.c by build.py; `make venv` keeps it up to date.
from typing import Any, Final

class CData:
    def __getitem__(self, index: int) -> int: ...

class FFI:
    def new(self, cdecl: str, init: object = ...) -> Any: ...
    def sizeof(self, cdecl: str) -> int: ...
    def buffer(self, cdata: Any, size: int = ...) -> Any: ...
    def string(self, cdata: Any, maxlen: int = ...) -> bytes: ...
    def memmove(self, dest: Any, src: bytes | Any, n: int) -> None: ...

class Lib:
"""

# cffi's generated C would not pass these, so our own files are compiled for them separately.
LINT_FLAGS = (
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wshadow",
    "-Wconversion",
    "-Wno-sign-conversion",
    "-Wswitch-enum",
    "-Wvla",
    "-Wundef",
    "-Wpointer-arith",
    "-Wstrict-prototypes",
    "-Wmissing-prototypes",
    "-Wcast-qual",
    "-Wformat=2",
    "-fanalyzer",
)
LINT_COMPILERS = ("gcc", "aarch64-linux-gnu-gcc")  # the second one if it is installed


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
        depends=[
            f"{relative}/{name}"
            for name in ("plan.h", "sys.h", "check.h", "build.py", "version.py")
        ],
        include_dirs=[relative],
        define_macros=[("PYC_VERSION", f'"{_version()}"')],
        extra_compile_args=["-std=gnu17", "-O2", "-Wall"],
        extra_link_args=["-s"],
    )
    return builder


def stub_text() -> str:
    """Return _ext.pyi: what `ffi` and `lib` offer, taken from what CFFI is given."""
    plan, prototypes = _marked_region("plan.h"), _marked_region("sys.c")
    plain = re.sub(r"/[*].*?[*]/", "", plan + prototypes, flags=re.DOTALL)
    constants = re.findall(r"\b(PYC_\w+) =", plain)
    lines = [_STUB_HEAD, *(f"    {name}: Final[int]\n" for name in constants)]
    for returns, name, args in re.findall(r"([\w ]+?[ *]+)(pyc_\w+)\(([^)]*)\);", plain):
        typed = [_stub_argument(arg) for arg in args.split(",") if arg.strip() != "void"]
        value = "int" if "*" not in returns else "CData"
        lines.append(f"    def {name}({', '.join(['self', *typed])}) -> {value}: ...\n")
    return "".join([*lines, "\nffi: FFI\nlib: Lib\n"])


def _stub_argument(argument: str) -> str:
    argument = " ".join(argument.split())
    name = re.findall(r"\w+", argument)[-1]
    kind = argument.removesuffix(name)
    if "*" not in kind:
        return f"{name}: int"
    if "const" not in kind:
        return f"{name}: CData"
    return f"{name}: bytes" if "char" in kind else f"{name}: bytes | CData"


def write_stub() -> None:
    """Make _ext.pyi say what plan.h and sys.c say; it is kept in git for readers and mypy."""
    path, text = HERE / "_ext.pyi", stub_text()
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def program_sources(name: str) -> list[Path]:
    """Return the sources of a program, in a fixed order; a pattern may match nothing."""
    return list(dict.fromkeys(p for glob in PROGRAMS[name] for p in sorted(HERE.glob(glob))))


def build_programs(target: Path, cc: str | None = None) -> list[Path]:
    """Make the static programs in `target` newer than their sources; return all of them."""
    compiler = shlex.split(cc or os.environ.get("CC") or "gcc")
    target.mkdir(parents=True, exist_ok=True)
    made = []
    for name, patterns in PROGRAMS.items():
        missing = [p for p in patterns if "*" not in p and not (HERE / p).exists()]
        if missing:  # while the first version is being written
            print(f"warning: no {name} yet, it lacks {', '.join(missing)}", file=sys.stderr)
            continue
        sources = program_sources(name)
        inputs = [*sources, *HERE.glob("*.h"), HERE / "build.py"]
        output = target / name
        made.append(output)
        if output.exists() and output.stat().st_mtime > max(p.stat().st_mtime for p in inputs):
            continue
        partial = output.with_suffix(f".{os.getpid()}")
        command = [*compiler, *FREESTANDING_FLAGS, *LINK_FLAGS, "-o", str(partial)]
        subprocess.run([*command, *map(str, sources)], check=True)
        partial.replace(output)  # whoever executes the old program keeps it
    return made


def lint() -> int:
    """Compile each C file of ours with strict warnings and the analyzer; return how many fail."""
    failed = 0
    for compiler in filter(shutil.which, LINT_COMPILERS):
        for source in sorted(HERE.glob("*.c")):
            if source.name == "_ext.c":
                continue
            hosted = source.name == "sys.c"
            flags = ["-std=gnu17", "-O2"] if hosted else list(FREESTANDING_FLAGS)
            command = [compiler, *flags, *LINT_FLAGS, '-DPYC_VERSION="lint"', "-c", str(source)]
            done = subprocess.run([*command, "-o", "/dev/null"], check=False)
            failed += done.returncode != 0
    return failed


if __name__ == "__main__":
    verb = sys.argv[1] if sys.argv[1:] else "programs"
    if verb == "programs":
        print(*build_programs(Path(sys.argv[2]) if sys.argv[2:] else HERE / "bin"), sep="\n")
    elif verb == "stub":
        write_stub()
    elif verb == "lint":
        sys.exit(1 if lint() else 0)
else:
    ffibuilder = _make_ffibuilder()
