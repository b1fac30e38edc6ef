"""Questions to a pod that answers as tests want, over real sockets."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from backends.inquiry import LARGEST_ANSWER_BYTES, Inquiry, Unanswered
from backends.wire.pool import connector
from tests.instruments.byte_pod import BytePod, Cut
from tests.instruments.requires import requires_program
from tests.instruments.until import until

GOOD = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nwell"


@asynccontextmanager
async def inquiry(seconds: float = 5.0, tls: ssl.SSLContext | None = None) -> AsyncIterator[Inquiry]:
    """One that is closed at the end."""
    loop = asyncio.get_running_loop()
    made = Inquiry(clock=loop.time, call_later=loop.call_later, seconds=seconds, connect_to=partial(connector, tls=tls))
    try:
        yield made
    finally:
        made.close()


async def reason(asking: Inquiry, url: str) -> Unanswered:
    """Why there is no answer."""
    with pytest.raises(Unanswered) as raised:
        await asking.get(url, "/health", api_key=None)
    return raised.value


async def test_a_question_goes_below_the_pods_path_with_its_key_and_asks_for_no_coding() -> None:
    async with BytePod(lambda _: (GOOD,)) as pod, inquiry() as asking:
        assert await asking.get(pod.url + "/base/", "/loads?include=core", api_key="k") == (200, b"well")
        head = pod.requests[0]
        assert head.startswith(b"GET /base/loads?include=core HTTP/1.1\r\nhost: " + pod.url[7:].encode() + b"\r\n")
        assert b"\r\nauthorization: Bearer k\r\n" in head
        assert b"\r\naccept-encoding: identity\r\n" in head


async def test_one_connection_carries_all_questions_until_the_pod_is_elsewhere_or_the_end() -> None:
    async with BytePod(lambda _: (GOOD,)) as pod, BytePod(lambda _: (GOOD,)) as other, inquiry() as asking:
        for _ in range(3):
            await asking.get(pod.url, "/health", api_key=None)
        assert (pod.accepted, len(pod.lines)) == (1, 1)
        await asking.get(other.url, "/health", api_key=None)
        await until(lambda: not pod.lines, what="the first pod's connection closed")
        asking.close()
        await until(lambda: not other.lines, what="the second pod's connection closed")
        assert await asking.get(pod.url, "/health", api_key=None) == (200, b"well")


async def test_a_kept_connection_that_the_pod_drops_is_replaced_without_a_word() -> None:
    async with BytePod(lambda number: (GOOD,) if number != 1 else (Cut.RESET,)) as pod, inquiry() as asking:
        for _ in range(2):  # the second question is dropped unanswered, and goes out again
            assert await asking.get(pod.url, "/health", api_key=None) == (200, b"well")
        assert (len(pod.requests), pod.accepted) == (3, 2)


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with BytePod(lambda _: (GOOD,)) as pod, inquiry() as asking:
        assert await asking.get(pod.url, "/health", api_key=None) == (200, b"well")


async def test_an_answer_that_trickles_beyond_its_time_is_late() -> None:
    """Each piece comes well within the time; the answer as a whole does not."""

    async def pause() -> None:
        await asyncio.sleep(0.005)

    trickle = (b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n", *[b"x"] * 100_000)
    async with BytePod(lambda _: trickle, between=pause) as pod, inquiry(0.1) as asking:
        late = await reason(asking, pod.url)
        assert (str(late), late.is_late) == ("GET /health: no answer in 0.1 s", True)
        await until(lambda: not pod.lines, what="its connection closed")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((b"nonsense\r\n\r\n",), "GET /health: the answer is not HTTP/1"),
        ((GOOD[:-1], Cut.CLOSE), "GET /health: the connection was closed inside the answer"),
        ((Cut.CLOSE,), "the connection was closed before the answer's head was whole"),
        ((Cut.RESET,), "the connection was "),
        (
            (b"HTTP/1.1 200 OK\r\n\r\n", b"x" * LARGEST_ANSWER_BYTES, b"x"),
            f"GET /health: more than {LARGEST_ANSWER_BYTES} bytes came",
        ),
        (
            (b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 3\r\n\r\nabc",),
            "in a coding that nobody asked for: gzip",
        ),
    ],
    ids=["nonsense", "half", "closed", "reset", "endless", "coded"],
)
async def test_what_is_no_answer_is_said_so_and_is_certain(answer: tuple[bytes | Cut, ...], said: str) -> None:
    async with BytePod(lambda _: answer) as pod, inquiry() as asking:
        unanswered = await reason(asking, pod.url)
        assert said in str(unanswered)
        assert not unanswered.is_late


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost"])
async def test_nobody_listening_is_no_connection(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    async with inquiry() as asking:
        unanswered = await reason(asking, f"http://{host}:{port}")
        assert str(unanswered).startswith("GET /health: no connection: ")
        assert not unanswered.is_late


@pytest.mark.parametrize("url", ["ftp://pod", "http://", "http://pod:99999", "http://püd:8000"])
async def test_a_url_that_is_none_is_said_so(url: str) -> None:
    async with inquiry() as asking:
        assert str(await reason(asking, url)).startswith("GET /health: ")


async def test_who_stops_waiting_leaves_no_connection() -> None:
    async with BytePod(lambda _: ()) as pod, inquiry() as asking:
        task = asyncio.create_task(asking.get(pod.url, "/health", api_key=None))
        await until(lambda: pod.requests, what="the question at the pod")
        task.cancel()
        await asyncio.wait({task})
        await until(lambda: not pod.lines, what="its connection closed")


@requires_program("openssl", install="apt-get install openssl")
async def test_a_pod_behind_tls_is_asked_if_its_certificate_is_known(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=pod"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)  # noqa: ASYNC221
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    async with BytePod(lambda _: (GOOD,), tls=server) as pod:
        assert pod.url.startswith("https://")
        async with inquiry(tls=ssl.create_default_context(cafile=str(certificate))) as knowing:
            assert await knowing.get(pod.url, "/health", api_key=None) == (200, b"well")
        async with inquiry() as wary:
            unanswered = await reason(wary, pod.url)
            assert str(unanswered).startswith("GET /health: no connection: ")
            assert "certificate verify failed" in str(unanswered)
            assert not unanswered.is_late
