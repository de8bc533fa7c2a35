"""Spec -> plan: golden plans for reading, and the order that security rests on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pycontain import _native
from pycontain.errors import InvalidSpec
from pycontain.isolation.compiler import Launch, compile_exec, compile_init
from pycontain.isolation.devices import DEFAULT_DEVICES
from pycontain.isolation.plan import OP_NAMES, Plan
from pycontain.oci import (
    Capabilities,
    IdMap,
    Mount,
    Namespace,
    Process,
    Rlimit,
    Spec,
    User,
)
from pycontain.runtime.spec import DEFAULT_MOUNTS

GOLDEN = Path(__file__).parent.parent / "golden" / "plans"
FILTER = b"\x06\0\0\0\0\0\xff\x7f" * 3
CAPS = 0x800405FB


def base_spec(**changes: object) -> Spec:
    spec = Spec(
        process=Process(
            args=("sh", "-c", "true"),
            env=("PATH=/usr/bin:/bin", "HOME=/root"),
            cwd="/work",
            user=User(1000, 1000, (5, 6)),
            capabilities=Capabilities(bounding=CAPS),
            rlimits=(Rlimit("RLIMIT_NOFILE", 1024, 2048),),
        ),
        mounts=DEFAULT_MOUNTS,
        namespaces=tuple(
            Namespace(kind) for kind in ("mount", "pid", "ipc", "uts", "network", "cgroup")
        ),
        hostname="box",
        devices=DEFAULT_DEVICES,
        masked_paths=("/proc/kcore", "/sys/firmware"),
        readonly_paths=("/proc/sys",),
        sysctl=(("net.ipv4.ip_unprivileged_port_start", "0"),),
    )
    return replace(spec, **changes)


def launch(**changes: object) -> Launch:
    values: dict[str, object] = {
        "rootfs_fd": 10,
        "cgroup_fd": 11,
        "stdio": (20, 21, 21),
        "seccomp_filter": FILTER,
        "keyring": "pycontain-x",
    }
    return Launch(**{**values, **changes})  # type: ignore[arg-type]


def checked(plan: Plan) -> list[str]:
    """The plan's op names, after the real checker has accepted it."""
    park = any(op[0] == _native.C.PYC_OP_GATE and op[4][0] == 2 for op in plan.ops)
    record = _native.encode_record(
        flags=_native.C.PYC_R_PARK if park else 0, id="x", state_dir="/run/x", log_path="",
        kill_path="", log_max_bytes=0, log_max_files=0, timeout_usec=0, exit_ops=[],
    )  # fmt: skip
    _native.check_plan(record + plan.encode(), len(plan.fds))
    return [OP_NAMES[op[0]] for op in plan.ops]


@pytest.mark.parametrize(
    ("name", "spec", "given"),
    [
        ("default", base_spec(), launch()),
        ("read_only", base_spec(root_readonly=True), launch(park=True)),
        (
            "userns_hybrid",
            base_spec(
                namespaces=(*base_spec().namespaces, Namespace("user"), Namespace("time")),
                uid_mappings=(IdMap(0, 100000, 65536),),
                gid_mappings=(IdMap(0, 100000, 65536),),
                time_offsets=(("boottime", 7, 0),),
            ),
            launch(
                cgroup_fd=-1,
                join_fds=(30, 31),
                v1_hierarchies=(("memory", ("memory",)),),
                device_fds={d.path: 40 + i for i, d in enumerate(DEFAULT_DEVICES)},
            ),
        ),
        (
            "terminal_init_bind",
            base_spec(
                process=replace(base_spec().process, terminal=True, console_rows=24,
                                console_columns=80, oom_score_adj=500),
                mounts=(*DEFAULT_MOUNTS, Mount("/data", "bind", "/srv", ("rbind", "ro"))),
                init=True,
            ),
            launch(init_fd=50, mount_fds={len(DEFAULT_MOUNTS): (51, True)}),
        ),
    ],
)  # fmt: skip
def test_golden_plans(name: str, spec: Spec, given: Launch, request: pytest.FixtureRequest) -> None:
    """A plan changes only on purpose: `pytest --update-golden`, and review the difference."""
    plan = compile_init(spec, given)
    checked(plan)
    path = GOLDEN / f"{name}.txt"
    if request.config.getoption("--update-golden", default=False):
        path.write_text(plan.dump())
    assert plan.dump() == path.read_text()


def test_rights_shrink_in_the_only_safe_order() -> None:
    """Mounts, pivot, then the ids, the capabilities, no_new_privs, the filter, and exec last."""
    names = checked(compile_init(base_spec(), launch()))
    order = ["ATTACH_ROOT", "MASK", "PIVOT_ROOT", "CHDIR", "CAP_BOUND", "SETGROUPS", "SETUSER",
             "CAPSET", "NO_NEW_PRIVS", "SECCOMP", "EXEC"]  # fmt: skip
    positions = [names.index(name) for name in order]
    assert positions == sorted(positions)
    assert names[-1] == "EXEC"


def test_filter_comes_before_the_capabilities_go_without_no_new_privs() -> None:
    """Loading a filter without no_new_privs takes CAP_SYS_ADMIN."""
    process = replace(base_spec().process, no_new_privileges=False)
    names = checked(compile_init(base_spec(process=process), launch()))
    assert names.index("SECCOMP") < names.index("CAP_BOUND")
    assert "NO_NEW_PRIVS" not in names


def test_sysctls_are_written_before_proc_sys_is_read_only() -> None:
    """The other way round every write would fail."""
    plan = compile_init(base_spec(), launch())
    origins = plan.origins
    write = next(i for i, o in enumerate(origins) if o.startswith("sysctl"))
    readonly = next(i for i, o in enumerate(origins) if o.startswith("readonly_paths"))
    assert write < readonly


def test_cgroup_namespace_is_made_after_v1_cgroups_were_joined() -> None:
    """Its root is where its maker is: made at clone it would show the monitor's cgroups."""
    plan = compile_init(base_spec(), launch(join_fds=(30,)))
    names = checked(plan)
    assert names.index("WRITE_FD") < names.index("UNSHARE")
    assert plan.clone_flags & 0x02000000 == 0
    assert compile_init(base_spec(), launch()).clone_flags & 0x02000000


def test_exec_joins_everything_with_one_setns() -> None:
    """The pid namespace is the monitor's business, the rest is one call on the pidfd."""
    spec = base_spec()
    given = Launch(cgroup_fd=5, namespace_fds={"pidfd": 7}, stdio=(0, 1, 2), seccomp_filter=FILTER)
    plan = compile_exec(spec.process, given, spec.namespaces)
    names = checked(plan)
    assert names.count("SETNS") == 1
    assert plan.pidns_slot == plan.fds.index(7)
    assert plan.clone_flags == 0


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"namespaces": (Namespace("mount"), Namespace("mount"))}, "namespaces[1].type"),
        ({"namespaces": (Namespace("bogus"),)}, "namespaces[0].type"),
        ({"namespaces": (Namespace("mount"),), "sysctl": ()}, "hostname"),
        ({"namespaces": (*base_spec().namespaces, Namespace("user"))}, "uid_mappings"),
        ({"mounts": (), "sysctl": ()}, "masked_paths"),
        ({"process": replace(base_spec().process, args=())}, "args"),
    ],
)
def test_contradictions_name_their_field(changes: dict[str, object], field: str) -> None:
    """A spec that can't work is refused before anything is made, by the name of its field."""
    with pytest.raises(InvalidSpec) as caught:
        compile_init(base_spec(**changes), launch())
    assert caught.value.field == field
