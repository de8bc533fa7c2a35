"""The shape of the code, as tests: who may import whom, what is banned, how big things may grow."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import pycontain
from pycontain import _native as native

SOURCE = Path(__file__).parents[1] / "src/pycontain"
NATIVE = SOURCE / "_native"

# ---- imports ---------------------------------------------------------------------------------

LEAVES = {"errors", "oci", "usage", "values"}
# room: the rooms that it may import, itself excepted. `package` is pycontain/__init__.py.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "values": set(),
    "oci": {"values"},
    "usage": {"values"},
    "_native": {"errors"},
    "isolation": {"_native", *LEAVES},
    "network": {"_native", *LEAVES},
    "image": {"_native", *LEAVES},
    "runtime": {"isolation", "_native", *LEAVES},
    "engine": {"image", "network", "runtime", "isolation", "_native", *LEAVES},
    "aio": {"engine", "runtime", *LEAVES},
    "cli": {"engine", "runtime", "package", *LEAVES},
    "package": {"engine", "runtime", "aio", "_native", *LEAVES},
    "__main__": {"cli"},
}
# (module, imported module): why it is right all the same.
IMPORT_EXCEPTIONS: dict[tuple[str, str], str] = {
    ("cli.image_commands", "image"): "a type only: what the engine's image list holds",
}

# ---- sizes -----------------------------------------------------------------------------------

MODULE_LINES = 400
FUNCTION_LINES = 50
C_LINES = 5000  # with comments, of what runs with rights: all C but the two programs below
C_APART = ("hello", "init")
# module, or module:function: why it is longer.
SIZE_EXCEPTIONS: dict[str, str] = {}


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def dotted(path: Path) -> str:
    """Return `runtime.container`, or `package` for the package's own __init__."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    if parts[-1] == "__init__":
        parts = parts[:-1]
    return ".".join(parts) or "package"


def room_of(module: str) -> str:
    return module.split(".")[0]


