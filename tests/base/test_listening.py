"""Where a process listens, and the words for it."""

from __future__ import annotations

import socket
import sys

import pytest

from stanza_sim.base.listening import LOOPBACK, in_words, is_loopback, listening
from stanza_sim.execute.start.protocol import RankInfo
from stanza_sim.execute.start.start import where_they_listen
from tests.listeners import open_to_others

ONLY_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="Linux says it")


@ONLY_LINUX
def test_this_process_listens_where_it_says() -> None:
    before = set(listening())
    with socket.create_server(("127.0.0.2", 0)), socket.create_server(("0.0.0.0", 0)) as everywhere:
        assert set(listening()) - before == {"127.0.0.2", "0.0.0.0"} - before
        assert any(found.startswith("0.0.0.0: ") for found in open_to_others(["self"]))  # type: ignore[list-item]
        with socket.create_connection(("127.0.0.1", everywhere.getsockname()[1])):
            assert not {"127.0.0.1"} & (set(listening()) - before)  # connected, which is not listening
    assert set(listening()) == before


@ONLY_LINUX
@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
def test_ipv6() -> None:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            assert "::1" in listening()
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")


def test_words() -> None:
    assert [in_words(a) for a in ("127.0.0.1", "::1", "127.0.1.1")] == [LOOPBACK] * 3
    assert [in_words(a) for a in ("0.0.0.0", "::")] == ["all interfaces"] * 2
    assert in_words("192.0.2.1") == "192.0.2.1"  # of no interface here
    assert not is_loopback("192.0.2.1") and not is_loopback("fe80::1")


def test_what_is_said_of_ranks() -> None:
    def rank(host: str, *places: str) -> RankInfo:
        return RankInfo(host=host, device="cpu", listens=places)

    assert where_they_listen([rank("a", LOOPBACK), rank("a", LOOPBACK)]) == (
        "ranks listen on loopback: no other machine reaches them"
    )
    said = where_they_listen([rank("a", "eth0 (10.0.0.4)", "all interfaces"), rank("b", "eth0 (10.0.0.5)")])
    assert said.startswith("ranks listen on eth0 (10.0.0.4) of a, all interfaces of a, eth0 (10.0.0.5) of b; nothing")
    assert "GLOO_SOCKET_IFNAME" in said
    assert "cannot be told" in where_they_listen([rank("a")])
