"""Image config and options become a spec by docker's rules, or an error that names the option."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from pycontain.errors import InvalidInput, InvalidSpec
from pycontain.oci import Device, DeviceRule, IdMap, ImageConfig, Mount, Namespace, Spec, User
from pycontain.runtime import spec as spec_
from pycontain.runtime.options import RunOptions
from pycontain.runtime.spec import build_spec, validate

ID = "0123456789abcdef" * 4
IMAGE = ImageConfig(entrypoint=("/entry",), cmd=("a", "b"), env=("A=image", "BAD", "PATH=/bin"))
SHELL = ImageConfig(cmd=("sh",))


def build(
    config: ImageConfig = SHELL, command: Sequence[str] = (), user: User | None = None, **words: Any
) -> Spec:
    """The spec of a run whose user is root unless given."""
    seen = []

    def resolve(text: str, groups: Sequence[str | int]) -> tuple[User, str]:
        seen.append((text, groups))
        return user or User(), "/home/x"

    found = build_spec(config, command, RunOptions(**words), resolve_user=resolve, container_id=ID)
    assert len(seen) == 1
    return found


def options_of(spec: Spec, destination: str) -> tuple[str, ...]:
    """The options of the one mount there."""
    (mount,) = [mount for mount in spec.mounts if mount.destination == destination]
    return mount.options


@pytest.mark.parametrize(
    ("entrypoint", "command", "args"),
    [
        (None, [], ("/entry", "a", "b")),
        (None, ["x"], ("/entry", "x")),
        ("/other", [], ("/other",)),
        ("/other", ["x"], ("/other", "x")),
        (["/o", "-v"], ["x"], ("/o", "-v", "x")),
        ("", ["x"], ("x",)),
        ((), ["x"], ("x",)),
    ],
)
def test_entrypoint_and_command(entrypoint: Any, command: list[str], args: tuple[str, ...]) -> None:
    """A given command replaces the image's; a given entrypoint drops the image's command too."""
    assert build(IMAGE, command, entrypoint=entrypoint).process.args == args


def test_no_command_and_string_commands_are_refused() -> None:
    """Neither is guessed at."""
    with pytest.raises(InvalidSpec, match=r"^command: there is none \(the image has no default"):
        build(ImageConfig())
    with pytest.raises(InvalidSpec, match=r"^command: "):
        build(IMAGE, entrypoint="")
    with pytest.raises(InvalidInput, match=r"^command: one string"):
        build(IMAGE, "echo hi")


def test_environment() -> None:
    """Defaults, image, caller; the last wins; malformed image variables are dropped."""
    assert build(IMAGE, env={"A": "mine", "B": ""}).process.env == (
        "PATH=/bin",
        "HOSTNAME=0123456789ab",
        "A=mine",
        "B=",
        "HOME=/home/x",
    )
    env = build(tty=True, env=["HOME=/h", "TERM=vt100"]).process.env
    assert env == (
        f"PATH={spec_.DEFAULT_PATH}",
        "HOSTNAME=0123456789ab",
        "TERM=vt100",
        "HOME=/h",
    )


@pytest.mark.parametrize(
    ("image", "given", "cwd"),
    [("", None, "/"), ("/a/../b", None, "/b"), ("rel", None, "/rel"), ("/a", "/c//d/", "/c/d")],
)
def test_working_directory(image: str, given: str | None, cwd: str) -> None:
    """The caller's, else the image's, else the root; never relative to anything of ours."""
    assert build(replace(SHELL, working_dir=image), cwd=given).process.cwd == cwd
    with pytest.raises(InvalidInput, match=r"^cwd: "):
        build(cwd="relative")


def test_the_user_is_looked_up_once_with_its_groups() -> None:
    """The caller's user replaces the image's; umask is the caller's."""
    calls = []

    def resolve(text: str, groups: Sequence[str | int]) -> tuple[User, str]:
        calls.append((text, tuple(groups)))
        return User(5, 6, (7,)), "/"

    for user in (None, "b"):
        options = RunOptions(user=user, group_add=("x",), umask=0o077)
        spec = build_spec(
            replace(SHELL, user="a"), [], options, resolve_user=resolve, container_id=ID
        )
        assert spec.process.user == User(5, 6, (7,), 0o077)
    assert calls == [("a", ("x",)), ("b", ("x",))]


