"""Seccomp filters: a profile compiled for a container's capabilities, and kept on disk.

Compiling takes libseccomp and milliseconds; it happens once per profile, set of capabilities and
machine. After that a filter is a dictionary lookup, or in a new process the read of a small file,
and libseccomp need not even be installed.
Source: seccomp(2), seccomp_rule_add(3), OCI runtime-spec config-linux.md#seccomp.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from errno import ENOSYS
from typing import Any, NamedTuple

from pycontain._native.version import VERSION
from pycontain.errors import InvalidSpec, Unsupported
from pycontain.isolation.seccomp_profile import (
    ALLOW,
    DEFAULT,
    ERRNO,
    LOG,
    TRACE,
    UNCONFINED,
    Arg,
    Profile,
    Rule,
)

__all__ = ["DEFAULT", "UNCONFINED", "Profile", "compile_filter", "default_filter", "load_profile"]

_MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS
_MAGIC = b"PYCBPF1\n"
_HEADER_BYTES = len(_MAGIC) + 32


class _Arch(NamedTuple):
    audit: int  # AUDIT_ARCH_*, which is also libseccomp's token
    go_name: str
    subordinate: dict[str, int]  # what the same kernel may run besides: SCMP_ARCH_* to token
    own_calls: dict[str, int]  # numbers that an old libseccomp may not know


_ARCHES = {
    "x86_64": _Arch(
        0xC000003E,
        "amd64",
        {"SCMP_ARCH_X86": 0x40000003, "SCMP_ARCH_X32": 0x4000003E},
        {"uretprobe": 335, "uprobe": 336},
    ),
    "aarch64": _Arch(0xC00000B7, "arm64", {"SCMP_ARCH_ARM": 0x40000028}, {}),
}
# Numbers are the same on every architecture from here on. An older libseccomp lacks the last ones,
# and a filter should not depend on which one was installed.
_FIRST_COMMON = 424
_COMMON = """
pidfd_send_signal io_uring_setup io_uring_enter io_uring_register open_tree move_mount fsopen
fsconfig fsmount fspick pidfd_open clone3 close_range openat2 pidfd_getfd faccessat2
process_madvise epoll_pwait2 mount_setattr quotactl_fd landlock_create_ruleset landlock_add_rule
landlock_restrict_self memfd_secret process_mrelease futex_waitv set_mempolicy_home_node cachestat
fchmodat2 map_shadow_stack futex_wake futex_wait futex_requeue statmount listmount
lsm_get_self_attr lsm_set_self_attr lsm_list_modules mseal setxattrat getxattrat listxattrat
removexattrat open_tree_attr file_getattr file_setattr
"""

_filters: dict[tuple[str, int, str], bytes] = {}
_defaults: dict[int, bytes] = {}


def default_filter(caps: int, cache_dir: str | os.PathLike[str] | None = None) -> bytes:
    """Return our default profile's filter for a container whose bounding set is `caps`."""
    code = _defaults.get(caps)
    if code is None:
        code = _defaults[caps] = compile_filter(DEFAULT, caps, cache_dir=cache_dir)
    return code


