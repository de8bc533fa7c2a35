"""The one composer: image + options -> container. What `pycontain.run()` calls.

    image.ImageStore   finds or imports the image, gives its layers as one Mount
    runtime.spec       image config + options -> Spec (docker's rules)
    runtime.Container  the spec's life: state, start, end, record

No state of its own beyond caches; make one, or use the default, from any thread.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pycontain.errors import InvalidInput, NotFound, PycontainError
from pycontain.oci import IdMap, Spec, User
from pycontain.runtime import blueprint as blueprints
from pycontain.runtime.blueprint import Blueprint
from pycontain.runtime.container import Container
from pycontain.runtime.host import Host
from pycontain.runtime.liveness import own_identity
from pycontain.runtime.options import RunOptions, parse_pairs, parse_signal
from pycontain.runtime.process import Result, decoder, finish
from pycontain.runtime.run import NeverRan
from pycontain.runtime.spec import build_spec
from pycontain.runtime.state import new_id
from pycontain.runtime.stdio import PIPE, Stream
from pycontain.runtime.units import parse_bytes, parse_duration
from pycontain.values import replace

if TYPE_CHECKING:
    from pycontain.image import Image, ImageStore
    from pycontain.image.spares import Spares
    from pycontain.runtime.pruning import PruneReport

__all__ = ["Engine", "default_engine"]

START_ATTEMPTS = 4  # of a run, while something kills the monitor again and again


class Engine:
    """Containers of one state root and one data root; the defaults are this user's usual ones."""

    def __init__(self, *, state_root: str | None = None, data_root: str | None = None) -> None:
        self.host = Host(state_root, data_root, remove_tree=self._remove_tree)
        self.state_root = self.host.state_root
        self.data_root = self.host.data_root

    @cached_property
    def images(self) -> ImageStore:
        """The image store of the data root."""
        from pycontain.image import ImageStore

        return ImageStore(self.data_root)

    @cached_property
    def _spares(self) -> Spares:
        from pycontain.image.spares import Spares

        spares = Spares(self.host.containers_dir, own_identity)
        weakref.finalize(self, spares.close)  # also when the program ends without `close`
        return spares

    def _remove_tree(self, path: str) -> None:
        self._spares.remove(path)

    def close(self) -> None:
        """Give up idle connections and directory descriptors; containers are not affected.

        An engine that is used again opens them anew.
        """
        self.host.close()
        if "_spares" in self.__dict__:
            self._spares.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- making ---------------------------------------------------------------------------------

    def container(
        self,
        image: str,
        command: Sequence[str] | None = None,
        *,
        stdin: Stream = None,
        stdout: Stream = None,
        stderr: Stream = None,
        log: bool | None = None,
        detach: bool = False,
        options: RunOptions | None = None,
        **words: Any,
    ) -> Container:
        """Return a handle of a container that does not exist yet; `create` or `start` makes it.

        Args:
            detach: it outlives this program and is not killed with it; its output is logged.
            log: log the output in place of passing it through; the default is `detach`.
        Raises: InvalidInput, InvalidSpec: an option, named.  ImageNotFound.
        """
        options = _options(options, words)
        container_id = new_id()
        log = detach if log is None else log
        found = self.images.resolve(image)
        blueprint = self._blueprint(image, found, command or (), options, container_id)
        blueprint = replace(
            blueprint, survive=detach, log=log and options.log, interactive=options.interactive
        )
        data_dir = self.host.data_dir(container_id)
        return Container(
            self.host, blueprint, stdin=stdin, stdout=stdout, stderr=stderr,
            prepare=None if found.rootfs_dir else lambda: self._prepare(data_dir, found, blueprint),
        )  # fmt: skip

    def _blueprint(
        self,
        name: str,
        image: Image,
        command: Sequence[str],
        options: RunOptions,
        container_id: str,
        *,
        make: bool = True,
    ) -> Blueprint:
        from pycontain.image import snapshots

        def resolve_user(user: str, groups: Sequence[str | int]) -> tuple[User, str]:
            return self._resolve_user(image, user, groups)

        spec = build_spec(
            image.config, command, options, resolve_user=resolve_user, container_id=container_id
        )
        labels = {**dict(image.config.labels), **parse_pairs(options.labels, field="labels")}
        parent = options.cgroup_parent or self.host.cgroup_parent(start=make)

        owner_pid, owner_ticks = own_identity()
        stop_signal = options.stop_signal
        if stop_signal is None:
            stop_signal = image.config.stop_signal or "TERM"
        return Blueprint(
            id=container_id,
            name=options.name or container_id[:12],
            image=name,
            image_id=image.id,
            created_at=time.time(),
            spec=spec,
            rootfs=snapshots.describe(self.host.data_dir(container_id), image),
            labels=tuple(labels.items()),
            seccomp=_seccomp_text(options.seccomp),
            log_max_bytes=parse_bytes(options.log_max_bytes or 0, field="log_max_bytes"),
            log_max_files=options.log_max_files or 0,
            timeout_usec=(
                0 if options.timeout is None else parse_duration(options.timeout, field="timeout")
            ),
            stop_signal=parse_signal(stop_signal, field="stop_signal"),
            stop_timeout_usec=(
                10_000_000
                if options.stop_timeout is None
                else parse_duration(options.stop_timeout, field="stop_timeout")
            ),
            cgroup=f"{parent}/{container_id}",
            owner_pid=owner_pid,
            owner_ticks=owner_ticks,
        )

    def _resolve_user(
        self, image: Image, user: str, groups: Sequence[str | int]
    ) -> tuple[User, str]:
        """Ids by the image's own passwd and group; root needs no look at them."""
        if user in ("", "0", "root", "0:0") and not groups:
            return User(), "/root"
        from pycontain.image import snapshots
        from pycontain.isolation.mounts import open_host_mount
        from pycontain.runtime import users

        root_fd, _ = open_host_mount(snapshots.view(image), "rootfs")
        try:
            return users.lookup(root_fd, user, groups)
        finally:
            os.close(root_fd)

    def _prepare(self, data_dir: str, image: Image, blueprint: Blueprint) -> None:
        self._spares.prepare(data_dir, image)
        spec = blueprint.spec
        if spec.uid_mappings:  # the layers are mapped when they are mounted; what is written is not
            upper = f"{data_dir}/upper"
            status = os.stat(upper)
            os.chown(
                upper, _on_host(status.st_uid, spec.uid_mappings),
                _on_host(status.st_gid, spec.gid_mappings),
            )  # fmt: skip

    # -- running --------------------------------------------------------------------------------

    def run(
        self,
        image: str,
        command: Sequence[str] | None = None,
        *,
        input: Any = None,
        capture_output: bool = False,
        text: bool = False,
        encoding: str | None = None,
        errors: str | None = None,
        check: bool = False,
        stdin: Stream = None,
        stdout: Stream = None,
        stderr: Stream = None,
        options: RunOptions | None = None,
        **words: Any,
    ) -> Result:
        """Run a container to its end, remove it, and return how it ended and what it used.

        The words are those of `subprocess.run`; the rest are fields of `RunOptions` (memory="256M",
        cpus=0.5, pids=64, timeout=10, env, cwd, user, ...). At `timeout` seconds the whole
        container is killed and `timed_out` is True; nothing is raised for it.

        Raises: ContainerFailed: `check` and the exit code is not 0; it carries the result.
            InvalidInput, ImageNotFound, CommandNotFound, Unsupported, KernelError: it never ran.
        """
        codec = decoder(text, encoding, errors)
        if input is not None:
            stdin = PIPE
        if capture_output:
            stdout = stderr = PIPE
        container = self.container(
            image, command, stdin=stdin, stdout=stdout, stderr=stderr, options=options, **words
        )
        try:
            for attempt in range(START_ATTEMPTS):
                try:
                    container.start(quiet=True)
                    out, err = container.communicate(codec.encode(input))
                    record = container.wait()
                    break
                except NeverRan:
                    if attempt == START_ATTEMPTS - 1:
                        raise
                    discard_start(container)
        finally:
            container.remove(force=True)
        result = finish(container.id, container.args, record, codec.decode(out), codec.decode(err))
        return result.check() if check else result

    def plan(
        self,
        image: str,
        command: Sequence[str] | None = None,
        options: RunOptions | None = None,
        **words: Any,
    ) -> str:
        """Return what a run would do, as text: the quotas, then the child's ops. Makes nothing."""
        from pycontain.runtime import launch

        container_id = new_id()
        found = self.images.resolve(image)
        blueprint = self._blueprint(
            image, found, command or (), _options(options, words), container_id, make=False
        )
        with ExitStack() as stack:
            plan = launch.prepare(self.host, blueprint, stack, stdio=(0, 1, 2), rootfs_fd=3)
            return _describe(blueprint.spec, blueprint) + plan.dump()

    # -- finding --------------------------------------------------------------------------------

    def get(self, ref: str) -> Container:
        """Return a handle of an existing container by id, unique prefix of one, or name.

        Raises: ContainerNotFound.  WrongState: its state can't be read.
        """
        container_id = self.host.states.resolve(ref)
        document = self.host.states.load(container_id)
        return Container(self.host, blueprints.decode(document), exists=True)

    def list(self) -> list[Container]:
        """Return handles of all containers, newest first; those of damaged state are left out."""
        found = []
        for entry in self.host.states.ls():
            if entry.document is not None:
                with suppress(PycontainError):
                    blueprint = blueprints.decode(entry.document)
                    found.append(Container(self.host, blueprint, exists=True))
        return sorted(found, key=lambda c: c.created_at, reverse=True)

    # -- cleaning -------------------------------------------------------------------------------

    def prune(self, *, exited: bool = True) -> PruneReport:
        """No ended container is left, nor anything that a crash left of one.

        Args: exited: False keeps containers that ended by themselves, unless marked auto_remove.
        """
        from pycontain.image.spares import sweep
        from pycontain.runtime.liveness import is_alive
        from pycontain.runtime.pruning import prune

        report = prune(self.host, exited=exited)
        left = sweep(self.host.containers_dir, is_alive)
        return replace(report, leftovers=report.leftovers + left)

    def info(self) -> dict[str, Any]:
        """Return what this host can do and, where it can't, why not."""
        from pycontain.runtime.probe import probe

        return probe(self.host)


