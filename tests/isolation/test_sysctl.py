"""The allow-list of kernel parameters."""

from __future__ import annotations

import pytest

from pycontain.errors import InvalidSpec
from pycontain.isolation.sysctl import check
from pycontain.oci import Namespace

OWN = (Namespace("network"), Namespace("ipc"), Namespace("uts"))


def test_namespaced_parameters_become_paths() -> None:
    """Each comes back as a path beneath /proc/sys, in order, with its value as given."""
    assert check(
        [
            ("net.ipv4.ip_local_port_range", "1024 65000"),
            ("net.ipv4.conf.eth0.rp_filter", "2"),
            ("kernel.sem", "1\t2\t3\t4"),
            ("fs.mqueue.msg_max", "64"),
            ("kernel.domainname", "example"),
        ],
        OWN,
    ) == [
        ("net/ipv4/ip_local_port_range", "1024 65000"),
        ("net/ipv4/conf/eth0/rp_filter", "2"),
        ("kernel/sem", "1\t2\t3\t4"),
        ("fs/mqueue/msg_max", "64"),
        ("kernel/domainname", "example"),
    ]


@pytest.mark.parametrize(
    "name",
    [
        *("kernel.core_pattern", "kernel.modprobe", "vm.swappiness", "fs.file-max"),
        *("kernel.shm_next_id", "fs.mqueuefoo.x", "network.x", "kernel.panic"),
    ],
)
def test_the_hosts_parameters_are_refused(name: str) -> None:
    """What no namespace isolates can't be set."""
    with pytest.raises(InvalidSpec, match="belongs to the host") as caught:
        check([(name, "1")], OWN)
    assert caught.value.field == f"sysctl[{name}]"


@pytest.mark.parametrize(
    ("name", "type_"), [("net.core.somaxconn", "network"), ("kernel.msgmax", "ipc")]
)
def test_a_shared_namespace_is_refused(name: str, type_: str) -> None:
    """Without a namespace of its own the container would set the host's parameter."""
    others = tuple(namespace for namespace in OWN if namespace.type != type_)
    with pytest.raises(InvalidSpec, match=f"needs a {type_} namespace"):
        check([(name, "1")], others)


def test_joining_our_own_namespace_counts_as_shared() -> None:
    """A path that leads to the namespace we are in does not make it the container's own."""
    joined = (Namespace("network", "/proc/self/ns/net"),)
    with pytest.raises(InvalidSpec, match="needs a network namespace"):
        check([("net.core.somaxconn", "1")], joined)


def test_a_namespace_path_that_is_gone_is_refused() -> None:
    """What can't be compared with ours is not trusted."""
    with pytest.raises(InvalidSpec, match=r"namespaces\[network\]: /nonexistent"):
        check([("net.core.somaxconn", "1")], (Namespace("network", "/nonexistent"),))


@pytest.mark.parametrize(
    "name",
    [
        *("net", "net.", ".net.x", "net..x", "net.ipv4/../../kernel.core_pattern", "net/ipv4/x"),
        *("net.x+kernel.core_pattern", "net.x\nkernel", "net.x y", "net.\u0661", "", "net.x\0"),
    ],
)
def test_malformed_names_are_refused(name: str) -> None:
    """Separators, dots and anything outside the grammar never reach a path."""
    with pytest.raises(InvalidSpec, match="not a parameter's name"):
        check([(name, "1")], OWN)


@pytest.mark.parametrize("value", ["1\n2", "1\0", "\u00e9", "x" * 4096])
def test_malformed_values_are_refused(value: str) -> None:
    """A value is one short line of plain text."""
    with pytest.raises(InvalidSpec, match="printable"):
        check([("net.core.somaxconn", value)], OWN)
