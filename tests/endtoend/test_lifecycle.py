"""Starting, draining and ending, as an operator meets them."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import httpx
import psutil

from tests.instruments.gateway import Running, gateway, hash_of
from tests.instruments.pods import simulator
from tests.instruments.until import until

KEY = "sk-acme"
HEADERS = {"authorization": f"Bearer {KEY}"}


def file(url: str, more: str = "", pod: str = "") -> str:
    return f"""
pods: [{{name: pod, url: "{url}", engine: simulator, models: [tiny]{pod}}}]
tenants: [{{name: acme, keys: ["{hash_of(KEY)}"], budget: {{concurrency: 4}}}}]
{more}
"""


def payload(tokens: int) -> dict[str, object]:
    return {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
    }


async def stream(running: Running, tokens: int) -> str:
    async with httpx.AsyncClient(timeout=30) as client:
        answer = await client.post(running.url + "/v1/chat/completions", json=payload(tokens), headers=HEADERS)
        return answer.text


async def test_sigterm_lets_open_streams_finish_admits_nothing_new_and_exits_0(tmp_path: Path) -> None:
    async with simulator(slots=4, itl="10ms", model="tiny") as pod:
        async with gateway(file(pod.url, "server: {drainDelay: 200ms}"), tmp_path) as running:
            async with httpx.AsyncClient(base_url=running.url) as kept:
                assert (await kept.get("/readyz")).status_code == 200
                open_stream = asyncio.create_task(stream(running, 100))
                await pod.until(lambda rows: rows["all"]["running"] == 1)
                running.process.send_signal(signal.SIGTERM)
                await until(lambda: any(line.get("event") == "draining" for line in running.log))
                async with httpx.AsyncClient() as client:
                    assert (await client.get(running.url + "/readyz")).status_code == 503
                    assert (await client.get(running.url + "/healthz")).status_code == 200
                    async with asyncio.timeout(10):
                        while True:
                            refused = await client.post(
                                running.url + "/v1/chat/completions", json=payload(1), headers=HEADERS
                            )
                            if refused.status_code == 503:
                                break
                    assert refused.json()["error"]["code"] == "draining"
                    assert int(refused.headers["retry-after"]) > 0
                text = await open_stream
            assert text.endswith("data: [DONE]\n\n")
            assert "error" not in text
            async with asyncio.timeout(20):
                assert await running.process.wait() == 0


async def test_streams_that_outlast_the_drain_are_told_so_and_end_in_order(tmp_path: Path) -> None:
    async with simulator(slots=4, itl="50ms", model="tiny") as pod:
        async with gateway(file(pod.url, "server: {drainTimeout: 200ms}"), tmp_path) as running:
            cut = asyncio.create_task(stream(running, 1000))
            await pod.until(lambda rows: rows["all"]["running"] == 1)
            running.process.send_signal(signal.SIGTERM)
            text = await cut
            last = text.split("\n\n")[-2]
            assert '"code":"draining"' in last
            assert '"status":503' in last
            async with asyncio.timeout(20):
                assert await running.process.wait() == 1
        assert not any(line.get("client_left") for line in running.access)


async def test_what_no_route_answers_is_told_and_noted_like_everything_else(tmp_path: Path) -> None:
    async with simulator(model="tiny") as pod, gateway(file(pod.url), tmp_path) as running:
        async with httpx.AsyncClient(base_url=running.url) as client:
            lost = await client.post("/chat/completions", json={})
            wrong = await client.get("/v1/chat/completions")
            slash = await client.post("/v1/chat/completions/", json={})
            health = await client.head("/healthz")
        assert (lost.status_code, lost.json()["error"]["code"]) == (404, "not_found")
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
        assert slash.status_code == 404
        assert health.status_code == 200
        assert all(answer.headers["x-request-id"] for answer in (lost, wrong, slash, health))
        assert await running.metric("penstock_requests_total", code="404") == 2
        await until(lambda: sum(line.get("code") == "not_found" for line in running.access) == 2)


async def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    async with simulator(slots=4, itl="50ms", model="tiny") as pod, gateway(file(pod.url), tmp_path) as running:
        cut = asyncio.create_task(stream(running, 1000))
        await pod.until(lambda rows: rows["all"]["running"] == 1)
        running.process.send_signal(signal.SIGINT)
        await until(lambda: any(line.get("event") == "draining" for line in running.log))
        running.process.send_signal(signal.SIGINT)
        async with asyncio.timeout(10):
            assert await running.process.wait() == 1
        await asyncio.gather(cut, return_exceptions=True)


async def test_pods_that_are_ours_are_gone_after_an_orderly_end(tmp_path: Path) -> None:
    mine = f"""
pods: [{{name: pod, engine: simulator, models: [tiny]}}]
tenants: [{{name: acme, keys: ["{hash_of(KEY)}"]}}]
"""
    async with gateway(mine, tmp_path) as running:
        children = psutil.Process(running.pid).children(recursive=True)
        assert children
        assert await running.stop() == 0
        assert not [child for child in children if child.is_running()]


async def test_a_port_that_is_taken_is_said_and_ends_it(tmp_path: Path) -> None:
    async with simulator(model="tiny") as pod:
        port = httpx.URL(pod.url).port
        (tmp_path / "penstock.yaml").write_text(file(pod.url))
        import sys

        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gateway.cli", "serve", "-f", str(tmp_path / "penstock.yaml"), "--port", str(port),
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(20):
            _, said = await process.communicate()
        assert process.returncode == 1
        assert f"127.0.0.1:{port}" in said.decode()
        assert "Traceback" not in said.decode()


async def test_heartbeats_come_while_a_stream_waits_and_an_early_head_says_200(tmp_path: Path) -> None:
    more = "queue: {headAfter: 50ms, timeout: 30s}\nstreams: {heartbeat: 60ms}"
    async with simulator(slots=4, ttft="600ms", itl="1ms", model="tiny") as pod:
        async with gateway(file(pod.url, more), tmp_path) as running:
            text = await stream(running, 3)
            beats = text.split("data:", 1)[0]
            assert beats.count(": hb\n") >= 3
            assert text.endswith("data: [DONE]\n\n")


async def test_what_is_refused_after_an_early_head_is_one_event_with_the_status(tmp_path: Path) -> None:
    more = "queue: {headAfter: 50ms, timeout: 400ms}\nstreams: {heartbeat: 60ms}"
    async with simulator(slots=1, ttft="1ms", itl="20ms", model="tiny") as pod:
        async with gateway(file(pod.url, more, ", concurrency: 1"), tmp_path) as running:
            blocking = asyncio.create_task(stream(running, 150))
            await pod.until(lambda rows: rows["all"]["running"] == 1)
            text = await stream(running, 3)
            events = [part for part in text.replace(": hb\n", "").split("\n\n") if part]
            assert len(events) == 1
            assert '"queue_timeout"' in events[0]
            assert '"status":429' in events[0]
            assert "retry_after_ms" in events[0]
            blocking.cancel()
            await asyncio.gather(blocking, return_exceptions=True)
