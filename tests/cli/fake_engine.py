"""An engine of plain Python with the names of `pycontain.engine.Engine`; no kernel is asked.

`tests/privileged/test_cli.py` runs the same verbs against the real one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from pycontain.errors import (
    AlreadyExists,
    ContainerNotFound,
    ImageNotFound,
    PycontainError,
    WrongState,
)
from pycontain.usage import ExitRecord, Usage

USAGE = Usage(
    cpu_usec=1_500_000,
    cpu_user_usec=1_000_000,
    cpu_system_usec=500_000,
    memory_current_bytes=4 << 20,
    memory_peak_bytes=8 << 20,
    pids_current=2,
    pids_peak=3,
)


def ended(exit_code: int | None = 0, signal: int | None = None, **changes: Any) -> ExitRecord:
    """The record of a container that ran for two seconds."""
    values: dict[str, Any] = {
        "exit_code": exit_code,
        "signal": signal,
        "known": True,
        "oom_killed": False,
        "pids_limit_hit": False,
        "timed_out": False,
        "started_at": 1000.0,
        "ended_at": 1002.0,
        "usage": USAGE,
    }
    return ExitRecord(**values | changes)


@dataclass(frozen=True)
class Blueprint:
    """The one field of `runtime.blueprint.Blueprint` that the command line sets."""

    auto_remove: bool = False


class FakeContainer:
    """A container whose end is decided beforehand; `calls` has what was done to it."""

    def __init__(self, engine: FakeEngine, name: str, **values: Any) -> None:
        self.engine = engine
        self.name = name
        self.id = format(len(engine.containers) + 1, "x").rjust(2, "0") * 32
        self.image = values.get("image", "debian:12")
        self.args = tuple(values.get("args", ("sleep", "1000")))
        self.labels = dict(values.get("labels", {}))
        self.created_at = values.get("created_at", 1000.0)
        self.started_at = values.get("started_at")
        self.log = values.get("log", True)
        self.blueprint = Blueprint(auto_remove=values.get("auto_remove", False))
        self.status = values.get("status", "running")
        self.exit = values.get("exit")
        self.tty = values.get("tty", False)
        self.end = values.get("end", ended())
        self.calls: list[tuple[Any, ...]] = []
        self._ended_fds = os.pipe()

    @property
    def short_id(self) -> str:
        return self.id[:12]

    def live(self) -> Any:
        if self.started_at is None:
            return None
        return SimpleNamespace(started_usec=self.started_at * 1_000_000)

    def create(self) -> None:
        self._note("create")
        if any(other.name == self.name for other in self.engine.containers):
            raise AlreadyExists(f"the name {self.name!r} is taken")
        self.engine.containers.append(self)
        self.status = "created"

    def start(self, *, attach: bool = False) -> None:
        self._note("start")
        if self.engine.start_error is not None:
            raise self.engine.start_error
        self.status = "running"
        if self.engine.ends_at_once:
            self.finish()

    def finish(self) -> None:
        self.exit, self.status = self.end, "exited"
        os.write(self._ended_fds[1], b"x")

    def fileno(self) -> int:
        return self._ended_fds[0]

    def wait(self, timeout: float | None = None) -> ExitRecord:
        self._note("wait")
        self.exit, self.status = self.end, "exited"
        return self.end

    def stop(self, timeout_sec: float | None = None) -> ExitRecord:
        self._note("stop", timeout_sec)
        return self.end

    def remove(self, force: bool = False) -> None:
        self._note("remove", force)
        if self.status == "running" and not force:
            raise WrongState(f"container {self.name} is running", hint="stop it first")
        if self in self.engine.containers:
            self.engine.containers.remove(self)

    def send_signal(self, number: int) -> None:
        self._note("send_signal", int(number))
        if self.engine.ends_on_signal:
            self.finish()

    def kill(self) -> None:
        self._note("kill")
        self.finish()

    def pause(self) -> None:
        self._note("pause")

    def resume(self) -> None:
        self._note("resume")

    def rename(self, name: str) -> None:
        self._note("rename", name)

    def update(self, **limits: Any) -> None:
        self._note("update", limits)

    def stats(self) -> Usage:
        return USAGE

    def top(self) -> list[Any]:
        return [
            SimpleNamespace(
                pid=7,
                ppid=1,
                uid=0,
                command="sleep",
                args=("sleep", "9"),
                cpu_usec=61_000_000,
                rss_bytes=2048,
            )
        ]

    def logs(self, **options: Any) -> list[Any]:
        self._note("logs", options)
        return self.engine.log_lines

    def inspect(self) -> dict[str, Any]:
        return {
            "Id": self.id,
            "Name": self.name,
            "State": {"Status": self.status, "Pid": 42},
            "Config": {"Tty": self.tty, "Labels": self.labels},
            "HostConfig": {"Resources": {"memory_max_bytes": 16 << 20}},
            "LogPath": "/log" if self.log else "",
        }

    def popen(self, args: list[str], **options: Any) -> FakeContainer:
        process = FakeContainer(self.engine, "exec", end=self.end)
        self._note("popen", args, options)
        process.finish()
        return process

    def copy_in(self, source: str, target: str, archive: bool = False) -> None:
        self._note("copy_in", source, target, archive)

    def copy_out(self, source: str, target: str, archive: bool = False) -> None:
        self._note("copy_out", source, target, archive)

    def _note(self, *call: Any) -> None:
        self.calls.append(call)
        self.engine.calls.append((self.name, *call))


class FakeImages:
    """A store with one image of two names, and one without."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def ls(self) -> list[Any]:
        return [
            SimpleNamespace(
                id="sha256:" + "ab" * 32,
                names=("debian:12", "localhost:5000/deb:latest"),
                size_bytes=124_000_000,
                created="2026-01-31T12:00:00Z",
            ),
            SimpleNamespace(id="sha256:" + "cd" * 32, names=(), size_bytes=None, created=""),
        ]

    def inspect(self, argument: str) -> dict[str, Any]:
        if not argument.startswith("debian"):
            raise ImageNotFound(f"no image {argument!r}")
        return {"id": "sha256:" + "ab" * 32, "names": ["debian:12"]}

    def remove(self, argument: str, force: bool = False) -> None:
        self.inspect(argument)
        self.calls.append(("remove", argument, force))

    def import_archive(self, path: str, name: str | None = None, *, ref: str = "") -> Any:
        self.calls.append(("import_archive", path, name, ref))
        return SimpleNamespace(id="sha256:" + "ab" * 32)

    def import_rootfs_tar(self, path: str, name: str | None = None) -> Any:
        self.calls.append(("import_rootfs_tar", path, name))
        return SimpleNamespace(id="sha256:" + "ab" * 32)


