"""Listeners: addresses, TLS, draining and closing, against real sockets."""

from __future__ import annotations

import asyncio
import re
import ssl
import subprocess
from pathlib import Path

import pytest

from gateway.http.listener import ListenError
from tenancy.policy import ServerSettings
from tests.instruments.http_house import House, Run, Waiting, echo, get, post, serving
from tests.instruments.requires import find_program, requires_program
from tests.instruments.until import until

# ---- draining --------------------------------------------------------------------------------------------------------


def test_draining_makes_each_answer_the_last_and_still_takes_what_comes(run: Run) -> None:
    async def scenario() -> None:
        app = Waiting()
        async with serving(app) as house:
            idle, busy = await house.connect(), await house.connect()
            await busy.send(post("/busy", b"x"))
            await app.entered.wait()
            await until(lambda: house.listener.open_connections == 2)
            house.listener.drain()
            app.go_on.set()
            late = await house.connect()
            await late.send(get("/late"))
            await idle.send(get("/idle"))
            for peer in (busy, idle, late):
                status, headers, _ = await peer.answer()
                assert (status, headers["connection"]) == (200, "close")
                assert await peer.has_ended()
            await house.listener.wait_closed()

    run(scenario())


def test_a_listener_that_closes_ends_idle_connections_now(run: Run) -> None:
    async def scenario() -> None:
        async with serving(echo) as house:
            silent, kept = await house.connect(), await house.connect()
            await kept.send(get("/"))
            await kept.answer()
            await until(lambda: house.listener.open_connections == 2)
            await house.listener.close(at_once=False)
            assert await silent.read_all() == b""
            assert await kept.read_all() == b""

    run(scenario())


def test_a_request_that_is_arriving_when_the_drain_begins_is_answered(run: Run) -> None:
    async def scenario() -> None:
        async with serving(echo) as house:
            peer = await house.connect()
            request = post("/late", b"hello", "x: y")
            await peer.send(request[:40])
            await until(lambda: any(getattr(each, "headers", None) for each in house.listener.state.connections))
            house.listener.drain()
            await peer.send(request[40:])
            status, headers, _ = await peer.answer()
            assert (status, headers["connection"]) == (200, "close")
            assert await peer.has_ended()

    run(scenario())


def test_closing_at_once_cuts_what_is_being_answered_and_waits_for_the_application(run: Run) -> None:
    async def scenario() -> None:
        app = Waiting()
        async with serving(app) as house:
            peer = await house.connect()
            await peer.send(post("/", b"x"))
            await app.entered.wait()
            app.left.clear()
            closing = asyncio.create_task(house.listener.close(at_once=True))
            await app.left.wait()
            assert not closing.done()
            app.go_on.set()
            await closing
            peer.close()

    run(scenario())


def test_a_taken_port_is_an_error_that_names_it_and_what_helps(run: Run) -> None:
    async def scenario() -> None:
        async with serving(echo) as house, serving(echo) as other:
            assert other.listener.port != house.listener.port  # two listeners live in one loop
            with pytest.raises(ListenError, match=rf"127\.0\.0\.1:{house.listener.port}.*another port"):
                await House(echo, ServerSettings()).listener.start("127.0.0.1", house.listener.port)

    run(scenario())


def test_a_listener_that_closes_waits_for_answers_and_is_gone(run: Run) -> None:
    async def scenario() -> None:
        app = Waiting()
        async with serving(app) as house:
            peer = await house.connect()
            await peer.send(post("/", b"x"))
            await app.entered.wait()
            closing = asyncio.create_task(house.listener.close(at_once=False))
            await asyncio.sleep(0)
            app.go_on.set()
            assert (await peer.answer())[2] == b"/ x"
            await closing
            with pytest.raises(ConnectionRefusedError):
                await house.connect()

    run(scenario())


@pytest.mark.parametrize(
    ("host", "port", "says"),
    [
        ("192.0.2.1", 0, "192.0.2.1:0: Cannot assign requested address. Give an address of this machine"),
        ("no such host", 8080, "no such host:8080: the host is not known"),
    ],
)
def test_an_address_that_cannot_be_had_is_named_with_what_helps(run: Run, host: str, port: int, says: str) -> None:
    async def scenario() -> None:
        with pytest.raises(ListenError, match=re.escape(says)):
            await House(echo, ServerSettings()).listener.start(host, port)

    run(scenario())


def test_every_address_of_a_host_is_listened_on(run: Run) -> None:
    async def scenario() -> None:
        house = House(echo, ServerSettings())
        await house.listener.start("0.0.0.0", 0)
        assert house.listener.url == f"http://127.0.0.1:{house.listener.port}"
        peer = await house.connect()
        await peer.send(get("/"))
        assert (await peer.answer())[0] == 200
        peer.close()
        await house.listener.close(at_once=True)

    run(scenario())


# ---- TLS -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def certificate(tmp_path: Path) -> ServerSettings:
    """Settings with a certificate for 127.0.0.1 of our own."""
    openssl = find_program("openssl")
    assert openssl is not None
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    return ServerSettings(tls_cert=str(cert), tls_key=str(key))


@requires_program("openssl", install="apt-get install openssl")
def test_tls_clients_are_answered_and_seen_leaving(run: Run, certificate: ServerSettings) -> None:
    async def scenario() -> None:
        app = Waiting()
        async with serving(app, tls_cert=certificate.tls_cert, tls_key=certificate.tls_key) as house:
            assert house.listener.url == f"https://127.0.0.1:{house.listener.port}"
            trust = ssl.create_default_context(cafile=certificate.tls_cert)
            for leaves in (False, True):
                app.go_on.clear()
                app.entered.clear()
                reader, writer = await asyncio.open_connection("127.0.0.1", house.listener.port, ssl=trust)
                writer.write(post("/", b"hello"))
                await app.entered.wait()
                if leaves:
                    writer.transport.abort()
                    await app.left.wait()
                app.go_on.set()
                if not leaves:
                    assert await reader.readuntil(b"/ hello")
                    writer.close()
                    await writer.wait_closed()

    run(scenario())


@requires_program("openssl", install="apt-get install openssl")
def test_a_fault_reaches_a_tls_client_that_still_sends(run: Run, certificate: ServerSettings) -> None:
    async def scenario() -> None:
        bounds = {"tls_cert": certificate.tls_cert, "tls_key": certificate.tls_key, "body_bytes": 1000}
        async with serving(echo, **bounds) as house:
            trust = ssl.create_default_context(cafile=certificate.tls_cert)
            reader, writer = await asyncio.open_connection("127.0.0.1", house.listener.port, ssl=trust)
            writer.write(post("/", b"x" * 1_000_000))
            assert await reader.readuntil(b"request_too_large")
            writer.transport.abort()

    run(scenario())


def test_a_certificate_that_cannot_be_used_is_named(run: Run, tmp_path: Path) -> None:
    async def scenario() -> None:
        settings = ServerSettings(tls_cert=str(tmp_path / "none.pem"), tls_key=str(tmp_path / "none.key"))
        with pytest.raises(ListenError, match=r"none\.pem.*No such file.*server\.tls needs PEM"):
            await House(echo, settings).listener.start("127.0.0.1", 0)

    run(scenario())
