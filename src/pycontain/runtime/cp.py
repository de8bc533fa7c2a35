"""Copying files into and out of a container, running or not, by `docker cp`'s rules.

The container is the adversary and may change its tree at any moment. So no path of it is resolved
twice: the kernel resolves the named one inside the root (openat2), and below that every step is
one name relative to an open directory, never following a link. What this answers:

    CVE-2018-15664   a path was resolved, then used: a link swapped in between led to the host
    CVE-2019-14271   a helper in the container's root loaded the container's libraries
    CVE-2026-41567   an archive was unpacked by a program found in the container
    CVE-2026-42306   volumes were mounted for the copy, on destinations that could be swapped

Nothing is executed, mounted, chrooted to or looked up in NSS, and nothing is written to /proc or
/sys, wherever a link leads. Source: docker's reference for `docker cp`.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import TypeVar

from pycontain.errors import InvalidInput, KernelError, NotFound, UntrustedContent
from pycontain.runtime.rootfs import open_path, reopen
from pycontain.values import frozen

__all__ = ["copy_in", "copy_out"]

MAX_DEPTH = 128  # each level holds two descriptors; a hostile tree can be deeper than PATH_MAX
_DIR_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PATH_FLAGS = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_ATTEMPTS = 100
T = TypeVar("T")
_Opener = Callable[[str, int], int]  # (path, extra flags) -> O_PATH descriptor


@frozen
class Rules:
    """What becomes of owners and modes. `owner` None leaves them to whom the copy is made by."""

    archive: bool = False  # uid, gid and all mode bits as in the source
    owner: tuple[int, int] | None = None
    mode_mask: int = 0o7777


def copy_in(
    root_fd: int,
    source: str,
    destination: str,
    *,
    archive: bool = False,
    owner: tuple[int, int] = (0, 0),
) -> None:
    """The host's `source` is in the container at or, if that is a directory, in `destination`.

    A source that ends in "/." means a directory's content. Links are copied as links. Files belong
    to `owner`, as the host sees it, or to their owner if `archive`; modes and times are kept.

    Raises:
        NotFound: no source, or no directory to put it in.
        InvalidInput: a directory onto a file, or a file where the path says directory.
        UntrustedContent: a device or a tree deeper than 128; /proc or /sys in the container.
    """
    rules = Rules(archive, owner if os.geteuid() == 0 else None)
    source_fd = open_source(_open_host, source)
    try:
        _place(source_fd, source, Guard(root_fd).opener(root_fd), destination, rules)
    finally:
        os.close(source_fd)


def copy_out(root_fd: int, source: str, destination: str, *, archive: bool = False) -> None:
    """The container's `source` is on the host at or, if that is a directory, in `destination`.

    As `copy_in`; files belong to whom this runs as and lose setuid and setgid, or keep both with
    `archive`: a root process must not make a container's program setuid root by accident.
    """
    rules = Rules(archive, None, 0o7777 if archive else 0o1777)
    source_fd = open_source(Guard(root_fd).opener(root_fd), source)
    try:
        _place(source_fd, source, _open_host, destination, rules)
    finally:
        os.close(source_fd)


class Guard:
    """Refuses what lies on the container's /proc and /sys, whatever name led there."""

    def __init__(self, root_fd: int) -> None:
        self._devices = set()
        root_device = os.fstat(root_fd).st_dev
        for path in ("/proc", "/sys", "/sys/fs/cgroup"):
            with suppress(OSError):
                fd = open_path(root_fd, path, os.O_NOFOLLOW)
                device = os.fstat(fd).st_dev
                os.close(fd)
                if device != root_device:
                    self._devices.add(device)

    def opener(self, root_fd: int) -> _Opener:
        """What opens paths in the container's root, but for those refused."""
        return lambda path, flags: self.checked(open_path(root_fd, path, flags))

    def checked(self, fd: int) -> int:
        """`fd` itself; it is closed if it is refused.

        Raises:
            UntrustedContent: it is the kernel's, not the container's.
        """
        if os.fstat(fd).st_dev not in self._devices:
            return fd
        os.close(fd)
        raise UntrustedContent("files of the container's /proc and /sys are not copied")


