"""Seccomp filters, decided by an interpreter of the classic BPF that they compile to."""

from __future__ import annotations

import errno
import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from pycontain.errors import InvalidSpec, Unsupported
from pycontain.isolation import capabilities, seccomp, seccomp_library
from pycontain.isolation.seccomp import DEFAULT, Profile, compile_filter, default_filter
from pycontain.isolation.seccomp import load_profile as load
from pycontain.isolation.seccomp_profile import (
    ALLOW,
    ERRNO,
    KILL_PROCESS,
    LOG,
    Arg,
    Denied,
    Rule,
)

X86, AARCH64, I386 = 0xC000003E, 0xC00000B7, 0x40000003
EPERM, ENOSYS = ERRNO | errno.EPERM, ERRNO | errno.ENOSYS
READ, MOUNT, CLONE, SOCKET, IOCTL, CLONE3 = 0, 165, 56, 41, 16, 435  # x86_64
SYS_ADMIN = capabilities.parse(["SYS_ADMIN"])
FIELDS = dict[str, Any]


def decide(code: bytes, number: int, *args: int, arch: int = X86) -> int:
    """Interpret `code` as the kernel would for one system call."""
    data = struct.pack("<IIQ6Q", number, arch, 0, *args, *[0] * (6 - len(args)))
    accumulator, pc = 0, 0
    while True:
        op, if_true, if_false, k = struct.unpack_from("<HBBI", code, pc * 8)
        pc += 1
        match op:
            case 0x20:
                accumulator = struct.unpack_from("<I", data, k)[0]
            case 0x54:
                accumulator &= k
            case 0x05:
                pc += k
            case 0x15:
                pc += if_true if accumulator == k else if_false
            case 0x25:
                pc += if_true if accumulator > k else if_false
            case 0x35:
                pc += if_true if accumulator >= k else if_false
            case 0x06:
                return int(k)
            case _:
                raise AssertionError(f"unexpected instruction {op:#x}")


def build(profile: Profile, caps: int = 0, **options: Any) -> bytes:
    """Compile for x86_64 whatever machine runs the test."""
    return compile_filter(profile, caps, arch="x86_64", **options)


@pytest.fixture(autouse=True)
def empty_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test starts with nothing compiled."""
    monkeypatch.setattr(seccomp, "_filters", {})
    monkeypatch.setattr(seccomp, "_defaults", {})


def without_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise Unsupported("a filter", needs="libseccomp2")

    monkeypatch.setattr(seccomp_library, "_library", missing)


# ---- the default profile -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "action"),
    [
        ((READ,), ALLOW),
        ((MOUNT,), EPERM),
        ((CLONE, 0x11), ALLOW),
        ((CLONE, 0x003D0F00), ALLOW),  # what pthread_create asks for
        ((CLONE, 0x10000011), EPERM),
        ((CLONE3,), ENOSYS),
        ((9999,), ENOSYS),
        ((SOCKET, 1), ALLOW),
        ((SOCKET, 38), ERRNO | errno.EAFNOSUPPORT),
        ((SOCKET, 38 | 1 << 32), ERRNO | errno.EAFNOSUPPORT),
        ((SOCKET, 40), ERRNO | errno.EAFNOSUPPORT),
        ((IOCTL, 0, 0x5413), ALLOW),
        ((IOCTL, 0, 0x5412), EPERM),
        ((IOCTL, 0, 0x5412 | 1 << 32), EPERM),
        ((IOCTL, 0, 0x541C), EPERM),
        ((READ | 0x40000000,), KILL_PROCESS),  # x32
    ],
)
def test_default_profile(call: tuple[int, ...], action: int) -> None:
    """Ordinary calls pass; namespaces, mounts, odd sockets and terminal injection do not."""
    assert decide(build(DEFAULT, capabilities.DEFAULT), *call) == action


def test_default_kills_other_architectures() -> None:
    """A call through another ABI ends the process, whatever its number."""
    assert decide(build(DEFAULT, capabilities.DEFAULT), READ, arch=I386) == KILL_PROCESS


def test_capabilities_open_calls() -> None:
    """CAP_SYS_ADMIN brings mounts and namespaces, but neither keyrings nor io_uring."""
    code = build(DEFAULT, SYS_ADMIN)
    assert [decide(code, number) for number in (MOUNT, CLONE3)] == [ALLOW, ALLOW]
    assert decide(code, CLONE, 0x10000011) == ALLOW
    assert decide(code, 250) == EPERM  # keyctl
    assert decide(code, 425) == ENOSYS  # io_uring_setup


def test_default_builds_for_aarch64() -> None:
    """The same profile decides the same for the other machine's numbers."""
    code = compile_filter(DEFAULT, capabilities.DEFAULT, arch="aarch64")
    assert decide(code, 63, arch=AARCH64) == ALLOW  # read
    assert decide(code, 40, arch=AARCH64) == EPERM  # mount
    assert decide(code, 29, 0, 0x5412 | 1 << 32, arch=AARCH64) == EPERM  # ioctl
    assert decide(code, 63, arch=X86) == KILL_PROCESS