def test_defaults() -> None:
    """What runs without options: every namespace but user and time, podman's rights, 2048 pids."""
    spec = build()
    assert [n.type for n in spec.namespaces] == [
        "mount",
        "pid",
        "ipc",
        "uts",
        "network",
        "cgroup",
    ]
    assert [mount.destination for mount in spec.mounts] == [
        "/proc",
        "/dev",
        "/dev/pts",
        "/dev/shm",
        "/dev/mqueue",
        "/sys",
        "/sys/fs/cgroup",
    ]
    assert spec.hostname == ID[:12]
    assert spec.process.no_new_privileges
    assert spec.process.capabilities.effective == spec.process.capabilities.bounding
    assert not spec.process.capabilities.inheritable and not spec.process.capabilities.ambient
    assert spec.resources.pids_max == 2048 and spec.resources.memory_max_bytes is None
    assert spec.resources.devices[0] == DeviceRule(False)
    assert {"/proc/kcore", "/proc/asound", "/sys/fs/selinux"} <= set(spec.masked_paths)
    assert "/proc/sys" in spec.readonly_paths


def test_a_user_other_than_root_has_no_capabilities_in_effect() -> None:
    """As in docker: the bounding set stays, all others are empty (CVE-2022-29162)."""
    sets = build(user=User(1000, 1000), cap_add=["NET_RAW"], cap_drop=["CHOWN"])
    caps = sets.process.capabilities
    assert caps.bounding & 1 << 13 and not caps.bounding & 1
    assert (caps.effective, caps.permitted, caps.inheritable, caps.ambient) == (0, 0, 0, 0)


def test_quotas() -> None:
    """Words become the cgroup's numbers; a memory limit allows no swap unless asked."""
    resources = build(
        memory="256M",
        cpus=0.5,
        pids=64,
        cpu_weight=50,
        cpuset_cpus="0-1,3",
        io_max=["8:0 rbps=1M"],
        memory_reservation="128m",
        cgroup_conf=["memory.high=1000000"],
    ).resources
    assert resources.memory_max_bytes == 256 << 20
    assert resources.memory_swap_max_bytes == 0
    assert resources.memory_low_bytes == 128 << 20
    assert (resources.cpu_quota_usec, resources.cpu_period_usec) == (50_000, 100_000)
    assert resources.pids_max == 64 and resources.cpu_weight == 50
    assert resources.cpuset_cpus == "0-1,3"
    assert resources.io_max[0].read_bytes_per_sec == 1 << 20
    assert resources.unified == (("memory.high", "1000000"),)
    assert build(memory="1g", memory_swap="3g").resources.memory_swap_max_bytes == 2 << 30
    assert build(memory="1g", memory_swap=-1).resources.memory_swap_max_bytes is None
    assert build(pids=-1).resources.pids_max is None


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("memory", {"memory": "lots"}),
        ("memory", {"memory": 100}),
        ("memory", {"memory": 0}),
        ("memory_swap", {"memory_swap": "1g"}),
        ("memory_swap", {"memory": "2g", "memory_swap": "1g"}),
        ("memory_reservation", {"memory": "1g", "memory_reservation": "2g"}),
        ("cpus", {"cpus": 0}),
        ("cpu_weight", {"cpu_weight": 0}),
        ("io_weight", {"io_weight": 10_001}),
        ("cpuset_cpus", {"cpuset_cpus": "3-1"}),
        ("cpuset_mems", {"cpuset_mems": "a"}),
        ("pids", {"pids": 0}),
        ("cgroup_conf", {"cgroup_conf": {"../x.y": "1"}}),
        ("io_max", {"io_max": ["wat"]}),
        ("ulimits", {"ulimits": ["nofile"]}),
        ("oom_score_adj", {"oom_score_adj": 1001}),
        ("umask", {"umask": 0o1777}),
        ("hostname", {"hostname": "a b"}),
        ("hostname", {"hostname": "x" * 65}),
        ("hostname", {"hostname": "x", "uts": "host"}),
        ("domainname", {"domainname": "x", "uts": "host"}),
        ("network", {"network": "bridge0"}),
        ("pid", {"pid": "container:x"}),
        ("pid", {"pid": "host", "userns": "0:100000:65536"}),
        ("userns", {"userns": "1:100000:65536"}),
        ("cap_add", {"cap_add": ["WAT"]}),
        ("cap_drop", {"cap_drop": ["WAT"]}),
        ("devices", {"devices": ["/nonexistent"]}),
        ("devices[6].path", {"devices": [(Device("/x", "c", 1, 3), DeviceRule(True))]}),
        ("devices[6].path", {"devices": [(Device("/dev/pts/1", "c", 1, 3), DeviceRule(True))]}),
        ("sysctl[kernel.panic]", {"sysctls": {"kernel.panic": "1"}}),
        ("sysctl[net.x]", {"sysctls": ["net.x=1"], "network": "host"}),
        ("volumes", {"volumes": ["data:/x"]}),
        ("mounts[6].destination", {"volumes": ["/a:/proc"]}),
        ("mounts[7].destination", {"volumes": ["/a:/proc/sys"]}),
        ("mounts[7].destination", {"mounts": [Mount("//proc/./sys", "bind", "/a")]}),
        ("mounts[7].source", {"mounts": [Mount("/x", "bind", "a")]}),
        ("mounts", {"volumes": ["/a:/x"], "tmpfs": ["/x"]}),
        ("mask", {"mask": ["relative"]}),
        ("env", {"env": ["X"]}),
        ("command", {"entrypoint": "a\0b"}),
    ],
)
def test_the_error_names_the_option(field: str, words: dict[str, Any]) -> None:
    """Malformed, impossible and contradicting options are refused before anything is made."""
    with pytest.raises(InvalidInput) as caught:
        build(**words)
    assert caught.value.field == field


