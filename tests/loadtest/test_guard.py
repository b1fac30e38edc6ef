"""What is refused before the first call: addresses that are none, strangers' machines, more streams than fit."""

from __future__ import annotations

import resource
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from loadtest.guard import (
    KEPT_DESCRIPTORS,
    KEPT_PORTS,
    MOST_STREAMS_UNASKED,
    Address,
    LookUp,
    Machine,
    Refused,
    ask_unless_loopback,
    local_ports,
    reachable,
    resolve,
    room_for_streams,
)


def found(*ips: str) -> LookUp:
    """A resolver that knows these addresses only."""

    def look_up(host: str, port: int, **options: Any) -> Sequence[tuple[Any, ...]]:
        return [(socket.AF_INET, options["type"], 6, "", (ip, port)) for ip in ips]

    return look_up


def address(*ips: str, port: int = 8080) -> Address:
    return resolve(f"http://target.test:{port}/v1", found(*ips))


@dataclass
class Limits:
    """A machine of its own, and what its limit was set to."""

    soft: int = 1024
    hard: int = 20_000
    ports: int = 28_232
    is_fixed: bool = False
    set_to: list[tuple[int, int]] = field(default_factory=list)

    def machine(self) -> Machine:
        return Machine(lambda: (self.soft, self.hard), self._limit, lambda: self.ports)

    def _limit(self, both: tuple[int, int]) -> None:
        if self.is_fixed:
            raise PermissionError("sandbox")
        self.set_to.append(both)


# ---- addresses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "is not a URL"),
        ("127.0.0.1:8080/v1", "write http://127.0.0.1:8080/v1"),
        ("localhost:8080/v1", "write http://localhost:8080/v1"),
        ("//host/v1", "write http://host/v1"),
        ("ftp://host/v1", "neither http nor https"),
        ("http://", "no host"),
        ("http:///v1", "no host"),
        ("http://:8080/v1", "no host"),
        ("http://host:0/v1", "no port between 1 and 65535"),
        ("http://host:65536/v1", "no port between 1 and 65535"),
        ("http://host:http/v1", "no port between 1 and 65535"),
        ("http://host/v1?key=1", "write http://host/v1"),
        ("http://host/v1#top", "write http://host/v1"),
        ("http://host/v1?", "query or fragment"),
        ("http://[::1/v1", "is not a URL"),
        ("http://ho st/v1", "is not a URL"),
        ("http://host/v1\r\nx: y", "is not a URL"),
        ("http://host/v1\x7f", "is not a URL"),
        ("http://host/v1/chat/completions", "write http://host/v1"),
        ("http://host/v1/completions/", "write http://host/v1"),
        ("http://host/vé", "percent-encoded"),
        ("http://" + "é" * 70 + ".test/v1", "is not a host's name"),
    ],
)
def test_what_is_no_base_url_is_refused_with_what_would_be_one(url: str, words: str) -> None:
    with pytest.raises(Refused) as refused:
        resolve(url, found("127.0.0.1"))
    assert words in str(refused.value)


@pytest.mark.parametrize(
    "url", ["http://me:hunter2@host/v1", "me:hunter2@host/v1", "http://me:hunter2@ho st/v1", "https://hunter2@host"]
)
def test_a_password_in_a_url_is_refused_and_never_repeated(url: str) -> None:
    with pytest.raises(Refused, match="no user and password") as refused:
        resolve(url, found("127.0.0.1"))
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "host", "port", "path", "is_tls", "authority"),
    [
        ("http://127.0.0.1:8080/v1", "127.0.0.1", 8080, "/v1", False, "127.0.0.1:8080"),
        ("http://host", "host", 80, "", False, "host"),
        ("http://host/openai/", "host", 80, "/openai", False, "host"),
        ("https://HOST/v1", "host", 443, "/v1", True, "host"),
        ("https://host:80/v1", "host", 80, "/v1", True, "host:80"),
        ("http://[::1]:9/v1/", "::1", 9, "/v1", False, "[::1]:9"),
        ("http://bücher.test/v1", "xn--bcher-kva.test", 80, "/v1", False, "xn--bcher-kva.test"),
        ("http://host/v1/@me", "host", 80, "/v1/@me", False, "host"),
    ],
)
def test_a_base_url_is_taken_apart(url: str, host: str, port: int, path: str, is_tls: bool, authority: str) -> None:
    told = resolve(url, found("127.0.0.1"))
    assert (told.host, told.port, told.path, told.is_tls, told.authority) == (host, port, path, is_tls, authority)


