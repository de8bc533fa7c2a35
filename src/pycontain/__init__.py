"""Containers as a library.

    import pycontain
    r = pycontain.run("oci:./debian:latest", ["python3", "-c", "print(6*7)"],
                      memory="256M", cpus=0.5, pids=64, timeout=10, capture_output=True, text=True)
    r.exit_code, r.stdout, r.oom_killed, r.timed_out, r.usage.cpu_usec, r.usage.memory_peak_bytes

`run` is `subprocess.run` with walls, `Container` is `Popen`, `pycontain.aio` has both as
awaitables. Importing this starts nothing, opens nothing and changes nothing: the names below are
loaded when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pycontain import aio
    from pycontain._native.version import VERSION as __version__
    from pycontain.engine import Engine
    from pycontain.errors import (
        AlreadyExists,
        ContainerFailed,
        InvalidInput,
        KernelError,
        NotFound,
        PycontainError,
        TimeoutExpired,
        Unsupported,
        UntrustedContent,
        WrongState,
    )
    from pycontain.oci import Mount
    from pycontain.runtime.container import Container as _Container
    from pycontain.runtime.options import RunOptions
    from pycontain.runtime.process import Exec, Result
    from pycontain.runtime.state import Status
    from pycontain.runtime.stdio import DEVNULL, PIPE, STDOUT
    from pycontain.usage import ExitRecord, Usage

__all__ = [
    "DEVNULL",
    "PIPE",
    "STDOUT",
    "AlreadyExists",
    "Container",
    "ContainerFailed",
    "Engine",
    "Exec",
    "ExitRecord",
    "InvalidInput",
    "KernelError",
    "Mount",
    "NotFound",
    "PycontainError",
    "Result",
    "RunOptions",
    "Status",
    "TimeoutExpired",
    "Unsupported",
    "UntrustedContent",
    "Usage",
    "WrongState",
    "__version__",
    "aio",
    "run",
]

_HOMES = {
    "engine": ("Engine",),
    "runtime.options": ("RunOptions",),
    "runtime.process": ("Exec", "Result"),
    "runtime.state": ("Status",),
    "runtime.stdio": ("DEVNULL", "PIPE", "STDOUT"),
    "oci": ("Mount",),
    "usage": ("ExitRecord", "Usage"),
    "errors": (
        "AlreadyExists", "ContainerFailed", "InvalidInput", "KernelError", "NotFound",
        "PycontainError", "TimeoutExpired", "Unsupported", "UntrustedContent", "WrongState",
    ),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def run(image: str, command: Any = None, *, engine: Engine | None = None, **options: Any) -> Result:
    """Run a container to its end; see `Engine.run` for every word."""
    if engine is None:
        from pycontain.engine import default_engine

        engine = default_engine()
    return engine.run(image, command, **options)


def Container(
    image: str, command: Any = None, *, engine: Engine | None = None, **options: Any
) -> _Container:
    """Return a container that does not exist yet; see `Engine.container` for every word."""
    if engine is None:
        from pycontain.engine import default_engine

        engine = default_engine()
    return engine.container(image, command, **options)


def __getattr__(name: str) -> Any:
    """Load a public name on first use, so that importing pycontain stays quick."""
    import importlib

    if name == "aio":
        value: Any = importlib.import_module("pycontain.aio")
    elif name == "__version__":
        from pycontain._native.version import VERSION as value
    elif name in _HOME_OF:
        value = getattr(importlib.import_module(f"pycontain.{_HOME_OF[name]}"), name)
    else:
        raise AttributeError(f"module 'pycontain' has no attribute {name!r}")
    globals()[name] = value
    return value