def compile_filter(
    profile: Profile,
    caps: int,
    *,
    arch: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> bytes:
    """Return the profile's `struct sock_filter[]` for the bounding set `caps`.

    Looked up in memory, then in `cache_dir` (created 0700; a file there that is not exactly what
    we wrote, or not ours, is rebuilt), then built. A cache that can't be written is no error.

    Args:
        arch: a machine as uname -m says, the running one if not given.

    Raises:
        Unsupported: it has to be built, and libseccomp is missing or the machine unknown.
        InvalidSpec: a rule would hide another, or they make more than the kernel's 4096
            instructions.
    """
    arch = arch or os.uname().machine
    if arch not in _ARCHES:
        raise Unsupported(f"seccomp on {arch}", needs="x86_64 or aarch64")
    key = (_fingerprint(profile, caps, arch), caps & profile.relevant_caps, arch)
    code = _filters.get(key)
    if code is not None:
        return code
    path = None if cache_dir is None else os.path.join(cache_dir, f"{key[0]}.bpf")
    code = None if path is None else _read_cache(path)
    if code is None:
        code, complete = _build(profile, caps, arch)
        # A newer libseccomp may know more names. Left out of an allow-list they stay refused, but
        # a deny-list must be built again to get them.
        if path is not None and (complete or not _is_permissive(profile)):
            _write_cache(path, code)
    return _filters.setdefault(key, code)


def load_profile(source: str | os.PathLike[str] | dict[str, Any]) -> Profile:
    """Return the profile in a JSON file, or in a dictionary, in OCI's or in Docker's format.

    Raises:
        InvalidSpec: it is not such a profile; the field is like `seccomp.syscalls[3].action`.
    """
    from pycontain.isolation import seccomp_json

    return seccomp_json.load(source)


def _fingerprint(profile: Profile, caps: int, arch: str) -> str:
    """Return a name for the filter: everything that it depends on but libseccomp, hashed.

    libseccomp's version is not in it, for asking means loading it, which the cache is to avoid.
    """
    import hashlib

    kernel = _kernel_version()
    thresholds = {rule.min_kernel for rule in profile.rules}
    thresholds |= {rule.not_min_kernel for rule in profile.rules}
    passed = sorted(version for version in thresholds if version <= kernel)
    parts = (VERSION, _MAGIC, profile, caps & profile.relevant_caps, arch, passed)
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _kernel_version() -> tuple[int, int]:
    major, minor, *_ = os.uname().release.split(".")
    return int(major), int("".join(char for char in minor if char.isdigit()) or "0")


def _read_cache(path: str) -> bytes | None:
    """Return the filter in a cache file, None if there is none that can be trusted."""
    import hashlib

    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
            return None
        data = file.read(_HEADER_BYTES + 8 * _MAX_INSTRUCTIONS + 1)
    code = data[_HEADER_BYTES:]
    if (
        data[:_HEADER_BYTES]
        != _MAGIC + hashlib.sha256(os.path.basename(path).encode() + code).digest()
    ):
        return None
    return code if code and len(code) % 8 == 0 and len(code) <= 8 * _MAX_INSTRUCTIONS else None


def _write_cache(path: str, code: bytes) -> None:
    """Replace a cache file as a whole; the header hashes its name too, against mixed-up files."""
    import hashlib

    digest = hashlib.sha256(os.path.basename(path).encode() + code).digest()
    temporary = f"{path}.{os.getpid()}.{os.urandom(4).hex()}"
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(_MAGIC + digest + code)
        os.rename(temporary, path)
    except OSError:
        try:
            os.unlink(temporary)
        except OSError:
            return


def _selected(profile: Profile, caps: int, arch: str) -> Iterator[Rule]:
    """Yield the rules that are for these capabilities, this machine and this kernel."""
    kernel, go_name = _kernel_version(), _ARCHES[arch].go_name
    for rule in profile.rules:
        if (
            rule.caps & ~caps == 0
            and rule.not_caps & caps == 0
            and (not rule.arches or go_name in rule.arches)
            and go_name not in rule.not_arches
            and rule.min_kernel <= kernel
            and not (0, 0) < rule.not_min_kernel <= kernel
        ):
            yield rule


def _build(profile: Profile, caps: int, arch: str) -> tuple[bytes, bool]:
    """Return the filter, and whether every name in it was known."""
    from pycontain.isolation.seccomp_library import Builder, denied_code, newer_code

    target = _ARCHES[arch]
    own_numbers = {name: _FIRST_COMMON + index for index, name in enumerate(_COMMON.split())}
    own_numbers |= target.own_calls
    tokens = [target.subordinate[a] for a in profile.architectures if a in target.subordinate]
    newest, complete = 0, True
    actions: dict[int, dict[tuple[Arg, ...], int]] = {}
    with Builder(profile.default_action, target.audit, tokens, profile.bad_arch_action) as builder:
        if not builder.is_native:
            own_numbers = {}  # rules take numbers of the running machine and translate them
        for rule in _selected(profile, caps, arch):
            for name in rule.names:
                number = own_numbers.get(name, builder.number(name))
                newest = max(newest, number or 0)
                if rule.action == profile.default_action:
                    continue  # libseccomp refuses it
                if number is None:
                    complete = False
                    continue
                for args in _either(rule.args):
                    _check_agreement(actions.setdefault(number, {}), args, rule.action, name)
                    complete &= builder.add(rule.action, number, name, args)
        code = builder.export()
        prologue = b"".join(
            denied_code(denied, target.audit, builder.target_number(denied.name))
            for denied in profile.denied
        )
        if _hides_new_calls(profile) and builder.is_native:
            prologue = newer_code(newest, target.audit, skip_x32=bool(tokens)) + prologue
    if len(prologue + code) > 8 * _MAX_INSTRUCTIONS:
        raise InvalidSpec("makes more instructions than the kernel takes", field="seccomp")
    return prologue + code, complete


def _either(args: tuple[Arg, ...]) -> list[tuple[Arg, ...]]:
    """Return the alternatives in a rule's tests: all hold, or any if they test one argument twice.

    As runc reads them; libseccomp takes one test per argument.
    """
    if len({arg.index for arg in args}) < len(args):
        return [(arg,) for arg in args]
    return [args]


def _check_agreement(
    actions: dict[tuple[Arg, ...], int], args: tuple[Arg, ...], action: int, name: str
) -> None:
    """Refuse a rule for all calls beside one for some: libseccomp silently drops the latter.

    Of two rules for the same calls the first counts: podman's own profile has such (setns).
    """
    actions.setdefault(args, action)
    if () in actions and len(actions) > 1 and len(set(actions.values())) > 1:
        raise InvalidSpec(
            f"{name} has a rule without args and another action for some args",
            field="seccomp",
            hint="the first decides for all calls; test the argument in each rule",
        )


def _is_permissive(profile: Profile) -> bool:
    return profile.default_action & 0xFFFF0000 in (ALLOW, LOG, TRACE)


def _hides_new_calls(profile: Profile) -> bool:
    """Say if a call newer than the profile fails in a way that libc doesn't fall back from."""
    default = profile.default_action
    return default & 0xFFFF0000 == ERRNO and default != ERRNO | ENOSYS