def _open_host(path: str, flags: int) -> int:
    return os.open(path, os.O_PATH | os.O_CLOEXEC | flags)


def open_source(opener: _Opener, path: str) -> int:
    """An O_PATH descriptor of what is to be copied; a link itself unless it ends in a slash."""
    follow = path.endswith(("/", "/.")) or path in (".", "..")
    try:
        return opener(path, 0 if follow else os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise NotFound(f"source: {path}: {os.strerror(error.errno)}") from None
        raise


def _place(source_fd: int, source: str, opener: _Opener, destination: str, rules: Rules) -> None:
    """Copy what `source_fd` holds to where docker's rules put it."""
    status = os.fstat(source_fd)
    is_directory = stat.S_ISDIR(status.st_mode)
    content_only = is_directory and (source.rstrip("/").endswith("/.") or source == ".")
    wants_directory = destination.endswith(("/", "/.")) or destination in ("", ".")
    with ExitStack() as stack:
        try:
            target_fd = opener(destination or ".", 0)
        except OSError as error:
            if error.errno == errno.ENOTDIR:
                raise InvalidInput(
                    f"{destination} is not a directory", field="destination"
                ) from None
            if error.errno != errno.ENOENT:
                raise
            if wants_directory and not is_directory:
                raise NotFound(f"destination: there is no directory {destination}") from None
            target_fd = -1
        else:
            stack.callback(os.close, target_fd)
        if target_fd >= 0 and stat.S_ISDIR(os.fstat(target_fd).st_mode):
            directory_fd = os.open(".", _DIR_FLAGS, dir_fd=target_fd)
            stack.callback(os.close, directory_fd)
            if content_only:
                _copy_children(source_fd, directory_fd, rules, 0)
            else:
                copy_entry(source_fd, directory_fd, base_name(source), rules)
            return
        if target_fd >= 0 and (wants_directory or is_directory):
            raise InvalidInput(f"{destination} is not a directory", field="destination")
        if target_fd >= 0 and _overwrite(source_fd, status, target_fd, rules):
            return
        parent, name = os.path.split(destination.rstrip("/"))
        if name in ("", ".", ".."):
            raise NotFound(f"destination: there is no {destination}")
        try:
            parent_fd = opener(parent or ("/" if destination[:1] == "/" else "."), os.O_DIRECTORY)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                raise NotFound(f"destination: there is no directory {parent}") from None
            raise
        stack.callback(os.close, parent_fd)
        copy_entry(source_fd, parent_fd, name, rules)


def base_name(path: str) -> str:
    """The name that a source has inside a directory; `/` and `..` have one of their own."""
    return os.path.basename(os.path.normpath(os.path.join("/", path))) or "root"


def _overwrite(source_fd: int, status: os.stat_result, target_fd: int, rules: Rules) -> bool:
    """Write into the existing file, so that a link to it and a file that is a mount stay so."""
    if not stat.S_ISREG(status.st_mode) or not stat.S_ISREG(os.fstat(target_fd).st_mode):
        return False
    fd = reopen(target_fd, os.O_WRONLY | os.O_TRUNC)
    try:
        _copy_data(source_fd, fd, status.st_size)
        finish(fd, status, rules)
    finally:
        os.close(fd)
    return True


def copy_entry(source_fd: int, parent_fd: int, name: str, rules: Rules, depth: int = 0) -> None:
    """`name` in the directory `parent_fd` is a copy of what the O_PATH `source_fd` holds.

    `name` is one component. A file or link that was there is replaced, a directory is merged into.
    """
    status = os.fstat(source_fd)
    mode = status.st_mode
    if depth > MAX_DEPTH:
        raise UntrustedContent(f"{name}: more than {MAX_DEPTH} directories deep")
    if stat.S_ISDIR(mode):
        fd = make_directory(parent_fd, name)
        try:
            _copy_children(source_fd, fd, rules, depth + 1)
            finish(fd, status, rules)
        finally:
            os.close(fd)
    elif stat.S_ISREG(mode):
        fd = new_file(parent_fd, name)
        try:
            _copy_data(source_fd, fd, status.st_size)
            finish(fd, status, rules)
        finally:
            os.close(fd)
    elif stat.S_ISLNK(mode):
        target = os.readlink("", dir_fd=source_fd)
        make_link(parent_fd, name, target, status, rules)
    elif stat.S_ISFIFO(mode):
        replacing(parent_fd, name, lambda: os.mkfifo(name, 0o600, dir_fd=parent_fd))
        _finish_name(parent_fd, name, status, rules)
    elif not stat.S_ISSOCK(mode):  # a socket without its listener is nothing, docker skips it too
        raise UntrustedContent(f"{name}: device nodes are not copied")


def _copy_children(source_fd: int, target_fd: int, rules: Rules, depth: int) -> None:
    directory_fd = os.open(".", _DIR_FLAGS, dir_fd=source_fd)
    try:
        for name in sorted(os.listdir(directory_fd)):
            try:
                child_fd = os.open(name, _PATH_FLAGS, dir_fd=directory_fd)
            except FileNotFoundError:
                continue  # removed meanwhile
            try:
                copy_entry(child_fd, target_fd, name, rules, depth)
            finally:
                os.close(child_fd)
    finally:
        os.close(directory_fd)


def make_directory(parent_fd: int, name: str) -> int:
    """A descriptor of the directory `name`, made if missing; the caller closes it.

    Raises:
        InvalidInput: there is something else, such as a link to a directory.
    """
    with suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=parent_fd)
    try:
        return os.open(name, _DIR_FLAGS, dir_fd=parent_fd)
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        raise InvalidInput(
            f"{name}: a directory can't replace what is there", field="destination"
        ) from None


