"""Which containers exist: one directory each, gone at reboot, shared by any number of programs.

    <root>/containers/<id>/state.json    what it is; replaced whole, never edited
                          live, exit     the monitor's record while it lives, and once it has ended
                          out, err, in   its FIFOs
    <root>/names/<name> -> <id>          a link, because making one is atomic

Everything is reached from directory descriptors of a 0700 root, never through a link. What one
container's files say can't hurt another: unreadable state is that container's status "unknown".
Nothing is fsynced: /run does not outlive the kernel that would have to lose it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from enum import StrEnum
from typing import Any

from pycontain import _native
from pycontain.errors import (
    AlreadyExists,
    ContainerNotFound,
    InvalidInput,
    PycontainError,
    WrongState,
)
from pycontain.runtime.directories import DIR_FLAGS, check_private, flocked, open_dir
from pycontain.runtime.liveness import is_alive
from pycontain.runtime.names import check_name, is_name, new_id, random_name
from pycontain.values import frozen

__all__ = ["Entry", "StateStore", "Status", "check_name", "new_id", "random_name"]

_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_WRITE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_STATE_BYTES = 16 << 20


class Status(StrEnum):
    """What a container is doing."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    EXITED = "exited"
    UNKNOWN = "unknown"  # its files can't be read


@frozen
class Entry:
    """One container in a listing. `document` is None if its state.json can't be read."""

    id: str
    path: str
    document: dict[str, Any] | None