def test_mounts_come_parents_first_and_replace_defaults() -> None:
    """The caller's mounts follow the defaults, sorted by depth; a same place is the caller's."""
    spec = build(
        volumes=["/h/c:/a/b/c:ro", "/h/a:/a"],
        mounts=["type=bind,src=/h/b,dst=/a/b"],
        tmpfs=["/dev/shm:size=1m"],
        shm_size="1g",
    )
    assert [mount.destination for mount in spec.mounts[-4:]] == ["/a", "/a/b", "/dev/shm", "/a/b/c"]
    assert "size=1048576" in options_of(spec, "/dev/shm")
    assert "rro" in options_of(spec, "/a/b/c")
    assert "size=1073741824" in options_of(build(shm_size="1g"), "/dev/shm")


def test_namespaces() -> None:
    """Shared, joined and new ones; what lives in a shared one is shared as files too."""
    spec = build(
        pid="host", ipc="host", uts="host", network="host", cgroupns="ns:/proc/1/ns/cgroup"
    )
    assert spec.namespaces == (Namespace("mount"), Namespace("cgroup", "/proc/1/ns/cgroup"))
    assert spec.hostname == "" and not any(e.startswith("HOSTNAME=") for e in spec.process.env)
    (shm,) = [mount for mount in spec.mounts if mount.destination == "/dev/shm"]
    assert (shm.type, shm.source) == ("bind", "/dev/shm")
    assert Namespace("time") in build(time="private").namespaces


def test_user_namespace() -> None:
    """Maps, a namespace, and mounts that work in it."""
    spec = build(userns="0:100000:5", mounts=["type=bind,src=/a,dst=/b,idmap"])
    assert spec.namespaces[-1] == Namespace("user")
    assert spec.uid_mappings == spec.gid_mappings == (IdMap(0, 100000, 5),)
    assert "gid=5" not in options_of(spec, "/dev/pts")
    assert spec.mounts[-1].uid_mappings == (IdMap(0, 100000, 5),)
    assert "gid=5" in options_of(build(userns="0:100000:6"), "/dev/pts")
    shared = build(userns="0:100000:6", network="host")
    assert "rro" in options_of(shared, "/sys")
    with pytest.raises(InvalidSpec, match=r"^userns: uid 9 of the process"):
        build(userns="0:100000:5", user=User(9))


def test_unmask() -> None:
    """By path, by pattern or all; what `mask` adds stays."""
    spec = build(unmask=["/proc/kcore", "/sys/*"], mask=["/sys/mine"])
    assert "/proc/kcore" not in spec.masked_paths and "/proc/keys" in spec.masked_paths
    assert [p for p in spec.masked_paths if p.startswith("/sys")] == ["/sys/mine"]
    spec = build(unmask=["ALL"], mask=["/m"])
    assert spec.masked_paths == ("/m",) and spec.readonly_paths == ()


def test_devices_and_limits() -> None:
    """A device brings its rule, a later ulimit replaces an earlier one."""
    grant = (Device("/dev/x", "c", 10, 229), DeviceRule(True, "c", 10, 229, "r"))
    spec = build(devices=[grant], ulimits=["nofile=1", "nofile=2:3", "core=0"])
    assert spec.devices[-1] == grant[0] and spec.resources.devices[-1] == grant[1]
    assert [(limit.type, limit.soft) for limit in spec.process.rlimits] == [
        ("RLIMIT_NOFILE", 2),
        ("RLIMIT_CORE", 0),
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"namespaces": (Namespace("pid"),)},
        {"namespaces": (Namespace("mount"), Namespace("mount"))},
        {"namespaces": (Namespace("mount"), Namespace("wat"))},
        {"uid_mappings": (IdMap(0, 0, 1),)},
        {"mounts": (Mount("/a/../b", "tmpfs"),)},
        {"mounts": (Mount("/", "tmpfs"),)},
        {"readonly_paths": ("/proc/../etc",)},
    ],
)
def test_a_hand_made_spec_is_checked_too(change: dict[str, Any]) -> None:
    """`validate` needs no options."""
    with pytest.raises(InvalidSpec):
        validate(replace(build(), **change))