def test_irrelevant_capabilities_share_a_filter() -> None:
    """Capabilities that no rule mentions make no new filter."""
    chown = capabilities.parse(["CHOWN"])
    assert build(DEFAULT, chown) is build(DEFAULT, 0)
    assert default_filter(chown) is default_filter(chown)


# ---- rules -------------------------------------------------------------------------------


def test_denied_argument_wins_over_any_rule() -> None:
    """A denied low half is refused even where a rule allows the call."""
    denied = (Denied("ioctl", 1, (1, 2, 3), EPERM),)
    code = build(Profile(ALLOW, (), denied=denied))
    answers = [decide(code, IOCTL, 0, value | 5 << 40) for value in range(5)]
    assert answers == [ALLOW, EPERM, EPERM, EPERM, ALLOW]


def test_calls_newer_than_an_eperm_profile_are_unknown() -> None:
    """Above the highest named call the answer is ENOSYS; other machines are not touched by it."""
    code = build(Profile(EPERM, (Rule(("read", "openat2"), ALLOW),), ("SCMP_ARCH_X86",)))
    if os.uname().machine != "x86_64":
        pytest.skip("needs x86_64 (the newest call is known for the running machine only)")
    assert [decide(code, n) for n in (READ, MOUNT, 437, 438)] == [ALLOW, EPERM, ALLOW, ENOSYS]
    assert decide(code, 3, arch=I386) == ALLOW  # read
    assert decide(code, 500, arch=I386) == EPERM


def test_repeated_tests_of_an_argument_are_alternatives() -> None:
    """Two tests of one argument allow either, tests of different arguments must all hold."""
    either = (Arg(0, "SCMP_CMP_EQ", 1), Arg(0, "SCMP_CMP_EQ", 3))
    both = (Arg(0, "SCMP_CMP_EQ", 1), Arg(1, "SCMP_CMP_GE", 3))
    code = build(Profile(ENOSYS, (Rule(("socket",), ALLOW, either), Rule(("ioctl",), ALLOW, both))))
    assert [decide(code, SOCKET, n) for n in (1, 2, 3)] == [ALLOW, ENOSYS, ALLOW]
    assert [decide(code, IOCTL, 1, n) for n in (2, 3)] == [ENOSYS, ALLOW]


def test_rules_can_depend_on_kernel_and_machine() -> None:
    """minKernel and arches take a rule in or leave it out."""
    rules = (
        Rule(("read",), ALLOW, min_kernel=(3, 0), not_min_kernel=(99, 0)),
        Rule(("write",), ALLOW, min_kernel=(99, 0)),
        Rule(("close",), ALLOW, not_min_kernel=(3, 0)),
        Rule(("open",), ALLOW, arches=("arm64",)),
        Rule(("stat",), ALLOW, not_arches=("arm64",)),
    )
    code = build(Profile(ENOSYS, rules))
    assert [decide(code, n) for n in (0, 1, 3, 2, 4)] == [ALLOW, ENOSYS, ENOSYS, ENOSYS, ALLOW]


def test_a_rule_for_all_calls_beside_one_for_some_is_refused() -> None:
    """libseccomp would drop the rule for some, which may be the refusal that somebody relies on."""
    one, two = (Arg(0, "SCMP_CMP_EQ", 1),), (Arg(0, "SCMP_CMP_EQ", 2),)
    for first, second in (((), one), (one, ())):
        rules = (Rule(("read",), ALLOW, first), Rule(("read",), EPERM, second))
        with pytest.raises(InvalidSpec, match="seccomp: read has a rule without args"):
            build(Profile(ENOSYS, rules))
    code = build(Profile(ENOSYS, (Rule(("read",), ALLOW, one), Rule(("read",), EPERM, two))))
    assert [decide(code, READ, n) for n in (0, 1, 2)] == [ENOSYS, ALLOW, EPERM]


def test_the_first_of_two_rules_for_the_same_calls_counts() -> None:
    """As with runc and crun; podman's own profile relies on it."""
    for first, second in ((ALLOW, EPERM), (EPERM, ALLOW)):
        rules = (Rule(("read",), first), Rule(("read",), second))
        assert decide(build(Profile(ENOSYS, rules)), READ) == first


