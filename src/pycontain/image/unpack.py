"""Turns one layer's tar into a directory that overlayfs can stack.

What a layer may do is the table of docs: whiteouts become character devices 0:0, opaque marks an
extended attribute; they speak of lower layers only, so their order inside the layer is of no
matter. Nothing outside the root is read or written whatever the tar says; on error the caller
throws the root away.

Source: OCI image-spec 1.1, layer.md; Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Sequence

from pycontain.errors import KernelError, UnsafeLayer, Unsupported
from pycontain.values import field, frozen, mutable

from . import tar
from .tree import (
    READ_DIRECTORY,
    Attributes,
    Tree,
    is_opaque,
    is_whiteout,
    normalise,
    read_attributes,
    set_opaque,
    show,
)

WHITEOUT = b".wh."
WHITEOUT_META = b".wh..wh."
OPAQUE = b".wh..wh..opq"
MAX_NAME_BYTES = 255
CHECK_EVERY_BYTES = 64 << 20
CHECK_EVERY_ENTRIES = 4096
_CASEFOLD_FL, _FS_IOC_GETFLAGS = 0x40000000, 0x80086601
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# The host's fault, not the layer's.
_HOST_ERRNOS = frozenset(
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EUCLEAN, errno.ENOSYS),
        *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EPERM),
    }
)


@frozen
class Policy:
    """Limits and choices of one unpack."""

    max_entries: int = 5_000_000
    reserve_bytes: int = 64 << 20  # free space that must remain
    reserve_inodes: int = 1024
    devices: bool = True  # False: device nodes are left out (and counted)


@mutable
class Unpacked:
    """What an unpack did. If `self_contained`, it would be the same on top of other layers."""

    entries: int = 0
    file_bytes: int = 0
    self_contained: bool = False
    skipped: dict[str, int] = field(default_factory=dict)

    def skip(self, what: str) -> None:
        """One more of `what` was left out."""
        self.skipped[what] = self.skipped.get(what, 0) + 1


def unpack(
    reader: tar.TarReader, root_fd: int, *, lower: Sequence[str] = (), policy: Policy | None = None
) -> Unpacked:
    """Everything in `reader` is below the empty directory `root_fd`; the stream was read whole.

    `lower` are the unpacked layers below, the nearest first.

    Raises:
        UnsafeLayer: the layer is malformed, hostile or beyond a limit.
        KernelError: the host could not do it (disk full, no privilege).
    """
    flags = _inode_flags(root_fd)
    if flags & _CASEFOLD_FL:
        raise Unsupported("unpacking a layer", needs="a case-sensitive directory")
    unpacker = _Unpacker(reader, root_fd, lower, policy or Policy())
    try:
        return unpacker.run()
    finally:
        unpacker.tree.close()


def _inode_flags(fd: int) -> int:
    try:
        return int(struct.unpack_from("I", fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(8)))[0])
    except OSError:
        return 0  # tmpfs and others have none


class _Unpacker:
    def __init__(
        self, reader: tar.TarReader, root_fd: int, lower: Sequence[str], policy: Policy
    ) -> None:
        self.tree = Tree(root_fd, lower)
        self._reader = reader
        self._policy = policy
        self._whiteouts: dict[bytes, list[bytes]] = {}
        self._done = Unpacked()
        self._unchecked_bytes = CHECK_EVERY_BYTES
        self._privileged = os.geteuid() == 0
        self._root_mentioned = False
        info = os.fstat(root_fd)
        self._default_ids = (info.st_uid, info.st_gid)
        self._owns = {
            tar.FILE: self._file,
            tar.DIRECTORY: self._directory,
            tar.SYMLINK: self._symlink,
            tar.CHAR: self._node,
            tar.BLOCK: self._node,
            tar.FIFO: self._node,
        }

    def run(self) -> Unpacked:
        """All entries are applied, directories' attributes last."""
        self.tree.directories[b""] = self._root_attributes()
        reader, done, limit = self._reader, self._done, self._policy.max_entries
        while (entry := reader.next()) is not None:
            done.entries += 1
            if done.entries + self.tree.implicit_count > limit:
                raise UnsafeLayer(f"more than {limit} entries")
            if done.entries % CHECK_EVERY_ENTRIES == 0:
                self._check_space(0)
            try:
                self._apply(entry)
            except UnsafeLayer as e:
                if e.entry is None:
                    raise UnsafeLayer(e.message, entry=show(entry.name)) from e
                raise
            except OSError as e:
                raise _blame(e, entry.name) from e
        reader.drain()
        try:
            self.tree.finish(self._privileged, self._default_ids)
        except OSError as e:
            raise _blame(e, b"directory attributes") from e
        done.self_contained = self._root_mentioned and not self.tree.implicit_count
        return done

    def _root_attributes(self) -> Attributes:
        """The root's attributes if the layer does not mention it: those of the layer below."""
        if not self.tree.lower:
            return Attributes()
        fd = os.open(self.tree.lower[0], READ_DIRECTORY)
        try:
            found = read_attributes(fd)
        finally:
            os.close(fd)
        found.mtime_ns = 0
        return found

    def _apply(self, entry: tar.Entry) -> None:
        path = normalise(entry.name)
        self.tree.next_entry()
        if not path:
            if entry.type != tar.DIRECTORY:
                raise UnsafeLayer("the root is not a directory")
            self._record(path, entry)
            self._root_mentioned = True
            return
        directory, _, name = path.rpartition(b"/")
        if len(name) > MAX_NAME_BYTES:
            raise UnsafeLayer(f"name of {len(name)} bytes")
        if path.startswith(WHITEOUT) or b"/" + WHITEOUT in path:
            self._whiteout(directory, name)
            return
        parent_fd = self.tree.parent(directory)
        if entry.type == tar.HARDLINK:
            self._hardlink(entry, parent_fd, name, path)
        else:
            self._owns[entry.type](entry, parent_fd, name, path)

    def _file(self, entry: tar.Entry, parent_fd: int, name: bytes, path: bytes) -> None:
        try:
            fd = os.open(name, _CREATE, 0o600, dir_fd=parent_fd)
        except FileExistsError:
            self.tree.remove(parent_fd, name, path)
            fd = os.open(name, _CREATE, 0o600, dir_fd=parent_fd)
        try:
            if entry.extents is not None:
                self._write_sparse(fd, entry)
            elif entry.stored_bytes:
                self._write(fd, entry.stored_bytes)
            # This order: chown clears setuid and capabilities, writing does too.
            if self._privileged and (entry.uid, entry.gid) != self._default_ids:
                os.chown(fd, entry.uid, entry.gid)
            os.chmod(fd, entry.mode)
            if entry.xattrs:
                self._set_xattrs(fd, entry)
            os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(fd)

    def _write(self, fd: int, count: int) -> None:
        read = self._reader.read
        self._check_space(count)
        while piece := read():
            while len(piece) > (written := os.write(fd, piece)):
                piece = piece[written:]
        self._done.file_bytes += count

    def _write_sparse(self, fd: int, entry: tar.Entry) -> None:
        assert entry.extents is not None
        self._check_space(entry.stored_bytes)
        for offset, length in entry.extents:
            end = offset + length
            while offset < end:
                offset += os.pwrite(fd, self._reader.read(end - offset), offset)
        os.ftruncate(fd, entry.size_bytes)
        self._done.file_bytes += entry.stored_bytes

    def _check_space(self, count: int) -> None:
        """Raises ENOSPC before the host's disk is full to the brim."""
        self._unchecked_bytes += count
        if count and self._unchecked_bytes < CHECK_EVERY_BYTES:
            return
        self._unchecked_bytes = 0
        free = os.fstatvfs(self.tree.root_fd)
        if free.f_bavail * free.f_frsize < self._policy.reserve_bytes + count or (
            free.f_files and free.f_favail < self._policy.reserve_inodes
        ):
            raise KernelError(
                errno.ENOSPC, "fstatvfs", hint="the layer would leave too little free space"
            )

    def _directory(self, entry: tar.Entry, parent_fd: int, name: bytes, path: bytes) -> None:
        self.tree.make_directory(parent_fd, name, path)
        self._record(path, entry)

    def _record(self, path: bytes, entry: tar.Entry) -> None:
        xattrs = {key: value for key, value in entry.xattrs.items() if self._wanted(key)}
        self.tree.directories[path] = Attributes(
            entry.mode, entry.uid, entry.gid, entry.mtime_ns, xattrs
        )

    def _symlink(self, entry: tar.Entry, parent_fd: int, name: bytes, path: bytes) -> None:
        if not entry.link_name:
            raise UnsafeLayer("symbolic link without a target")
        try:
            os.symlink(entry.link_name, name, dir_fd=parent_fd)
        except FileExistsError:
            self.tree.remove(parent_fd, name, path)
            os.symlink(entry.link_name, name, dir_fd=parent_fd)
        self._finish_nofollow(entry, parent_fd, name)

    def _hardlink(self, entry: tar.Entry, parent_fd: int, name: bytes, path: bytes) -> None:
        target = normalise(entry.link_name, "link target")
        directory, _, target_name = target.rpartition(b"/")
        try:
            if not target:
                raise FileNotFoundError(errno.ENOENT, "the root")
            target_fd = self.tree.existing(directory)
            info = os.stat(target_name, dir_fd=target_fd, follow_symlinks=False)
        except FileNotFoundError as e:
            raise UnsafeLayer(f"hard link to {show(target)!r}, not in this layer") from e
        except KernelError as e:
            if e.errno not in (errno.ENOENT, errno.ENOTDIR):
                raise
            raise UnsafeLayer(f"hard link to {show(target)!r}, not in this layer") from e
        if stat.S_ISDIR(info.st_mode) or is_whiteout(info):
            raise UnsafeLayer(f"hard link to {show(target)!r}, not a file of this layer")
        try:
            self._link(target_name, target_fd, name, parent_fd)
        except FileExistsError:
            old = os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
            if (old.st_dev, old.st_ino) == (info.st_dev, info.st_ino):
                return
            self.tree.remove(parent_fd, name, path)
            self._link(target_name, target_fd, name, parent_fd)

    @staticmethod
    def _link(target_name: bytes, target_fd: int, name: bytes, parent_fd: int) -> None:
        os.link(
            target_name, name, src_dir_fd=target_fd, dst_dir_fd=parent_fd, follow_symlinks=False
        )

    def _node(self, entry: tar.Entry, parent_fd: int, name: bytes, path: bytes) -> None:
        """Makes a FIFO or a device node; 0:0 would be a whiteout and is refused."""
        kind = {tar.CHAR: stat.S_IFCHR, tar.BLOCK: stat.S_IFBLK, tar.FIFO: stat.S_IFIFO}[entry.type]
        if entry.type == tar.CHAR and entry.device == (0, 0):
            raise UnsafeLayer("character device 0:0, which overlayfs takes for a deletion")
        if entry.type != tar.FIFO and not (self._privileged and self._policy.devices):
            self._done.skip("device")
            return
        if entry.device[0] > 0xFFF or entry.device[1] > 0xFFFFF:
            raise UnsafeLayer(f"device number {entry.device}")
        number = os.makedev(*entry.device)
        try:
            os.mknod(name, kind | 0o600, number, dir_fd=parent_fd)
        except FileExistsError:
            self.tree.remove(parent_fd, name, path)
            os.mknod(name, kind | 0o600, number, dir_fd=parent_fd)
        self._finish_nofollow(entry, parent_fd, name)

    def _finish_nofollow(self, entry: tar.Entry, parent_fd: int, name: bytes) -> None:
        """Sets attributes of what can't be opened: links, FIFOs, devices."""
        if self._privileged and (entry.uid, entry.gid) != self._default_ids:
            os.chown(name, entry.uid, entry.gid, dir_fd=parent_fd, follow_symlinks=False)
        if entry.type != tar.SYMLINK:
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent_fd)
            try:
                os.chmod(f"/proc/self/fd/{fd}", entry.mode)
            finally:
                os.close(fd)
        if entry.xattrs:
            self._set_xattrs(b"/proc/self/fd/%d/%s" % (parent_fd, name), entry)
        times = (entry.mtime_ns, entry.mtime_ns)
        os.utime(name, ns=times, dir_fd=parent_fd, follow_symlinks=False)

    def _set_xattrs(self, target: int | bytes, entry: tar.Entry) -> None:
        for key, value in entry.xattrs.items():
            if not self._wanted(key):
                continue
            try:
                if isinstance(target, int):
                    os.setxattr(target, key, value)
                else:
                    os.setxattr(target, key, value, follow_symlinks=False)
            except OSError as e:
                if e.errno != errno.EOPNOTSUPP:
                    raise
                self._done.skip("xattr")

    def _wanted(self, key: bytes) -> bool:
        """True if the attribute is to be set; overlayfs's own are refused, the host's left out."""
        if key.startswith((b"trusted.overlay.", b"user.overlay.")):
            # metacopy and redirect would show other layers' files (overlayfs.rst).
            raise UnsafeLayer(f"extended attribute {show(key)}")
        wanted = key == b"security.capability" or key.startswith((b"user.", b"system.posix_acl_"))
        if wanted and key == b"security.capability" and not self._privileged:
            wanted = False
        if not wanted:
            self._done.skip("xattr")
        return wanted

    def _whiteout(self, directory: bytes, name: bytes) -> None:
        """Applies ".wh.NAME" and ".wh..wh..opq"; other ".wh..wh." names are AUFS's leftovers."""
        if directory.startswith(WHITEOUT) or b"/" + WHITEOUT in directory:
            if directory.startswith(WHITEOUT_META) or b"/" + WHITEOUT_META in directory:
                self._done.skip("aufs")
                return
            raise UnsafeLayer("file below a whiteout")
        if name == OPAQUE:
            self._opaque(directory)
            return
        if name.startswith(WHITEOUT_META):
            self._done.skip("aufs")
            return
        target = name[len(WHITEOUT) :]
        if target in (b"", b".", b".."):
            raise UnsafeLayer("whiteout without a name")
        parent_fd = self.tree.parent(directory)
        if is_opaque(parent_fd, b"."):
            return  # says nothing new, and overlayfs would list it
        try:
            os.mknod(target, stat.S_IFCHR, os.makedev(0, 0), dir_fd=parent_fd)
        except FileExistsError:
            info = os.stat(target, dir_fd=parent_fd, follow_symlinks=False)
            if stat.S_ISDIR(info.st_mode):
                set_opaque(parent_fd, target)
            return  # this layer's own file hides the lower one already
        self._whiteouts.setdefault(directory, []).append(target)

    def _opaque(self, directory: bytes) -> None:
        parent_fd = self.tree.parent(directory)
        set_opaque(parent_fd, b".")
        for name in self._whiteouts.pop(directory, ()):
            try:
                if is_whiteout(os.stat(name, dir_fd=parent_fd, follow_symlinks=False)):
                    os.unlink(name, dir_fd=parent_fd)
            except FileNotFoundError:
                continue


def _blame(error: OSError, name: bytes) -> KernelError | UnsafeLayer:
    """Returns the host's fault as KernelError, the layer's as UnsafeLayer."""
    number = error.errno or 0
    if isinstance(error, KernelError):
        if number in _HOST_ERRNOS:
            return error
        return UnsafeLayer(str(error), entry=show(name))
    if number in _HOST_ERRNOS:
        return KernelError(number, "unpack", field=show(name))
    return UnsafeLayer(os.strerror(number), entry=show(name))
