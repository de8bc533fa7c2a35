"""ImageStore: all images of one data root."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack

from pycontain.errors import ImageNotFound, InternalError, InvalidReference, WrongState
from pycontain.oci import Digest, ImageConfig
from pycontain.values import frozen, replace

from . import collect, embedded, formats, reference
from . import manifest as documents
from .archive import DirectorySource, Member, Source, TarSource
from .collect import Pruned
from .content import ContentStore, Row
from .formats import Found, Layer
from .ingest import Ingest, Places, chain_ids, layer_directory, set_name

Signature = tuple[int, ...]
ID_PREFIX_CHARS = 6


@frozen
class Image:
    """An image whose layers are unpacked.

    `layers` are absolute paths of directories, the lowest first, to be read only. `rootfs_dir` is
    set for "rootfs:DIR" and is then the one layer. `size_bytes` counts the unpacked files.
    """

    id: Digest
    names: tuple[str, ...]
    config: ImageConfig
    layers: tuple[str, ...]
    rootfs_dir: str | None = None
    size_bytes: int = 0
    created: str = ""


class ImageStore:
    """The images below `root` (DATA_ROOT). Opening it touches nothing; it may be shared by threads.

    Several processes may use one root at once: imports and removals lock what they change.
    """

    def __init__(self, root: str) -> None:
        self._places = Places(os.path.abspath(root))
        self._content = ContentStore(self._places.images)
        self._loaded: dict[Digest, tuple[Row, Image]] = {}
        self._sources: dict[str, tuple[Signature, Digest]] = {}

    def resolve(self, argument: str) -> Image:
        """Returns the image that `argument` names; one of another source is imported first.

        Args:
            argument: a stored name or id, oci:DIR[:TAG], oci-archive:FILE[:TAG],
                docker-archive:FILE[:REF], rootfs:DIR, or pycontain/hello.

        Raises:
            InvalidReference: no such form.
            ImageNotFound: nothing there; the hint says what is.
            UntrustedContent: the source is hostile or broken.
        """
        parsed = reference.parse(argument)
        if parsed.transport == "rootfs":
            return _rootfs(parsed.path)
        if parsed.transport:
            return self._from_source(argument, parsed)
        if parsed.name == embedded.NAME:
            return self._embedded()
        return self._stored(parsed.name, argument)

    def import_archive(self, path: str, name: str | None = None, *, ref: str = "") -> Image:
        """An OCI layout (directory or tar) or a `docker save` archive is in the store.

        Args:
            path: of the directory or the archive, which may be compressed.
            name: what to call it; the names inside are claims and are never taken (CVE-2026-50195).
            ref: which of several images.
        """
        stored_name = reference.familiar(name) if name is not None else ""
        with ExitStack() as stack:
            ingest = stack.enter_context(Ingest(self._places, self._content))
            source = _open(os.path.abspath(path), ingest, stack)
            if formats.is_oci(source):
                found = formats.read_oci(source, formats.find_oci(source, ref))
            else:
                found = formats.read_docker(source, ref)
            return self._add(ingest, found, stored_name)

    def import_rootfs_tar(
        self, path: str, name: str | None = None, config: ImageConfig | None = None
    ) -> Image:
        """A plain root file system (.tar, also gzip, zstd, xz, bzip2) is an image of one layer."""
        stored_name = reference.familiar(name) if name is not None else ""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise ImageNotFound(f"{path} does not exist") from None
        try:
            size = os.fstat(fd).st_size
            return self._add_rootfs(Member(fd, 0, size), stored_name, config or ImageConfig())
        finally:
            os.close(fd)

    def ls(self) -> list[Image]:
        """Returns all images, the latest import first."""
        rows = sorted(self._content.index().rows.values(), key=lambda r: r.imported, reverse=True)
        return [self._load(row) for row in rows]

    def inspect(self, argument: str) -> dict[str, object]:
        """Returns what is known of an image, ready for JSON."""
        image = self.resolve(argument)
        known: dict[str, object] = {
            "id": image.id,
            "names": list(image.names),
            "created": image.created,
            "size_bytes": image.size_bytes,
            "layers": list(image.layers),
        }
        if image.rootfs_dir is None:
            data = self._content.read(image.id)
            manifest = documents.parse_manifest(data)
            known["manifest"] = documents.load(data, "manifest")
            known["config"] = documents.load(self._content.read(manifest.config.digest), "config")
        return known

    def tag(self, argument: str, name: str) -> Image:
        """The image is also called `name`; what was called so before no longer is."""
        image = self.resolve(argument)
        if image.rootfs_dir is not None:
            raise InvalidReference("a rootfs directory is not in the store", hint="import it first")
        stored_name = reference.familiar(name)
        index = self._content.update(lambda rows: set_name(rows, stored_name, image.id))
        return self._load(index.rows[image.id])

    def remove(self, argument: str, force: bool = False) -> None:
        """The name is gone, and with the last one (or by id) the image and what only it used.

        Raises:
            ImageNotFound: no stored image is called so.
            WrongState: a container uses it, or an id has several names; `force` overrules (a
                container keeps its layers).
        """
        name = reference.parse(argument).name
        row = self._row(name, argument)
        left = tuple(n for n in row.names if n != name) if name in row.names else ()
        if name not in row.names and len(row.names) > 1 and not force:
            raise WrongState(f"image {argument!r} has the names {', '.join(row.names)}")
        if not left and not force and row.digest in collect.in_use(self._places):
            raise WrongState(f"image {argument!r} is used by a container")

        def change(rows: dict[Digest, Row]) -> None:
            if left:
                rows[row.digest] = replace(rows[row.digest], names=left)
            else:
                rows.pop(row.digest, None)

        self._content.update(change)
        if not left:
            collect.collect(self._places, self._content, untagged=False)

    def prune(self) -> Pruned:
        """Images without a name and what nothing refers to are gone; containers keep theirs."""
        return collect.collect(self._places, self._content, untagged=True)

    def _stored(self, name: str, argument: str) -> Image:
        return self._load(self._row(name, argument))

    def _row(self, name: str, argument: str) -> Row:
        """Returns the stored image of this name, id or id prefix."""
        index = self._content.index()
        if digest := index.by_name.get(name):
            return index.rows[digest]
        prefix = argument.removeprefix("sha256:")
        if len(prefix) >= ID_PREFIX_CHARS and not prefix.strip("0123456789abcdef"):
            matches = [row for digest, row in index.rows.items() if digest[7:].startswith(prefix)]
            if len(matches) > 1:
                raise InvalidReference(f"{argument!r} is the start of {len(matches)} image ids")
            if matches:
                return matches[0]
        raise ImageNotFound(f"no image {argument!r}", hint=_near(name, [*index.by_name]))

    def _load(self, row: Row) -> Image:
        """Returns the image of a row; its documents are read once per process."""
        loaded = self._loaded.get(row.digest)
        if loaded is not None and loaded[0] == row and os.path.exists(loaded[1].layers[0]):
            return loaded[1]
        manifest = documents.parse_manifest(self._content.read(row.digest))
        config = documents.parse_config(self._content.read(manifest.config.digest))
        layers = self._layers(config.diff_ids) or self._unpack_again(row)
        image = Image(
            id=row.digest,
            names=row.names,
            config=config.image,
            layers=layers,
            size_bytes=row.unpacked_bytes,
            created=config.image.created,
        )
        self._loaded[row.digest] = (row, image)
        return image

    def _layers(self, diff_ids: tuple[Digest, ...]) -> tuple[str, ...]:
        """Returns the layers' directories; nothing if one is missing."""
        found: list[str] = []
        for chain, diff_id in zip(chain_ids(diff_ids), diff_ids, strict=True):
            directory = layer_directory(self._places, chain, diff_id)
            if directory is None:
                return ()
            found.append(f"{directory}/fs")
        return tuple(found)

    def _unpack_again(self, row: Row) -> tuple[str, ...]:
        """A layer that somebody deleted is made again from its blob."""
        source = DirectorySource(self._places.images)
        try:
            found = formats.read_oci(source, row.digest)
            with Ingest(self._places, self._content) as ingest:
                ingest.finish(ingest.add(found), "")
        finally:
            source.close()
        layers = self._layers(tuple(layer.diff_id for layer in found.layers))
        if not layers:
            raise InternalError(f"image {row.digest} has no layers after it was unpacked again")
        return layers

    def _from_source(self, argument: str, parsed: reference.Reference) -> Image:
        """Returns the image of an archive or layout, imported unless it is there unchanged."""
        signature = _signature(parsed)
        known = self._sources.get(argument)
        if known is not None and known[0] == signature:
            row = self._content.index().rows.get(known[1])
            if row is not None:
                return self._load(row)
        image = self._import_source(parsed)
        self._sources[argument] = (signature, image.id)
        return image

    def _import_source(self, parsed: reference.Reference) -> Image:
        if parsed.transport == "oci":
            source = DirectorySource(parsed.path)
            try:
                digest = formats.find_oci(source, parsed.name)
                if row := self._content.index().rows.get(digest):
                    return self._load(row)
                found = formats.read_oci(source, digest)
                with Ingest(self._places, self._content) as ingest:
                    return self._add(ingest, found, "")
            finally:
                source.close()
        with ExitStack() as stack:
            ingest = stack.enter_context(Ingest(self._places, self._content))
            archive = _open(parsed.path, ingest, stack)
            if parsed.transport == "oci-archive":
                digest = formats.find_oci(archive, parsed.name)
                if row := self._content.index().rows.get(digest):
                    return self._load(row)
                found = formats.read_oci(archive, digest)
            else:
                found = formats.read_docker(archive, parsed.name)
            return self._add(ingest, found, "")

    def _add(self, ingest: Ingest, found: Found, name: str) -> Image:
        row = ingest.add(found)
        ingest.finish(row, name)
        return self._load(self._content.index().rows[row.digest])

    def _add_rootfs(self, member: Member, name: str, config: ImageConfig) -> Image:
        with Ingest(self._places, self._content) as ingest:
            layer: Layer = ingest.add_unknown_layer(member)
            data = documents.config_document(config, (layer.diff_id,))
            return self._add(ingest, Found(None, data, (layer,)), name)

    def _embedded(self) -> Image:
        data, program_hash = embedded.program()
        index = self._content.index()
        if digest := index.by_name.get(embedded.NAME):
            image = self._load(index.rows[digest])
            if (embedded.LABEL, program_hash) in image.config.labels:
                return image
        with Ingest(self._places, self._content) as ingest:
            fd = ingest.spool()
            try:
                content = embedded.layer(data)
                os.write(fd, content)
                layer = ingest.add_unknown_layer(Member(fd, 0, len(content)))
            finally:
                os.close(fd)
            config = documents.config_document(embedded.config(program_hash), (layer.diff_id,))
            return self._add(ingest, Found(None, config, (layer,)), embedded.NAME)


def _open(path: str, ingest: Ingest, stack: ExitStack) -> Source:
    spool: Callable[[], int] = ingest.spool
    source: Source = DirectorySource(path) if os.path.isdir(path) else TarSource(path, spool)
    stack.callback(source.close)
    return source


def _signature(parsed: reference.Reference) -> Signature:
    path = f"{parsed.path}/index.json" if parsed.transport == "oci" else parsed.path
    try:
        info = os.stat(path)
    except OSError:
        raise ImageNotFound(f"{path} does not exist") from None
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns


def _rootfs(path: str) -> Image:
    if not os.path.isdir(path):
        raise ImageNotFound(f"{path} is not a directory")
    import hashlib

    digest = Digest("sha256:" + hashlib.sha256(b"rootfs\0" + os.fsencode(path)).hexdigest())
    return Image(digest, (), ImageConfig(), (path,), rootfs_dir=path)


def _near(name: str, names: list[str]) -> str:
    import difflib

    near = difflib.get_close_matches(name, names, 3, 0.5)
    if not near:
        base = name.rpartition(":")[0]
        near = [n for n in names if n.rpartition(":")[0] == base][:3]
    return f"similar: {', '.join(near)}" if near else f"an image is {reference.FORMS}"