def test_unknown_names_are_skipped() -> None:
    """Names of other kernels' calls do no harm."""
    code = build(Profile(ENOSYS, (Rule(("no_such_call", "read"), ALLOW),)))
    assert decide(code, READ) == ALLOW


def test_unknown_machine_is_unsupported() -> None:
    """A machine without a table is named."""
    with pytest.raises(Unsupported, match="seccomp on vax"):
        compile_filter(DEFAULT, 0, arch="vax")


# ---- the cache ---------------------------------------------------------------------------


def cached(tmp_path: Path) -> Path:
    (path,) = (tmp_path / "cache").iterdir()
    return path


def test_cache_works_without_libseccomp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A filter once built is read back, private to its owner, when libseccomp has gone."""
    code = build(DEFAULT, cache_dir=tmp_path / "cache")
    assert cached(tmp_path).stat().st_mode & 0o777 == 0o600
    seccomp._filters.clear()
    without_library(monkeypatch)
    assert build(DEFAULT, cache_dir=tmp_path / "cache") == code
    with pytest.raises(Unsupported, match="libseccomp2"):
        build(DEFAULT, SYS_ADMIN, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "append", "foreign", "writable"])
def test_damaged_cache_is_rebuilt(tmp_path: Path, damage: str) -> None:
    """A cache file that is not exactly what was written is never used, and replaced."""
    code = build(DEFAULT, cache_dir=tmp_path / "cache")
    path = cached(tmp_path)
    good = path.read_bytes()
    bad = {
        "flip": good[:-1] + bytes([good[-1] ^ 1]),
        "truncate": good[:-8],
        "empty": b"",
        "append": good + good[-8:],
        "writable": good,
    }
    if damage == "foreign":  # a good file under another filter's name
        build(DEFAULT, SYS_ADMIN, cache_dir=tmp_path / "other")
        bad["foreign"] = next((tmp_path / "other").iterdir()).read_bytes()
    path.write_bytes(bad[damage])
    if damage == "writable":
        path.chmod(0o666)
    seccomp._filters.clear()
    assert build(DEFAULT, cache_dir=tmp_path / "cache") == code
    assert cached(tmp_path).read_bytes() == good
    assert cached(tmp_path).stat().st_mode & 0o022 == 0


def test_cache_is_not_read_through_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A symbolic link in the cache's place is not followed."""
    build(DEFAULT, cache_dir=tmp_path / "cache")
    path = cached(tmp_path)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    seccomp._filters.clear()
    without_library(monkeypatch)
    with pytest.raises(Unsupported):
        build(DEFAULT, cache_dir=tmp_path / "cache")