@pytest.mark.parametrize(
    ("ips", "is_loopback"),
    [
        (["127.0.0.1"], True),
        (["127.255.255.254"], True),
        (["::1", "127.0.0.1"], True),
        (["::ffff:127.0.0.1"], True),
        (["::ffff:10.0.0.1"], False),
        (["127.0.0.1", "10.0.0.1"], False),
        (["10.0.0.1", "127.0.0.1"], False),
        (["128.0.0.1"], False),
        (["0.0.0.0"], False),
        (["::"], False),
        (["192.168.1.5"], False),
        (["fe80::1%eth0"], False),
        (["2001:db8::1"], False),
    ],
)
def test_only_what_is_loopback_by_every_address_is_loopback(ips: list[str], is_loopback: bool) -> None:
    told = address(*ips)
    assert told.is_loopback is is_loopback
    assert told.ip == ips[0]
    assert told.ips == tuple(ips)


def test_an_address_is_told_once_though_it_is_found_twice() -> None:
    assert address("127.0.0.1", "127.0.0.1").ips == ("127.0.0.1",)


def test_the_name_of_a_public_host_that_leads_home_is_loopback_by_where_it_leads() -> None:
    assert resolve("http://example.com/v1", found("127.0.0.1")).is_loopback


def test_the_name_localhost_that_leads_away_is_no_loopback() -> None:
    assert not resolve("http://localhost/v1", found("203.0.113.7")).is_loopback


@pytest.mark.parametrize(
    "error", [socket.gaierror(-2, "Name or service not known"), UnicodeError("label too long"), OSError("no")]
)
def test_a_host_that_is_not_known_is_refused_by_name(error: Exception) -> None:
    def look_up(*_: object, **__: object) -> Sequence[tuple[Any, ...]]:
        raise error

    with pytest.raises(Refused, match=r"the host 'target\.test' is not known here .*; correct the URL"):
        resolve("http://target.test/v1", look_up)


def test_a_host_without_an_address_is_refused() -> None:
    with pytest.raises(Refused, match="has no address"):
        address()


def test_of_several_addresses_the_one_that_listens_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        told = reachable(address("127.0.0.9", "127.0.0.1", port=port))
    assert told.ip == "127.0.0.1"
    assert told.ips == ("127.0.0.9", "127.0.0.1")


def test_where_nothing_listens_each_address_is_named_with_its_fault() -> None:
    with socket.socket() as bound:  # bound, not listening: nobody else gets the port meanwhile
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        with pytest.raises(Refused) as refused:
            reachable(address("127.0.0.9", "127.0.0.1", port=port))
    assert f"127.0.0.9 port {port}: Connection refused" in str(refused.value)
    assert f"127.0.0.1 port {port}: Connection refused" in str(refused.value)


# ---- strangers ------------------------------------------------------------------------------------------------------


def never(question: str) -> bool:
    raise AssertionError(f"asked: {question}")


def test_loopback_is_loaded_without_a_question() -> None:
    ask_unless_loopback(address("127.0.0.1", "::1"), load="100 users", assume_yes=False, ask=never)
    ask_unless_loopback(address("127.0.0.1"), load="100 users", assume_yes=False, ask=None)


def test_an_assumed_yes_asks_nobody() -> None:
    ask_unless_loopback(address("10.0.0.1"), load="100 users", assume_yes=True, ask=never)


def test_a_question_says_where_it_goes_and_how_much() -> None:
    questions: list[str] = []

    def ask(question: str) -> bool:
        questions.append(question)
        return True

    ask_unless_loopback(address("127.0.0.1", "10.0.0.1"), load="100 users for 30s", assume_yes=False, ask=ask)
    (question,) = questions
    assert "target.test:8080" in question
    assert "127.0.0.1, 10.0.0.1 port 8080" in question
    assert "100 users for 30s" in question


def test_a_no_sends_nothing() -> None:
    with pytest.raises(Refused, match="nothing was sent to target"):
        ask_unless_loopback(address("10.0.0.1"), load="100 users", assume_yes=False, ask=lambda _: False)


def test_without_a_terminal_a_stranger_is_refused_with_the_way_out() -> None:
    with pytest.raises(Refused, match=r"10\.0\.0\.1 port 8080; 100 users may be sent there only with --yes"):
        ask_unless_loopback(address("10.0.0.1"), load="100 users", assume_yes=False, ask=None)


# ---- room -----------------------------------------------------------------------------------------------------------

HOME = address("127.0.0.1")


def test_the_soft_limit_of_files_is_raised_to_the_hard_one() -> None:
    limits = Limits(soft=1024, hard=20_000)
    assert room_for_streams(15_000, address=HOME, machine=limits.machine()) == 15_000
    assert limits.set_to == [(20_000, 20_000)]


def test_a_limit_that_is_high_enough_already_is_left_alone() -> None:
    limits = Limits(soft=20_000, hard=20_000)
    assert room_for_streams(100, address=HOME, machine=limits.machine()) == 100
    assert limits.set_to == []