@dataclass
class FakeEngine:
    """Knows the image `debian:12` and whatever containers a test puts into it."""

    containers: list[FakeContainer] = field(default_factory=list)
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    made: list[tuple[Any, ...]] = field(default_factory=list)
    end: ExitRecord = field(default_factory=ended)
    start_error: PycontainError | None = None
    ends_at_once: bool = True
    ends_on_signal: bool = False
    log_lines: list[Any] = field(default_factory=list)
    roots: dict[str, Any] = field(default_factory=dict)
    images: FakeImages = field(default_factory=lambda: FakeImages())

    def open(self, **roots: Any) -> FakeEngine:
        self.roots = roots
        return self

    def add(self, name: str, **values: Any) -> FakeContainer:
        container = FakeContainer(self, name, **values)
        self.containers.append(container)
        return container

    def container(self, image: str, command: Any = None, **options: Any) -> FakeContainer:
        if not image.startswith(("debian", "rootfs:")):
            raise ImageNotFound(f"no image {image!r}", hint="see 'pycontain image ls'")
        self.made.append((image, command, options))
        return FakeContainer(
            self, options["options"].name or f"made_up_{len(self.made)}", end=self.end
        )

    def get(self, reference: str) -> FakeContainer:
        for container in self.containers:
            if container.name == reference or container.id.startswith(reference):
                return container
        raise ContainerNotFound(f"no container {reference!r}")

    def list(self) -> list[FakeContainer]:
        return list(self.containers)

    def plan(self, image: str, command: Any = None, options: Any = None) -> str:
        return f"plan of {image} {command}"

    def prune(self, *, exited: bool = True) -> Any:
        if exited:
            return SimpleNamespace(containers=("old",), leftovers=(), freed_bytes=7_830_000)
        ended = [one for one in self.containers if one.blueprint.auto_remove]
        self.containers = [one for one in self.containers if one not in ended]
        return SimpleNamespace(containers=tuple(one.id for one in ended))

    def info(self) -> dict[str, Any]:
        return {"kernel": "6.1", "cgroups": {"memory": "v1: /sys/fs/cgroup/memory"}, "root": True}
