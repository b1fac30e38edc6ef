"""What a run may not do unasked: load a stranger's machine, or hold more streams than this one lets a process have.

Both are judged before the first call, with figures and a way out. Where calls go is judged by every address that the
target's name resolves to, and one of just these addresses is used afterwards, so that a name cannot mean one thing when
it is judged and another when it is loaded. Whether to ask, and how, is the command line's; what is asked stands here.
"""

from __future__ import annotations

import ipaddress
import re
import resource
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

MOST_STREAMS_UNASKED = 10_000
"""Streams open at once where nobody said how many."""

KEPT_DESCRIPTORS = 64
"""Of the open files that a process may have: for the loop, pipes, files and libraries."""

KEPT_PORTS = 256
"""Of the local ports: for what other programs listen on and hold."""

_RAISE_TO_AT_MOST = 1_048_576  # the kernel's own fs.nr_open; some containers have a hard limit of a thousand times that
_CONNECT_SECONDS = 5.0
_EXAMPLE = "http://127.0.0.1:8080/v1"

LookUp = Callable[..., Sequence[tuple[Any, ...]]]


class Refused(Exception):
    """A run that is not begun. Its text says why, with figures, and what would be right."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where calls go. `host` is what the URL says (ASCII, without brackets), `ip` what is connected to, one of `ips`,
    all that the name resolved to. `path` is the base path without a slash at its end (`/v1`, or empty).
    """

    host: str
    port: int
    path: str
    is_tls: bool
    ips: tuple[str, ...]
    ip: str
    is_loopback: bool

    @property
    def authority(self) -> str:
        """The value of the `host` header: host and port, the port left out where it is the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.is_tls else 80) else f"{host}:{self.port}"


def resolve(url: str, look_up: LookUp = socket.getaddrinfo) -> Address:
    """Take a base URL apart and look its host up. Raises `Refused` where it is none, or its host is not known.

    `is_loopback` holds only where every address is loopback (127.0.0.0/8, ::1, or the former mapped into IPv6): an
    address of one of this machine's own interfaces is reached by others too, and its traffic may be routed.
    """
    parts = _split(url)
    host, port = _host(parts), _port(parts)
    ips = _look_up(host, port, look_up)
    return Address(
        host=host,
        port=port,
        path=parts.path.rstrip("/"),
        is_tls=parts.scheme == "https",
        ips=ips,
        ip=ips[0],
        is_loopback=all(_is_loopback(ip) for ip in ips),
    )


def reachable(address: Address, connect: Callable[..., socket.socket] = socket.create_connection) -> Address:
    """The same with the first of its addresses that takes a connection, as `localhost` may mean ::1 and 127.0.0.1 where
    the server listens on one of them. Raises `Refused` where none does. To be called once the load is agreed to.
    """
    faults = []
    for ip in address.ips:
        try:
            connect((ip, address.port), timeout=_CONNECT_SECONDS).close()
        except OSError as error:
            faults.append(f"{ip} port {address.port}: {error.strerror or error}")
        else:
            return replace(address, ip=ip)
    raise Refused(f"nothing answers at {address.authority} ({'; '.join(faults)}); start the server, or correct the URL")


def ask_unless_loopback(address: Address, *, load: str, assume_yes: bool, ask: Callable[[str], bool] | None) -> None:
    """Return where the load may be sent, raise `Refused` where it may not.

    `load` says how much it is (`10,000 streams at once for 30s`). `ask` puts a question to a person; `None`: there is
    no terminal, and without `assume_yes` the answer is no.
    """
    if address.is_loopback or assume_yes:
        return
    place = f"{address.authority} is not this machine's loopback: it is {', '.join(address.ips)} port {address.port}"
    if ask is None:
        raise Refused(f"{place}; {load} may be sent there only with --yes, as there is no terminal to ask at")
    if not ask(f"{place}.\nThis run sends it {load}. Is it yours to load?"):
        raise Refused(f"nothing was sent to {address.authority}: the answer was no")


@dataclass(frozen=True, slots=True)
class Machine:
    """What this machine lets a process have: limits of open files (soft, hard) and the range of local ports.

    Functions, so that a test can be a machine of its own.
    """

    file_limits: Callable[[], tuple[int, int]] = lambda: resource.getrlimit(resource.RLIMIT_NOFILE)
    limit_files: Callable[[tuple[int, int]], None] = lambda both: resource.setrlimit(resource.RLIMIT_NOFILE, both)
    local_ports: Callable[[], int] = lambda: local_ports()


def room_for_streams(wanted: int | None, *, address: Address, machine: Machine | None = None) -> int:
    """How many streams the run may have open at once: `wanted`, or, where nobody said, what fits up to 10,000.

    Raises the soft limit of open files to the hard one, for this process and those it starts. Raises `Refused` where
    descriptors or local ports do not suffice: a stream more would fail in the middle of the run, as the target's fault.
    """
    machine = machine or Machine()
    files = _raised_file_limit(machine)
    ports = machine.local_ports()
    by_files, by_ports = files - KEPT_DESCRIPTORS, ports - KEPT_PORTS
    room = min(by_files, by_ports)
    if room >= 1 and (wanted is None or wanted <= room):
        return min(MOST_STREAMS_UNASKED, room) if wanted is None else wanted
    asked = max(wanted or 1, 1)
    reasons, remedies = [], [f"Ask for {room:,} or fewer"] if room >= 1 else []
    if asked > by_files:
        reasons.append(
            f"a process may have {files:,} open files here, of which {KEPT_DESCRIPTORS} are kept for the tool itself"
        )
        remedies.append(
            f"raise the hard limit (`ulimit -Hn {asked + KEPT_DESCRIPTORS}` as root, LimitNOFILE= in a unit)"
        )
    if asked > by_ports:
        reasons.append(
            f"there are {ports:,} local ports for connections to {address.ip} port {address.port}, "
            f"of which {KEPT_PORTS} are left to others"
        )
        remedies.append("widen the range (`sysctl -w net.ipv4.ip_local_port_range='1024 65535'` as root)")
    raise Refused(
        f"{asked:,} open streams are more than this machine allows: {'; '.join(reasons)}. {', or '.join(remedies)}."
    )


def local_ports(folder: Path = Path("/proc/sys/net/ipv4")) -> int:
    """How many local ports the kernel may give to connections that go to one and the same address and port.

    Where the kernel does not tell (it is not Linux, or hidden): 16,384, the range that IANA gives to this (RFC 6335).
    """
    try:
        low, high = (int(word) for word in (folder / "ip_local_port_range").read_text().split())
        kept = _ports_in((folder / "ip_local_reserved_ports").read_text(), low, high)
    except (OSError, ValueError):
        return 65_535 - 49_152 + 1
    return high - low + 1 - kept


def _ports_in(ranges: str, low: int, high: int) -> int:
    """How many ports of a list like `8080,9000-9100` lie between two, both included."""
    count = 0
    for part in ranges.split(","):
        if part.strip():
            first, _, last = part.partition("-")
            count += max(0, min(int(last or first), high) - max(int(first), low) + 1)
    return count


def _raised_file_limit(machine: Machine) -> int:
    """The soft limit of open files, after raising it as far as may be."""
    soft, hard = machine.file_limits()
    most = _RAISE_TO_AT_MOST if hard == resource.RLIM_INFINITY else min(hard, _RAISE_TO_AT_MOST)
    if soft == resource.RLIM_INFINITY or soft >= most:
        return min(soft, most) if soft != resource.RLIM_INFINITY else most
    try:
        machine.limit_files((most, hard))
    except (OSError, ValueError):
        return soft  # a sandbox may forbid it
    return most


def _split(url: str) -> SplitResult:
    """A URL that is one, of a form that a base URL may have."""
    authority = re.split(r"[/?#]", url.rpartition("://")[2], maxsplit=1)[0]
    if "@" in authority:  # first, and said without the URL: it holds a password
        raise Refused("a URL may hold no user and password; give the key by itself")
    if any(character <= " " or character == "\x7f" for character in url) or not url:
        raise Refused(f"{url!r} is not a URL; write {_EXAMPLE}")
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise Refused(f"{url!r} is not a URL ({error}); write {_EXAMPLE}") from None
    if "://" not in url:
        raise Refused(f"{url!r} has no scheme; write http://{url.lstrip('/')}")
    if parts.scheme not in {"http", "https"}:
        raise Refused(f"{url!r} is neither http nor https; write {_EXAMPLE}")
    if "?" in url or "#" in url:
        raise Refused(f"{url!r} has a query or fragment, which a base URL has not; write {url[: _end_of_path(url)]}")
    for endpoint in ("/chat/completions", "/completions"):
        base = parts.path.rstrip("/")
        if base.endswith(endpoint):
            base_url = f"{parts.scheme}://{parts.netloc}{base.removesuffix(endpoint)}"
            raise Refused(f"{url!r} names an endpoint, and a base URL is wanted; write {base_url}")
    if not parts.path.isascii():
        raise Refused(f"{url!r} has a path that is not ASCII; write it percent-encoded")
    return parts


def _end_of_path(url: str) -> int:
    return min(at for at in (url.find("?"), url.find("#")) if at >= 0)


def _host(parts: SplitResult) -> str:
    if not parts.hostname:
        raise Refused(f"{parts.geturl()!r} has no host; write {_EXAMPLE}")
    if parts.hostname.isascii():
        return parts.hostname
    try:
        return parts.hostname.encode("idna").decode()
    except UnicodeError as error:
        raise Refused(f"{parts.hostname!r} is not a host's name ({error}); write {_EXAMPLE}") from None


def _port(parts: SplitResult) -> int:
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port is None:
        return 443 if parts.scheme == "https" else 80
    if port == 0:
        raise Refused(f"{parts.geturl()!r} has no port between 1 and 65535; write {_EXAMPLE}")
    return port


def _look_up(host: str, port: int, look_up: LookUp) -> tuple[str, ...]:
    """The addresses of a host, each once, in the order in which the resolver prefers them."""
    try:
        found = look_up(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or error
        raise Refused(f"the host {host!r} is not known here ({why}); correct the URL, or give an IP address") from None
    ips = tuple(dict.fromkeys(str(entry[4][0]) for entry in found))
    if not ips:
        raise Refused(f"the host {host!r} has no address; correct the URL, or give an IP address")
    return ips


def _is_loopback(ip: str) -> bool:
    address = ipaddress.ip_address(ip)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback
