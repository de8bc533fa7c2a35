"""Capability names, masks and Docker's add and drop rules."""

from __future__ import annotations

import pytest

from pycontain.errors import InvalidSpec, Unsupported
from pycontain.isolation import capabilities as caps

FULL = caps.ALL


def test_names_are_at_their_bits() -> None:
    """The table has all 41 capabilities, and a sample from each end sits at the kernel's number."""
    assert len(caps.NAMES) == 41
    numbers = {"CAP_CHOWN": 0, "CAP_SYS_ADMIN": 21, "CAP_SETFCAP": 31, "CAP_BPF": 39}
    assert {name: caps.BITS[name] for name in numbers} == numbers
    assert caps.BITS["CAP_CHECKPOINT_RESTORE"] == 40


@pytest.mark.parametrize("name", ["NET_RAW", "CAP_NET_RAW", "net_raw", "cap_Net_Raw"])
def test_parse_takes_every_spelling(name: str) -> None:
    """The prefix and the case do not matter."""
    assert caps.parse([name]) == 1 << 13


def test_parse_all_is_everything() -> None:
    """ALL in any case is the full mask."""
    assert caps.parse(["all"]) == caps.parse(["CAP_ALL"]) == FULL


def test_parse_names_the_field_of_an_unknown_name() -> None:
    """An unknown name is refused with the field it came from."""
    with pytest.raises(InvalidSpec, match="cap_add: 'NETRAW'") as caught:
        caps.parse(["CHOWN", "NETRAW"], field="cap_add")
    assert caught.value.field == "cap_add"


def test_names_is_the_inverse_of_parse() -> None:
    """Masks go to names and back; a bit from a newer kernel is shown by number."""
    assert caps.parse(caps.names(caps.DEFAULT)) == caps.DEFAULT
    assert caps.names(1 << 41) == ("CAP_41",)


def test_default_has_no_dangerous_capability() -> None:
    """Eleven by default, without raw sockets, device nodes or administration."""
    assert caps.DEFAULT.bit_count() == 11
    assert not caps.DEFAULT & caps.parse(["NET_RAW", "MKNOD", "AUDIT_WRITE", "SYS_ADMIN"])


@pytest.mark.parametrize(
    ("add", "drop", "expected"),
    [
        ((), (), caps.DEFAULT),
        (("NET_RAW",), (), caps.DEFAULT | 1 << 13),
        ((), ("CHOWN",), caps.DEFAULT & ~1),
        ((), ("ALL",), 0),
        (("CHOWN",), ("all",), 1),
        (("ALL",), ("CHOWN",), FULL & ~1),
        (("ALL",), ("ALL",), FULL),
        (("CHOWN",), ("CHOWN",), caps.DEFAULT),
    ],
)
def test_resolve_follows_docker(add: tuple[str, ...], drop: tuple[str, ...], expected: int) -> None:
    """Drop ALL then add; add ALL less drops; add wins over drop of the same name."""
    assert caps.resolve(caps.DEFAULT, add, drop, host=FULL) == expected


def test_resolve_leaves_out_what_the_host_lacks() -> None:
    """A default or ALL shrinks silently to what the host has."""
    host = FULL & ~(1 << 24)
    assert caps.resolve(caps.DEFAULT, ["ALL"], host=host) == host
    assert caps.resolve(caps.DEFAULT, host=host & ~1) == caps.DEFAULT & ~1


def test_resolve_refuses_a_named_capability_that_the_host_lacks() -> None:
    """Asking for a missing one by name is an error that says which option and capability."""
    with pytest.raises(Unsupported, match="--cap-add CAP_SYS_RESOURCE"):
        caps.resolve(caps.DEFAULT, ["SYS_RESOURCE"], ["ALL"], host=FULL & ~(1 << 24))


def test_resolve_names_the_option_of_a_bad_name() -> None:
    """Errors in the drop list name cap_drop."""
    with pytest.raises(InvalidSpec, match="cap_drop: 'X'"):
        caps.resolve(caps.DEFAULT, drop=["X"], host=FULL)


def test_available_is_bounded_by_the_kernel_and_by_us() -> None:
    """Nothing above the kernel's last capability, and a new user namespace has no fewer."""
    own, fresh = caps.available(), caps.available(new_user_namespace=True)
    assert own & fresh == own
    assert fresh == (1 << (caps.last_cap() + 1)) - 1


def test_sets_of_root_and_of_a_user() -> None:
    """Root holds the bounding set; a user just the ambient ones; inheritable stays empty."""
    root = caps.process_sets(caps.DEFAULT, uid=0)
    assert root.effective == root.permitted == root.bounding == caps.DEFAULT
    assert root.inheritable == root.ambient == 0
    user = caps.process_sets(caps.DEFAULT, uid=1000, ambient=1 << 10 | 1 << 21)
    assert user.bounding == caps.DEFAULT
    assert user.effective == user.permitted == user.inheritable == user.ambient == 1 << 10