def test_twenty_five_thousand_streams_of_twenty_thousand_files_are_refused_with_both_figures() -> None:
    with pytest.raises(Refused) as refused:
        room_for_streams(25_000, address=HOME, machine=Limits().machine())
    told = str(refused.value)
    assert "25,000 open streams" in told
    assert "20,000 open files" in told
    assert "Ask for 19,936 or fewer" in told
    assert "ulimit -Hn 25064" in told
    assert "ports" not in told  # 28,232 of them suffice


def test_more_streams_than_local_ports_are_refused_with_the_range_to_widen() -> None:
    with pytest.raises(Refused) as refused:
        room_for_streams(28_000, address=HOME, machine=Limits(hard=100_000).machine())
    told = str(refused.value)
    assert "28,232 local ports for connections to 127.0.0.1 port 8080" in told
    assert "Ask for 27,976 or fewer" in told
    assert "ip_local_port_range" in told
    assert "ulimit" not in told


def test_where_both_are_too_few_both_are_named() -> None:
    with pytest.raises(Refused, match=r"open files here.*local ports.*ulimit -Hn.*ip_local_port_range"):
        room_for_streams(50_000, address=HOME, machine=Limits().machine())


@pytest.mark.parametrize(("hard", "ports"), [(20_000, 100_000), (100_000, 20_000)])
def test_exactly_what_fits_is_let_in_and_one_more_is_not(hard: int, ports: int) -> None:
    machine = Limits(hard=hard, ports=ports).machine()
    fits = min(hard - KEPT_DESCRIPTORS, ports - KEPT_PORTS)
    assert room_for_streams(fits, address=HOME, machine=machine) == fits
    with pytest.raises(Refused):
        room_for_streams(fits + 1, address=HOME, machine=machine)


def test_nobody_said_how_many_means_ten_thousand_or_what_fits() -> None:
    assert room_for_streams(None, address=HOME, machine=Limits().machine()) == MOST_STREAMS_UNASKED
    assert room_for_streams(None, address=HOME, machine=Limits(hard=4096).machine()) == 4096 - KEPT_DESCRIPTORS


def test_a_machine_without_room_for_one_stream_is_refused() -> None:
    with pytest.raises(Refused, match="1 open streams are more") as refused:
        room_for_streams(None, address=HOME, machine=Limits(hard=KEPT_DESCRIPTORS).machine())
    assert "Ask for" not in str(refused.value)


def test_where_the_limit_may_not_be_raised_the_soft_one_counts() -> None:
    limits = Limits(soft=1024, hard=20_000, is_fixed=True)
    assert room_for_streams(None, address=HOME, machine=limits.machine()) == 1024 - KEPT_DESCRIPTORS
    with pytest.raises(Refused, match="1,024 open files"):
        room_for_streams(5000, address=HOME, machine=limits.machine())


def test_a_limit_without_end_is_raised_to_what_the_kernel_takes() -> None:
    limits = Limits(soft=1024, hard=resource.RLIM_INFINITY)
    assert room_for_streams(20_000, address=HOME, machine=limits.machine()) == 20_000
    assert limits.set_to == [(1_048_576, resource.RLIM_INFINITY)]
    endless = Limits(soft=resource.RLIM_INFINITY, hard=resource.RLIM_INFINITY)
    assert room_for_streams(20_000, address=HOME, machine=endless.machine()) == 20_000
    assert endless.set_to == []


def test_this_machine_tells_its_limits_and_ports() -> None:
    machine = Machine()
    soft, hard = machine.file_limits()
    assert soft <= hard or hard == resource.RLIM_INFINITY
    assert 0 < machine.local_ports() < 65_536
    assert (soft, hard) == resource.getrlimit(resource.RLIMIT_NOFILE)


@pytest.mark.parametrize(
    ("ports", "reserved", "count"),
    [
        ("32768\t60999\n", "\n", 28_232),
        ("32768 60999", "32768,40000-40009,60999\n", 28_232 - 12),
        ("1024 65535", "80,1000-1030", 64_512 - 7),
        ("32768 60999", "1-100,61000-61010", 28_232),
    ],
)
def test_local_ports_are_those_of_the_range_that_are_not_reserved(
    tmp_path: Path, ports: str, reserved: str, count: int
) -> None:
    (tmp_path / "ip_local_port_range").write_text(ports)
    (tmp_path / "ip_local_reserved_ports").write_text(reserved)
    assert local_ports(tmp_path) == count


def test_where_the_kernel_tells_no_ports_the_registered_range_counts(tmp_path: Path) -> None:
    assert local_ports(tmp_path) == 16_384