class StateStore:
    """The containers below one state root. Safe to share between threads.

    The root is made if missing, with mode 0700; it holds two directory descriptors until `close`.
    """

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(root)
        self._fds: list[int] = []
        os.makedirs(self.root, mode=0o700, exist_ok=True)
        root_fd = os.open(self.root, DIR_FLAGS)
        try:
            check_private(root_fd, self.root)
            self._dir_fd = open_dir(root_fd, "containers")
            self._fds.append(self._dir_fd)
            self._names_fd = open_dir(root_fd, "names")
            self._fds.append(self._names_fd)
        finally:
            os.close(root_fd)

    def close(self) -> None:
        """The descriptors are closed; the store can't be used any more. Idempotent."""
        self._dir_fd = self._names_fd = -1  # a closed number soon means another file
        while self._fds:
            os.close(self._fds.pop())

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):
            self.close()

    def path(self, container_id: str) -> str:
        """The absolute path of the container's directory, whether it exists or not."""
        return f"{self.root}/containers/{check_name(container_id, field='id')}"

    def create(self, container_id: str, name: str, document: Mapping[str, Any] | bytes) -> str:
        """The container exists, under its id and, unless empty, its name; its directory's path.

        `document` is written to state.json as it is, so `document["name"]` should be `name`.

        Raises:
            AlreadyExists: the id or the name is taken; nothing was made.
            InvalidInput: an id or name that can't be one.
        """
        path = self.path(container_id)
        if name:
            check_name(name)
        try:
            os.mkdir(container_id, 0o700, dir_fd=self._dir_fd)
        except FileExistsError:
            raise AlreadyExists(f"a container with the id {container_id} exists") from None
        try:
            self._write(container_id, document)
            # Last: from here on others find it by name, and find all of it.
            if name:
                self._take_name(name, container_id)
        except BaseException:
            self._remove_tree(container_id)
            raise
        return path

    def load(self, container_id: str) -> dict[str, Any]:
        """The container's document.

        Raises:
            ContainerNotFound: it does not exist.
            WrongState: it exists, but its state.json can't be read; `status` is "unknown".
        """
        import json

        check_name(container_id, field="id")
        try:
            data = self._read(container_id, "state.json", _MAX_STATE_BYTES)
            document = json.loads(data) if data is not None else None
        except (ValueError, OSError, RecursionError):
            document = None
        if isinstance(document, dict):
            return document
        if not self._exists(container_id):
            raise ContainerNotFound(f"no container has the id {container_id}")
        raise WrongState(
            f"the state of container {container_id[:12]} can't be read",
            status=Status.UNKNOWN,
            hint="`pycontain rm --force` removes it",
        )

    def update(
        self, container_id: str, change: Callable[[dict[str, Any]], dict[str, Any]]
    ) -> dict[str, Any]:
        """The document is what `change` made of it; no other update came in between.

        Raises:
            ContainerNotFound, WrongState: as `load`.
        """
        with self.lock(container_id):
            document = change(self.load(container_id))
            self._write(container_id, document)
        return document

    def rename(self, container_id: str, name: str) -> None:
        """The container is called `name`, and by its old name no more.

        Raises:
            AlreadyExists: the name is taken.
        """
        check_name(name)
        with self.lock(container_id):
            document = self.load(container_id)
            old = document.get("name")
            if old == name:
                return
            self._take_name(name, container_id)
            self._write(container_id, {**document, "name": name})
            if isinstance(old, str) and old:
                self._drop_name(old, container_id)

    @contextmanager
    def lock(self, container_id: str) -> Iterator[None]:
        """While inside, no other thread or program is inside for the same container.

        The lock belongs to the open file (flock), so it ends with its holder however that ends.

        Raises:
            ContainerNotFound: it does not exist.
        """
        check_name(container_id, field="id")
        try:
            fd = os.open(container_id, DIR_FLAGS, dir_fd=self._dir_fd)
        except FileNotFoundError:
            raise ContainerNotFound(f"no container has the id {container_id}") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def ids(self) -> list[str]:
        """The ids of all containers, sorted."""
        return sorted(name for name in os.listdir(self._dir_fd) if name[:1] != ".")

    def ls(self) -> list[Entry]:
        """All containers; a damaged one has no document, one that vanishes is left out."""
        entries = []
        for container_id in self.ids():
            document: dict[str, Any] | None
            try:
                document = self.load(container_id)
            except WrongState:
                document = None
            except (ContainerNotFound, InvalidInput):
                continue
            entries.append(Entry(container_id, self.path(container_id), document))
        return entries

    def resolve(self, text: str) -> str:
        """The id of the container that has `text` as its id, its name, or alone starts so.

        Raises:
            ContainerNotFound: none or several do; the message has names that are near.
        """
        if is_name(text):
            if self._exists(text):
                return text
            named = self._named(text)
            if named is not None and self._exists(named):
                return named
            found = [each for each in self.ids() if each.startswith(text)]
            if len(found) == 1:
                return found[0]
            if found:
                raise ContainerNotFound(f"the id {text!r} is the start of {len(found)} containers'")
        from difflib import get_close_matches

        near = get_close_matches(text, os.listdir(self._names_fd), n=3)
        raise ContainerNotFound(
            f"no container is called {text!r}", hint=f"there is {', '.join(near)}" if near else None
        )

    def remove(self, container_id: str, name: object = None) -> None:
        """The container does not exist; it need not have. Its processes are not looked at.

        Args: name: its name, if the caller knows it; else it is looked up.
        """
        check_name(container_id, field="id")
        if not isinstance(name, str) or self._named(name) != container_id:  # renamed meanwhile
            with suppress(ContainerNotFound, WrongState):
                name = self.load(container_id).get("name")
        # Its state unread, any name may be its own.
        names = [name] if isinstance(name, str) else os.listdir(self._names_fd)
        for each in filter(None, names):
            self._drop_name(each, container_id)
        self._remove_tree(container_id)

    def status(self, container_id: str, frozen: Callable[[], bool] | None = None) -> Status:
        """What the container is doing, by the monitor's files and the process that they name.

        `frozen` says whether its cgroup is frozen; it is asked only while the container runs.

        Raises:
            ContainerNotFound: it does not exist.
        """
        try:
            if self.read_exit(container_id) is not None:
                return Status.EXITED
            live = self.read_live(container_id)
            if live is None:
                # The monitor writes `exit` before it removes `live`.
                if self.read_exit(container_id) is not None:
                    return Status.EXITED
                self.load(container_id)
                return Status.CREATED
            if live.status == _native.C.PYC_ST_EXITED:
                return Status.EXITED
            if not is_alive(live.pid, live.pid_start_ticks):
                started = live.status == _native.C.PYC_ST_RUNNING  # else the start was refused
                return Status.EXITED if started else Status.CREATED
        except ContainerNotFound:
            raise
        except (PycontainError, OSError):
            return Status.UNKNOWN
        if live.status != _native.C.PYC_ST_RUNNING:
            return Status.CREATED
        return Status.PAUSED if frozen is not None and frozen() else Status.RUNNING

    def read_live(self, container_id: str) -> _native.NativeLive | None:
        """The monitor's record of the living container; None if it has none.

        Raises:
            PycontainError: the file is damaged.
        """
        data = self._read(container_id, "live", _native.C.PYC_MAX_RECORD_BYTES)
        return _native.decode_live(data) if data else None

    def read_exit(self, container_id: str) -> bytes | None:
        """The bytes of the exit record, for `_native.decode_exit`; None if it has not ended."""
        return self._read(container_id, "exit", _native.C.PYC_MAX_EXIT_BYTES) or None

    def _exists(self, container_id: str) -> bool:
        try:
            os.stat(container_id, dir_fd=self._dir_fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def _read(self, container_id: str, file: str, limit: int) -> bytes | None:
        """At most `limit` bytes of a file of the container; None if there is no such file."""
        check_name(container_id, field="id")
        try:
            fd = os.open(f"{container_id}/{file}", _READ_FLAGS, dir_fd=self._dir_fd)
        except FileNotFoundError:
            return None
        try:
            chunks = []
            while limit > 0 and (chunk := os.read(fd, min(limit, 1 << 20))):
                chunks.append(chunk)
                limit -= len(chunk)
        finally:
            os.close(fd)
        return b"".join(chunks)

    def _write(self, container_id: str, document: Mapping[str, Any] | bytes) -> None:
        """state.json is `document`: readers see the old one or the new one, whole."""
        if not isinstance(document, bytes):
            import json

            text = json.dumps(document, separators=(",", ":"))
            document = text.encode("utf-8", "surrogateescape")
        if len(document) > _MAX_STATE_BYTES:
            raise InvalidInput("the container's description is over 16 MiB")
        name = f"{container_id}/state.json"
        fd = os.open(f"{name}.new", _WRITE_FLAGS, 0o600, dir_fd=self._dir_fd)
        try:
            view = memoryview(document)
            while view:
                view = view[os.write(fd, view) :]
        finally:
            os.close(fd)
        os.rename(f"{name}.new", name, src_dir_fd=self._dir_fd, dst_dir_fd=self._dir_fd)

    def _named(self, name: str) -> str | None:
        """The id that a name stands for; None if it is free or no link of ours."""
        try:
            target = os.readlink(name, dir_fd=self._names_fd)
        except OSError:
            return None
        return target if is_name(target) else None

    def _take_name(self, name: str, container_id: str) -> None:
        try:
            os.symlink(container_id, name, dir_fd=self._names_fd)
            return
        except FileExistsError:
            pass
        # A name without a container is what a crash, or rm -rf, left. Locked: two programs that
        # both see it must not remove each other's new link.
        with flocked(self._names_fd):
            holder = self._named(name)
            if holder is not None and not self._exists(holder):
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=self._names_fd)
            try:
                os.symlink(container_id, name, dir_fd=self._names_fd)
            except FileExistsError:
                raise AlreadyExists(
                    f"the name {name!r} is taken by container {(self._named(name) or '?')[:12]}",
                    hint="remove it, or choose another name",
                ) from None

    def _drop_name(self, name: str, container_id: str) -> None:
        if self._named(name) == container_id:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._names_fd)

    def _remove_tree(self, container_id: str) -> None:
        """The directory is gone. It is small and ours; links in it are not followed."""
        try:  # most hold these alone
            for name in ("exit", "live", "state.json"):
                with suppress(FileNotFoundError):
                    os.unlink(f"{container_id}/{name}", dir_fd=self._dir_fd)
            os.rmdir(container_id, dir_fd=self._dir_fd)
            return
        except OSError:
            pass
        import shutil

        with suppress(FileNotFoundError):
            shutil.rmtree(container_id, dir_fd=self._dir_fd)
