"""Copying as a tar stream: what `docker cp - CONTAINER:DIR` reads and `CONTAINER:PATH -` writes.

The standard library's `tarfile` is used for headers and (de)compression only, in this process;
it never opens a path (CVE-2007-4559 and its like, CVE-2026-41567). Entries are placed by `cp`'s
primitives below an open directory, which no name, link or ".." of the archive leads out of.
"""

from __future__ import annotations

import os
import stat
import tarfile  # noqa: TID251  (headers only, see above)
from collections.abc import Iterator
from typing import IO

from pycontain import _native
from pycontain.errors import InvalidInput, NotFound, UntrustedContent
from pycontain.runtime import cp
from pycontain.runtime.rootfs import open_path, reopen

__all__ = ["get_tar", "put_tar"]

_PATH_FLAGS = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_DIR_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def put_tar(
    root_fd: int,
    stream: IO[bytes],
    destination: str,
    *,
    archive: bool = False,
    owner: tuple[int, int] = (0, 0),
) -> None:
    """The entries of a tar, plain or compressed (gzip, bzip2, xz), are in the directory.

    Read as a stream, to its end. Owners as in `cp.copy_in`.

    Raises:
        NotFound: no such directory in the container.
        UntrustedContent: not a tar, an entry that leads out of the directory, or a device.
    """
    rules = cp.Rules(archive, owner if os.geteuid() == 0 else None)
    try:
        path_fd = cp.Guard(root_fd).checked(open_path(root_fd, destination, os.O_DIRECTORY))
    except OSError as error:
        raise NotFound(f"destination: {destination}: {os.strerror(error.errno or 0)}") from None
    try:
        with tarfile.open(fileobj=stream, mode="r|*") as tar:
            for entry in tar:
                _put(path_fd, tar, entry, rules)
    except (tarfile.TarError, EOFError, UnicodeError) as error:
        raise UntrustedContent(f"not a whole tar archive: {error}") from None
    finally:
        os.close(path_fd)


def _put(directory_fd: int, tar: tarfile.TarFile, entry: tarfile.TarInfo, rules: cp.Rules) -> None:
    parts = _components(entry.name)
    if not parts:
        return  # "./": the directory itself stays as it is
    parent_fd = _parent(directory_fd, parts[:-1])
    name = parts[-1]
    status = _status(entry)
    try:
        if entry.isdir():
            fd = cp.make_directory(parent_fd, name)
        elif entry.isreg():
            fd = cp.new_file(parent_fd, name)
        elif entry.issym():
            cp.make_link(parent_fd, name, entry.linkname, status, rules)
            return
        elif entry.islnk():
            _hard_link(directory_fd, entry, parent_fd, name)
            return
        else:
            raise UntrustedContent(f"{entry.name}: device nodes and FIFOs are not unpacked")
        try:
            if entry.isreg():
                _copy_member(tar, entry, fd)
            cp.finish(fd, status, rules)
        finally:
            os.close(fd)
    finally:
        os.close(parent_fd)


def _hard_link(directory_fd: int, entry: tarfile.TarInfo, parent_fd: int, name: str) -> None:
    """A link to an earlier entry: its own name, not what a symbolic link of that name means."""
    parts = _components(entry.linkname)
    if not parts:
        raise UntrustedContent(f"{entry.name}: a hard link to nothing")
    target_fd = _parent(directory_fd, parts[:-1])
    try:
        cp.replacing(
            parent_fd,
            name,
            lambda: os.link(
                parts[-1], name, src_dir_fd=target_fd, dst_dir_fd=parent_fd, follow_symlinks=False
            ),
        )
    except FileNotFoundError:
        raise UntrustedContent(f"{entry.name}: a hard link to nothing") from None
    finally:
        os.close(target_fd)