def discard_start(container: Container) -> None:
    """A start of our own container that was lost with the monitor has left no cgroup."""
    with suppress(NotFound):
        group = container.open_cgroup()
        group.kill()
        group.remove()


_default: Engine | None = None


def default_engine() -> Engine:
    """The engine of this user's usual roots; made on first use."""
    global _default
    if _default is None:
        _default = Engine()
    return _default


def _on_host(container_id: int, maps: Sequence[IdMap]) -> int:
    """Return what an id of the container is on the host; -1, "no change", if it has no place."""
    for extent in maps:
        if extent.container_id <= container_id < extent.container_id + extent.size:
            return extent.host_id + container_id - extent.container_id
    return -1


def _options(options: RunOptions | None, words: Mapping[str, Any]) -> RunOptions:
    try:
        return RunOptions(**words) if options is None else replace(options, **words)
    except TypeError as error:
        raise InvalidInput(str(error).partition(") ")[2] or str(error), field="options") from None


def _seccomp_text(value: str | Mapping[str, object]) -> str:
    """ "default", "unconfined", or the profile itself: its file may change or go meanwhile."""
    if value in ("default", "unconfined"):
        return str(value)
    import json

    if isinstance(value, str):
        try:
            with open(value, encoding="utf-8") as file:
                value = json.load(file)
        except (OSError, ValueError) as error:
            raise InvalidInput(f"{value}: {error}", field="seccomp") from None
    from pycontain.isolation.seccomp import load_profile

    load_profile(dict(value))  # type: ignore[arg-type]  # refused now, not at the start
    return json.dumps(value, sort_keys=True)


def _describe(spec: Spec, blueprint: Blueprint) -> str:
    lines = [f"image      {blueprint.image} {blueprint.image_id}".rstrip()]
    lines.append(f"rootfs     {blueprint.rootfs.type} {' '.join(blueprint.rootfs.options)}")
    lines.append(f"cgroup     {blueprint.cgroup}")
    fields = ("memory_max_bytes", "memory_swap_max_bytes", "cpu_quota_usec", "cpu_weight",
              "cpuset_cpus", "pids_max", "io_max")  # fmt: skip
    for name in fields:
        value = getattr(spec.resources, name)
        if value not in (None, ()):
            lines.append(f"{name:<24} {value}")
    lines.append("namespaces " + " ".join(n.type + (f"={n.path}" if n.path else "")
                                          for n in spec.namespaces))  # fmt: skip
    return "\n".join(lines) + "\n\n"