def package_of(path: Path, level: int) -> list[str]:
    """Return what the dots of a relative import stand for; nothing for an absolute one."""
    if level == 0:
        return []
    parts = ["pycontain", *path.relative_to(SOURCE).with_suffix("").parts]
    return parts[: len(parts) - level]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and dotted name of every import of ours, also the lazy ones."""
    inside = {dotted(p) for p in modules()}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*package_of(path, node.level), *filter(None, [node.module])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name != "pycontain" and not name.startswith("pycontain."):
                continue
            own = name.removeprefix("pycontain").removeprefix(".")
            while own and own not in inside:  # a name inside a module
                own = own.rpartition(".")[0]
            yield node.lineno, own or "package"


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_imports_point_one_way(path: Path) -> None:
    """A room imports only from the rooms below it."""
    module = dotted(path)
    room = room_of(module)
    assert room in MAY_IMPORT, f"{room} is a new room: say in MAY_IMPORT what it may import"
    wrong = [
        f"{path.name}:{line} imports {target}"
        for line, target in imports(path)
        if room_of(target) not in MAY_IMPORT[room] | {room}
        and target != "_native.version"  # a number
        and (module, target) not in IMPORT_EXCEPTIONS
    ]
    assert not wrong


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_the_extension_has_one_importer(path: Path) -> None:
    """Only _native/extension.py sees `_ext`; other rooms see `_native` as a whole."""
    module = dotted(path)
    text = path.read_text()
    if module != "_native.extension":
        assert "_native._ext" not in text.replace('"pycontain._native._ext"', "")
    if room_of(module) != "_native":
        parts = {t for _, t in imports(path) if t.startswith("_native.")} - {"_native.version"}
        assert not parts


# ---- bans ------------------------------------------------------------------------------------

FORK = "no Python between fork and exec: other threads' locks stay locked in the child"
HOST = "it belongs to the host program that imports us"
BANNED = {
    "os.fork": FORK,
    "os.forkpty": FORK,
    "pty.fork": FORK,
    "pty.spawn": FORK,
    "os.setns": HOST,
    "os.unshare": HOST,
    "os.chroot": HOST,
    "os.chdir": HOST,
    "os.fchdir": HOST,
    "os.umask": HOST,
    "os.setuid": HOST,
    "os.setgid": HOST,
    "os.setgroups": HOST,
    "os.setsid": HOST,
    "os.system": "no shell",
    "os.popen": "no shell",
    "tarfile.open": "extracts by path, through links (CVE-2007-4559)",
    "shutil.rmtree": "",  # allowed; listed to show that it was considered (3.11 uses dir_fd)
}
BANNED_MODULES = {
    "multiprocessing": FORK,
    "concurrent.futures.process": FORK,
    "tarfile": "extracts by path, through links (CVE-2007-4559, CVE-2025-4517)",
    "pickle": "executes what it reads",
    "marshal": "executes what it reads",
    "ctypes": "a second native boundary",
}
BANNED_KEYWORDS = {"preexec_fn": FORK, "netns": "pyroute2 forks the interpreter for it"}
# (module, banned name): why it is right there.
BAN_EXCEPTIONS: dict[tuple[str, str], str] = {
    ("runtime.tarstream", "tarfile"): "headers of `cp`'s streams; nothing is extracted by path",
    ("runtime.tarstream", "tarfile.open"): "a stream, not a file; see above",
}


def uses(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield node.lineno, f"{node.value.id}.{node.attr}"
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, node.module or ""
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call):
            yield from ((node.lineno, f"{word.arg}=") for word in node.keywords)


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_bans(path: Path) -> None:
    """Nothing forks the host program or changes its process-wide state."""
    reasons = {name: why for name, why in BANNED.items() if why} | BANNED_MODULES
    reasons |= {f"{word}=": why for word, why in BANNED_KEYWORDS.items()}
    wrong = [
        f"{path.name}:{line}: {name}: {reasons[name]}"
        for line, name in uses(path)
        if name in reasons and (dotted(path), name) not in BAN_EXCEPTIONS
    ]
    assert not wrong


# ---- sizes -----------------------------------------------------------------------------------


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Yield the name and length of each function, its docstring not counted."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            if ast.get_docstring(node) is not None:
                length -= (node.body[0].end_lineno or 0) - node.body[0].lineno + 1
            yield node.name, length


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_sizes(path: Path) -> None:
    """Modules and functions stay small enough to read in one go."""
    module = dotted(path)
    lines = len(path.read_text().splitlines())
    too_long = [] if lines <= MODULE_LINES else [(module, lines)]
    too_long += [
        (f"{module}:{n}", length) for n, length in functions(path) if length > FUNCTION_LINES
    ]
    assert [(name, n) for name, n in too_long if name not in SIZE_EXCEPTIONS] == []


def test_no_exception_is_stale() -> None:
    """An exception that nothing needs any more is removed from its table."""
    known = {dotted(p) for p in modules()}
    long = {dotted(p) for p in modules() if len(p.read_text().splitlines()) > MODULE_LINES}
    for path in modules():
        long |= {f"{dotted(path)}:{n}" for n, length in functions(path) if length > FUNCTION_LINES}
    assert set(SIZE_EXCEPTIONS) <= long
    assert {module for module, _ in [*IMPORT_EXCEPTIONS, *BAN_EXCEPTIONS]} <= known
    assert all([*SIZE_EXCEPTIONS.values(), *IMPORT_EXCEPTIONS.values(), *BAN_EXCEPTIONS.values()])


def test_c_stays_small() -> None:
    """Everything that runs with rights is read by one person in a day."""
    files = [p for p in NATIVE.glob("*.[ch]") if p.stem.split("_")[0] not in C_APART]
    total = sum(len(p.read_text().splitlines()) for p in files if p.name != "_ext.c")
    assert total <= C_LINES


# ---- C ---------------------------------------------------------------------------------------

# gcc may call these of itself; freestanding.c has them.
COMPILER_CALLS = {"memcpy", "memset", "memmove", "memcmp", "strlen"}
# What a program's own files give each other is not undefined in the program, only in child.o.
CHILD_PEERS = {"pyc_op_", "pyc_send_report"}


def load_build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("native_build", NATIVE / "build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def need(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")


def undefined(path: Path) -> set[str]:
    done = subprocess.run(["nm", "-u", str(path)], capture_output=True, text=True, check=True)
    return {line.split()[-1] for line in done.stdout.splitlines()}


@pytest.mark.parametrize("name", ["child", "child_mount", "plan_check", "record_check"])
def test_child_needs_no_libc(name: str, tmp_path: Path) -> None:
    """Between clone and exec nothing of libc is called: no malloc, no locks, no errno."""
    need("gcc", "nm")
    target = tmp_path / "child.o"
    flags = load_build().FREESTANDING_FLAGS
    source = NATIVE / f"{name}.c"
    subprocess.run(["gcc", *flags, "-c", str(source), "-o", str(target)], check=True)
    foreign = {s for s in undefined(target) if not s.startswith(tuple(CHILD_PEERS))}
    assert foreign <= COMPILER_CALLS


@pytest.mark.parametrize("compiler", ["gcc", "aarch64-linux-gnu-gcc"])
def test_programs_are_static(compiler: str, tmp_path: Path) -> None:
    """Each program links without libc on both architectures, has no interpreter and no relocation,
    an unexecutable stack, and stays small."""
    need(compiler, "readelf")
    build = load_build()
    made = build.build_programs(tmp_path, cc=compiler)
    assert {p.name for p in made} == set(build.PROGRAMS)
    for program in made:
        assert program.stat().st_size < 128 * 1024
        show = ["readelf", "-lWd", str(program)]
        text = subprocess.run(show, capture_output=True, text=True, check=True).stdout
        assert "INTERP" not in text and "NEEDED" not in text and "RWE" not in text
        stack = next(line for line in text.splitlines() if "GNU_STACK" in line)
        assert " RW " in stack


def test_a_second_build_does_nothing(tmp_path: Path) -> None:
    """A program newer than its sources is kept."""
    need("gcc")
    build = load_build()
    before = {p: p.stat().st_mtime_ns for p in build.build_programs(tmp_path)}
    assert {p: p.stat().st_mtime_ns for p in build.build_programs(tmp_path)} == before


def test_stub_says_what_the_extension_has() -> None:
    """_ext.pyi is what build.py makes of plan.h and sys.c, and so is the extension."""
    text = (NATIVE / "_ext.pyi").read_text()
    assert text == load_build().stub_text(), "run `make venv`"
    stub = next(
        node
        for node in ast.parse(text).body
        if isinstance(node, ast.ClassDef) and node.name == "Lib"
    )
    names = {
        n.target.id
        for n in stub.body
        if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
    }
    names |= {n.name for n in stub.body if isinstance(n, ast.FunctionDef)}
    assert names == {name for name in dir(native.lib) if not name.startswith("_")}


# ---- the public face -------------------------------------------------------------------------


def test_public_names_are_few_and_documented() -> None:
    """At most 25 names, each of which exists and says what it is."""
    names = pycontain.__all__
    assert len(names) <= 25
    for name in names:
        value = getattr(pycontain, name)
        if inspect.isclass(value) or inspect.isfunction(value) or inspect.ismodule(value):
            assert inspect.getdoc(value), name
            assert getattr(value, "__doc__", None), f"{name} inherits its docstring"


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_every_module_tells_what_it_is(path: Path) -> None:
    """A module begins with a docstring and takes annotations lazily."""
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    if any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in tree.body):
        assert "from __future__ import annotations" in path.read_text()