def _components(name: str) -> list[str]:
    """The parts of an entry's name; a leading slash is ignored, as in tar.

    Raises:
        UntrustedContent: it climbs, or has a NUL.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in name:
        raise UntrustedContent(f"{name!r} leads out of the directory")
    if len(parts) > cp.MAX_DEPTH:
        raise UntrustedContent(f"{name[:60]!r}...: more than {cp.MAX_DEPTH} directories deep")
    return parts


def _parent(directory_fd: int, parts: list[str]) -> int:
    """An O_PATH descriptor of the directory that an entry lies in, made if missing.

    Links within the directory are followed (many roots have /lib -> usr/lib), none out of it.
    """
    resolve = _native.RESOLVE_BENEATH | _native.RESOLVE_NO_MAGICLINKS
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    fd = _native.openat2(directory_fd, ".", flags, 0, resolve)
    for index, part in enumerate(parts):
        try:
            path = "/".join(parts[: index + 1])
            try:
                below = _native.openat2(directory_fd, path, flags, 0, resolve)
            except OSError as error:
                if error.errno != 2:  # ENOENT
                    raise UntrustedContent(
                        f"{path!r} leads out of the directory, or is none"
                    ) from None
                made = cp.make_directory(fd, part)
                os.fchmod(made, 0o755)
                below = made
        finally:
            os.close(fd)
        fd = below
    return fd


def _copy_member(tar: tarfile.TarFile, entry: tarfile.TarInfo, fd: int) -> None:
    source = tar.extractfile(entry)
    if source is None:
        raise InvalidInput(f"{entry.name} has no data")
    while chunk := source.read(1 << 20):
        view = memoryview(chunk)
        while view:
            view = view[os.write(fd, view) :]


def _status(entry: tarfile.TarInfo) -> os.stat_result:
    """Owner, mode and time of an entry, as `cp` takes them."""
    if not (0 <= entry.uid < 2**32 - 1 and 0 <= entry.gid < 2**32 - 1):
        raise UntrustedContent(f"{entry.name}: owner {entry.uid}:{entry.gid} can't be")
    seconds = min(max(float(entry.mtime), 0.0), 2.0**40)  # also what is no number becomes 0
    nsec = int(seconds * 1_000_000_000)
    values = (entry.mode & 0o7777, 0, 0, 1, entry.uid, entry.gid, entry.size, 0, 0, 0)
    return os.stat_result(values, {"st_atime_ns": nsec, "st_mtime_ns": nsec})


def get_tar(root_fd: int, source: str, stream: IO[bytes]) -> None:
    """`stream` has received a tar of the container's `source`, under its own last name.

    A source that ends in "/." gives the directory's content under "./". Sockets are left out.

    Raises:
        NotFound: no such file.  UntrustedContent: as `cp.copy_out`.
    """
    source_fd = cp.open_source(cp.Guard(root_fd).opener(root_fd), source)
    name = "." if source.endswith("/.") or source == "." else cp.base_name(source)
    try:
        with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as tar:
            for path, fd in _walk(source_fd, name, 0):
                _add(tar, path, fd)
    finally:
        os.close(source_fd)


def _walk(path_fd: int, name: str, depth: int) -> Iterator[tuple[str, int]]:
    """(name, O_PATH descriptor) of an entry and all below it, parents first."""
    if depth > cp.MAX_DEPTH:
        raise UntrustedContent(f"{name[:60]}...: more than {cp.MAX_DEPTH} directories deep")
    yield name, path_fd
    if not stat.S_ISDIR(os.fstat(path_fd).st_mode):
        return
    directory_fd = os.open(".", _DIR_FLAGS, dir_fd=path_fd)
    try:
        for child in sorted(os.listdir(directory_fd)):
            try:
                child_fd = os.open(child, _PATH_FLAGS, dir_fd=directory_fd)
            except FileNotFoundError:
                continue
            try:
                yield from _walk(child_fd, f"{name}/{child}", depth + 1)
            finally:
                os.close(child_fd)
    finally:
        os.close(directory_fd)


def _add(tar: tarfile.TarFile, name: str, path_fd: int) -> None:
    status = os.fstat(path_fd)
    entry = tarfile.TarInfo(name)
    entry.mode = stat.S_IMODE(status.st_mode)
    entry.uid, entry.gid = status.st_uid, status.st_gid
    entry.mtime = status.st_mtime_ns / 1e9  # PAX keeps fractions
    if stat.S_ISDIR(status.st_mode):
        entry.type = tarfile.DIRTYPE
    elif stat.S_ISLNK(status.st_mode):
        entry.type = tarfile.SYMTYPE
        entry.linkname = os.readlink("", dir_fd=path_fd)
    elif stat.S_ISFIFO(status.st_mode):
        entry.type = tarfile.FIFOTYPE
    elif stat.S_ISSOCK(status.st_mode):
        return
    elif not stat.S_ISREG(status.st_mode):
        raise UntrustedContent(f"{name}: device nodes are not copied")
    else:
        entry.size = status.st_size
        with open(reopen(path_fd, os.O_RDONLY), "rb", buffering=0) as file:
            try:
                tar.addfile(entry, file)
            except OSError as error:
                if error.errno is None:  # tarfile's own: the file has become shorter
                    raise UntrustedContent(f"{name} shrank while it was read") from None
                raise
        return
    tar.addfile(entry)