def new_file(parent_fd: int, name: str) -> int:
    """A descriptor for writing of the new, empty file `name`; the caller closes it."""
    return replacing(parent_fd, name, lambda: os.open(name, _NEW_FLAGS, 0o600, dir_fd=parent_fd))


def make_link(parent_fd: int, name: str, target: str, status: os.stat_result, rules: Rules) -> None:
    """`name` is a symbolic link to `target`."""
    replacing(parent_fd, name, lambda: os.symlink(target, name, dir_fd=parent_fd))
    _finish_name(parent_fd, name, status, rules)


def replacing(parent_fd: int, name: str, make: Callable[[], T]) -> T:
    """What `make` gives, once nothing is in its way; it must fail if `name` exists."""
    for _ in range(_ATTEMPTS):
        try:
            return make()
        except FileExistsError:
            try:
                os.unlink(name, dir_fd=parent_fd)
            except FileNotFoundError:
                pass
            except IsADirectoryError:
                raise InvalidInput(
                    f"{name}: a directory is in the way", field="destination"
                ) from None
    raise KernelError(errno.EEXIST, f'openat("{name}", O_EXCL)', hint="it comes back all the time")


def _copy_data(source_fd: int, target_fd: int, size_bytes: int) -> None:
    """At most `size_bytes`: a file that its container keeps appending to has an end too."""
    fd = reopen(source_fd, os.O_RDONLY)
    try:
        offset = 0
        while offset < size_bytes:
            count = os.sendfile(target_fd, fd, offset, min(size_bytes - offset, 1 << 24))
            if count == 0:
                break
            offset += count
    finally:
        os.close(fd)


def finish(fd: int, status: os.stat_result, rules: Rules) -> None:
    """Owner, mode and times, in this order: chown clears setuid, and writing changes times."""
    owner = (status.st_uid, status.st_gid) if rules.archive else rules.owner
    if owner is not None:
        os.fchown(fd, *owner)
    os.fchmod(fd, stat.S_IMODE(status.st_mode) & rules.mode_mask)
    os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))


def _finish_name(parent_fd: int, name: str, status: os.stat_result, rules: Rules) -> None:
    """Owner and times of what can't be opened, by name; never through a link."""
    owner = (status.st_uid, status.st_gid) if rules.archive else rules.owner
    with suppress(FileNotFoundError):
        if owner is not None:
            os.chown(name, *owner, dir_fd=parent_fd, follow_symlinks=False)
        times = (status.st_atime_ns, status.st_mtime_ns)
        os.utime(name, ns=times, dir_fd=parent_fd, follow_symlinks=False)