def test_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    """The filter is built all the same, and nothing is left behind."""
    (tmp_path / "file").write_text("")
    assert build(DEFAULT, cache_dir=tmp_path / "file" / "cache")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_incomplete_deny_list_is_not_kept(tmp_path: Path) -> None:
    """A later libseccomp may know the missing name; till then nothing stays on disk."""
    rules = (Rule(("no_such_call",), EPERM),)
    build(Profile(LOG, rules), cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


# ---- JSON --------------------------------------------------------------------------------


def profile(**fields: Any) -> FIELDS:
    """A minimal profile with some fields replaced."""
    return {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [], **fields}


def rule(**fields: Any) -> FIELDS:
    """A profile of one rule with some fields replaced."""
    return profile(syscalls=[{"names": ["read"], "action": "SCMP_ACT_ALLOW", **fields}])


def test_json_fields_arrive() -> None:
    """Every field of OCI's and Docker's formats reaches the profile."""
    loaded = load(
        {
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": 38,
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
            "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"],
            "someday": {},
            "syscalls": [
                {
                    "names": ["clone"],
                    "action": "SCMP_ACT_ERRNO",
                    "errno": "EINVAL",
                    "errnoRet": 1,
                    "args": [{"index": 1, "op": "SCMP_CMP_MASKED_EQ", "value": 255, "valueTwo": 3}],
                    "includes": {"caps": ["CAP_CHOWN"], "arches": ["amd64"], "minKernel": "4.8"},
                    "excludes": {"caps": ["CAP_SYS_ADMIN"], "arches": ["s390"]},
                },
                {"name": "read", "action": "SCMP_ACT_KILL_PROCESS", "args": None},
            ],
        }
    )
    assert loaded == Profile(
        ENOSYS,
        (
            Rule(
                names=("clone",),
                action=ERRNO | errno.EINVAL,
                args=(Arg(1, "SCMP_CMP_MASKED_EQ", 255, 3),),
                caps=1,
                not_caps=SYS_ADMIN,
                arches=("amd64",),
                not_arches=("s390",),
                min_kernel=(4, 8),
            ),
            Rule(("read",), KILL_PROCESS),
        ),
        architectures=("SCMP_ARCH_X86_64", "SCMP_ARCH_X86"),
        flags=6,
    )


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({}, "seccomp.defaultAction"),
        (profile(defaultAction="ALLOW"), "seccomp.defaultAction"),
        (profile(defaultErrnoRet=-1), "seccomp.defaultErrnoRet"),
        (profile(defaultErrno="EWHAT"), "seccomp.defaultErrno"),
        (profile(syscalls={}), "seccomp.syscalls"),
        (profile(syscalls=["read"]), "seccomp.syscalls[0]"),
        (profile(flags=["TSYNC"]), "seccomp.flags[0]"),
        (profile(architectures=["x86"]), "seccomp.architectures[0]"),
        (profile(architectures=["SCMP_ARCH_X86"], archMap=[{}]), "seccomp.archMap"),
        (rule(names=[]), "seccomp.syscalls[0].names"),
        (rule(names=["a", 1]), "seccomp.syscalls[0].names[1]"),
        (rule(action="SCMP_ACT_MAYBE"), "seccomp.syscalls[0].action"),
        (rule(action=["SCMP_ACT_ALLOW"]), "seccomp.syscalls[0].action"),
        (rule(action="SCMP_ACT_NOTIFY"), "seccomp.syscalls[0].action"),
        (rule(action="SCMP_ACT_ERRNO", errnoRet=4096), "seccomp.syscalls[0].errnoRet"),
        (rule(action="SCMP_ACT_ERRNO", errnoRet=True), "seccomp.syscalls[0].errnoRet"),
        (rule(args=[{"index": 6, "op": "SCMP_CMP_EQ"}]), "seccomp.syscalls[0].args[0].index"),
        (rule(args=[{"index": 0, "value": 1, "op": "EQ"}]), "seccomp.syscalls[0].args[0].op"),
        (rule(args=[{"index": 0, "op": "SCMP_CMP_EQ"}]), "seccomp.syscalls[0].args[0].value"),
        (rule(includes={"caps": ["CHOWN"]}), "seccomp.syscalls[0].includes.caps[0]"),
        (rule(excludes={"minKernel": "new"}), "seccomp.syscalls[0].excludes.minKernel"),
        (rule(includes=[1]), "seccomp.syscalls[0].includes"),
    ],
)  # fmt: skip
def test_json_errors_say_where(data: FIELDS, field: str) -> None:
    """What is wrong is named by its JSON path."""
    with pytest.raises(InvalidSpec) as caught:
        load(data)
    assert caught.value.field == field


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "\xff"])
def test_a_file_that_is_no_profile(tmp_path: Path, text: str) -> None:
    """Whatever a file holds, the answer is one kind of error."""
    path = tmp_path / "profile.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(InvalidSpec, match=r"profile\.json"):
        load(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The path is in the message."""
    with pytest.raises(InvalidSpec, match=r"nowhere\.json: No such file"):
        load(tmp_path / "nowhere.json")


def test_file_and_dictionary_are_the_same(tmp_path: Path) -> None:
    """A path gives what its JSON gives."""
    data = rule(includes={"caps": ["CAP_BPF"]})
    (tmp_path / "p.json").write_text(json.dumps(data))
    assert load(str(tmp_path / "p.json")) == load(data)


def test_arch_map_gives_the_subordinate_machines() -> None:
    """Docker's archMap is looked up by the running machine."""
    native = seccomp_json_native()
    entry = {"architecture": native, "subArchitectures": ["SCMP_ARCH_X86"]}
    other = {"architecture": "SCMP_ARCH_S390X", "subArchitectures": ["SCMP_ARCH_S390"]}
    assert load(profile(archMap=[entry, other])).architectures == ("SCMP_ARCH_X86",)


def seccomp_json_native() -> str:
    return f"SCMP_ARCH_{os.uname().machine.upper()}"


# ---- other profiles: extra, where the files happen to be -------------------------------------

OTHERS = sorted(Path(os.environ.get("PYCONTAIN_REFERENCE", "/nonexistent")).glob("seccomp-*.json"))


if OTHERS:

    @pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.stem)
    def test_other_profiles_compile(path: Path) -> None:
        """Docker's and podman's defaults allow and refuse what they are known to."""
        loaded = load(path)
        for caps in (0, capabilities.DEFAULT, capabilities.ALL):
            code = build(loaded, caps)
            assert decide(code, READ) == ALLOW
            assert decide(code, 425) != ALLOW  # io_uring_setup
            assert decide(code, SOCKET, 40) != ALLOW  # AF_VSOCK
