"""The server's counters beside ours: what belongs together, what has no counterpart, and servers that do not tell."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from loadtest.server import counts as server_counts
from loadtest.server.counts import Counted, Reading, Unreadable, compare_counts, fetch, fetch_settled, parse
from loadtest.strain import StrainTotal
from loadtest.summary import Distribution, PhaseResults, Results

URL = "http://127.0.0.1:1/metrics"


def results(name: str = "all", **more: Any) -> Results:
    times: dict[str, Any] = {
        name: Distribution() for name in ("ttft", "ttft_from_sending", "client_wait", "itl", "tpot", "e2e")
    }
    return Results(name=name, **times, **more)


def phase(everybody: Results, *tenants: Results, name: str = "main") -> PhaseResults:
    return PhaseResults(
        name=name,
        at=0.0,
        load_seconds=1.0,
        seconds=1.0,
        is_counted=True,
        tenants=list(tenants),
        all=everybody,
        strain=StrainTotal().summary(),
    )


def compared(before: str, after: str, *phases: PhaseResults) -> Counted:
    return compare_counts([parse(URL, before)], [parse(URL, after)], phases)


def rows(counted: Counted) -> list[tuple[str, str, float, float | None]]:
    """Each row's name, labels in words, server and client."""
    return [
        (count.name, " ".join(f"{label}={value}" for label, value in count.labels.items()), count.server, count.client)
        for count in counted.counts
    ]


# ---- what belongs together ------------------------------------------------------------------------------------------


def test_the_gateways_tokens_stand_beside_each_tenants() -> None:
    before = """
# HELP penstock_tokens_total Tokens
# TYPE penstock_tokens_total counter
penstock_tokens_total{tenant="victim",model="tiny",kind="completion"} 100
"""
    after = """
# TYPE penstock_tokens_total counter
penstock_tokens_total{tenant="victim",model="tiny",kind="completion"} 740
penstock_tokens_total{tenant="victim",model="large",kind="completion"} 10
penstock_tokens_total{tenant="victim",model="tiny",kind="prompt"} 5000
penstock_tokens_total{tenant="stranger",model="tiny",kind="completion"} 7
penstock_tokens_total{tenant="idle",model="tiny",kind="completion"} 0
"""
    victim = results("victim", tokens_received=650, prompt_tokens_reported=5000)
    crowd = results("crowd", tokens_received=30)
    assert rows(compared(before, after, phase(results(tokens_received=680), victim, crowd))) == [
        ("penstock_tokens_total", "tenant=victim kind=completion", 650.0, 650),
        ("penstock_tokens_total", "tenant=victim kind=prompt", 5000.0, 5000),
        ("penstock_tokens_total", "tenant=crowd kind=completion", 0.0, 30),
        ("penstock_tokens_total", "tenant=stranger kind=completion", 7.0, None),
    ]


def test_tenants_under_other_names_are_compared_in_all() -> None:
    after = """
penstock_tokens_total{tenant="acme",model="tiny",kind="completion"} 60
penstock_tokens_total{tenant="other",model="tiny",kind="completion"} 40
"""
    told = compared("# TYPE penstock_tokens_total counter", after, phase(results(tokens_received=99), results("t")))
    assert rows(told) == [("penstock_tokens_total", "kind=completion", 100.0, 99)]


def test_all_phases_count_the_warm_up_too() -> None:
    warm = phase(results(tokens_received=5), results("t", tokens_received=5), name="warmup")
    warm.is_counted = False
    main = phase(results(tokens_received=10), results("t", tokens_received=10))
    told = compared("vllm:generation_tokens_total 100", "vllm:generation_tokens_total 115", warm, main)
    assert rows(told) == [("vllm:generation_tokens_total", "", 15.0, 15)]


def test_requests_stand_in_all_and_by_status() -> None:
    after = """
penstock_requests_total{tenant="t",model="m",code="200"} 90
penstock_requests_total{tenant="t",model="m",code="429"} 7
penstock_requests_total{tenant="t",model="m",code="499"} 1
penstock_requests_total{tenant="t",model="m",code="404"} 2
penstock_refusals_total{tenant="t",code="token_rate"} 4
penstock_refusals_total{tenant="t",code="queue_full"} 2
"""
    own = results(
        "t",
        sent=101,
        done=80,
        cancelled=9,
        codes={"429 token_rate": 4, "429 memory_budget": 3, "503": 1, "refused_connection": 2, "timeout": 1, "cut": 1},
    )
    assert rows(compared("# TYPE penstock_requests_total counter", after, phase(own, own))) == [
        ("penstock_requests_total", "tenant=t", 100.0, 99),
        ("penstock_requests_total", "tenant=t code=200", 90.0, 89),
        ("penstock_requests_total", "tenant=t code=404", 2.0, 0),
        ("penstock_requests_total", "tenant=t code=429", 7.0, 7),
        ("penstock_requests_total", "tenant=t code=499", 1.0, None),
        ("penstock_requests_total", "tenant=t code=503", 0.0, 1),
        ("penstock_refusals_total", "tenant=t code=queue_full", 2.0, 0),
        ("penstock_refusals_total", "tenant=t code=token_rate", 4.0, 4),
    ]


def test_an_error_in_the_middle_of_a_stream_may_be_any_status_of_a_fault() -> None:
    after = """
penstock_requests_total{tenant="t",model="m",code="200"} 5
penstock_requests_total{tenant="t",model="m",code="502"} 3
penstock_requests_total{tenant="t",model="m",code="400"} 1
"""
    own = results("t", sent=9, done=5, codes={"error_event pod_lost": 3, "400 invalid_request": 1})
    counted = compared("# TYPE penstock_requests_total counter", after, phase(own, own))
    told = {labels: client for _, labels, _, client in rows(counted)}
    assert told["tenant=t code=502"] is None
    assert told["tenant=t code=400"] == 1
    assert told["tenant=t"] == 9


def test_vllms_requests_are_done_or_aborted() -> None:
    before = 'vllm:request_success_total{model_name="m",finished_reason="stop"} 10'
    after = """
vllm:request_success_total{model_name="m",finished_reason="stop"} 15
vllm:request_success_total{model_name="m",finished_reason="length"} 20
vllm:request_success_total{model_name="m",finished_reason="abort"} 4
vllm:prompt_tokens_total{model_name="m"} 3000
vllm:generation_tokens_total{model_name="m"} 2000
vllm:num_preemptions_total{model_name="m"} 2
vllm:prefix_cache_hits_total{model_name="m"} 0
"""
    own = results(done=25, cancelled=4, tokens_received=1990, prompt_tokens_reported=2900)
    assert rows(compared(before, after, phase(own))) == [
        ("vllm:request_success_total", "finished_reason=abort", 4.0, 4),
        ("vllm:request_success_total", "finished_reason=not abort", 25.0, 25),
        ("vllm:generation_tokens_total", "", 2000.0, 1990),
        ("vllm:prompt_tokens_total", "", 3000.0, 2900),
        ("vllm:num_preemptions_total", "", 2.0, None),
    ]


@pytest.mark.parametrize(
    ("name", "client"),
    [
        ("sglang:generation_tokens_total", 70),
        ("sglang:prompt_tokens_total", 50),
        ("sglang:num_requests_total", 11),
        ("sglang:num_aborted_requests_total", 3),
        ("llamacpp:tokens_predicted_total", 70),
        ("llamacpp:prompt_tokens_total", 50),
        ("sglang:cached_tokens_total", None),
    ],
)
def test_other_engines_have_names_of_their_own(name: str, client: float | None) -> None:
    own = results(sent=12, done=8, cancelled=3, tokens_received=70, prompt_tokens_reported=50)
    own.codes = {"refused_connection": 1}
    told = compared(f'{name}{{model_name="m"}} 1e2', f'{name}{{model_name="m"}} 1.75e2', phase(own))
    assert rows(told) == [(name, "", 75.0, client)]


def test_pods_add_up_and_the_sources_are_named() -> None:
    one, two = "http://127.0.0.1:1/metrics", "http://127.0.0.1:2/metrics"
    before = [parse(one, "vllm:generation_tokens_total 5"), parse(two, "vllm:generation_tokens_total 7")]
    after = [parse(one, "vllm:generation_tokens_total 25"), parse(two, "vllm:generation_tokens_total 37")]
    (count,) = compare_counts(before, after, [phase(results(tokens_received=50))]).counts
    assert (count.server, count.client, count.source) == (50.0, 50, f"{one}, {two}")


def test_a_gateway_and_its_pod_stand_each_for_itself() -> None:
    gateway, pod = "http://127.0.0.1:1/metrics", "http://127.0.0.1:2/metrics"
    before = [parse(gateway, "# TYPE penstock_tokens_total counter"), parse(pod, "vllm:generation_tokens_total 0")]
    after = [
        parse(gateway, 'penstock_tokens_total{tenant="t",model="m",kind="completion"} 50'),
        parse(pod, "vllm:generation_tokens_total 53"),
    ]
    told = compare_counts(before, after, [phase(results(tokens_received=50), results("t", tokens_received=50))])
    assert [(count.name, count.server, count.source) for count in told.counts] == [
        ("penstock_tokens_total", 50.0, gateway),
        ("vllm:generation_tokens_total", 53.0, pod),
    ]


def test_what_neither_side_counted_is_left_out() -> None:
    assert compared("vllm:generation_tokens_total 5", "vllm:generation_tokens_total 5", phase(results())).counts == []


# ---- restarts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("vllm:generation_tokens_total 50", "vllm:generation_tokens_total 20"),
        ('vllm:generation_tokens_total{m="a"} 50', 'vllm:generation_tokens_total{m="b"} 20'),
        (
            "process_start_time_seconds 1000\nvllm:generation_tokens_total 5",
            "process_start_time_seconds 2000\nvllm:generation_tokens_total 20",
        ),
    ],
)
def test_a_server_that_counts_from_zero_again_is_named(before: str, after: str) -> None:
    told = compared(before, after, phase(results(tokens_received=60)))
    assert told.counts[0].server == 20.0
    (note,) = told.notes
    assert note.startswith(f"{URL} counts from zero again")


def test_one_restart_of_two_leaves_the_others_figures() -> None:
    one, two = "http://127.0.0.1:1/metrics", "http://127.0.0.1:2/metrics"
    before = [parse(one, "vllm:generation_tokens_total 50"), parse(two, "vllm:generation_tokens_total 50")]
    after = [parse(one, "vllm:generation_tokens_total 20"), parse(two, "vllm:generation_tokens_total 80")]
    told = compare_counts(before, after, [phase(results(tokens_received=50))])
    assert told.counts[0].server == 50.0
    assert len(told.notes) == 1 and one in told.notes[0]


def test_an_unbroken_run_has_no_notes() -> None:
    text = "process_start_time_seconds 1000.5\nvllm:generation_tokens_total 5"
    assert compared(text, text, phase(results())).notes == []


def test_an_address_that_was_not_read_before_is_left_out_and_named() -> None:
    told = compare_counts([], [parse(URL, "vllm:generation_tokens_total 5")], [phase(results())])
    assert told.counts == []
    assert "was not read before the run" in told.notes[0]


# ---- parsing --------------------------------------------------------------------------------------------------------


def test_only_what_is_known_is_read() -> None:
    told = parse(
        URL,
        """# HELP vllm:generation_tokens_total Tokens
vllm:generation_tokens_total{model_name="a \\"quoted\\" {x} name"} 5.0 1700000000000
vllm:generation_tokens_total_created 1.7e9
my_vllm:generation_tokens_total 9
this is no metric at all
vllm:prompt_tokens_total NaN
vllm:num_preemptions_total +Inf
process_start_time_seconds 1.7e9
# EOF
""",
    )
    assert told.samples == {
        ("vllm:generation_tokens_total", (("model_name", 'a "quoted" {x} name'),)): 5.0,
    }
    assert told.started == 1.7e9


def test_windows_line_ends_are_read_too() -> None:
    assert list(parse(URL, "vllm:prompt_tokens_total 7\r\nvllm:generation_tokens_total 5\r\n").samples.values()) == [
        7,
        5,
    ]


def test_a_gateway_that_has_counted_nothing_yet_is_known_by_what_it_announces() -> None:
    told = parse(URL, "# HELP penstock_tokens_total Tokens\n# TYPE penstock_tokens_total counter\n")
    assert told.samples == {}
    assert told.names == {"penstock_tokens_total"}


@pytest.mark.parametrize("text", ["", "<html>login</html>", "node_cpu_seconds_total 5\n"])
def test_a_page_without_known_counters_is_refused_with_what_is_known(text: str) -> None:
    with pytest.raises(Unreadable, match=r"no counter that is known here .*llama\.cpp"):
        parse(URL, text)


@pytest.mark.parametrize(
    "line", ["vllm:prompt_tokens_total five", 'vllm:prompt_tokens_total{model="x 5', "vllm:prompt_tokens_total "]
)
def test_a_broken_line_is_refused_and_never_a_traceback(line: str) -> None:
    with pytest.raises(Unreadable, match="does not answer in Prometheus' text format"):
        parse(URL, line + "\n")


# ---- fetching -------------------------------------------------------------------------------------------------------


class Pages:
    """A small HTTP server: each answer in turn, the last one again and again."""

    def __init__(self, answers: Sequence[bytes]) -> None:
        self.answers = list(answers)
        self.requests: list[bytes] = []
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.requests.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])
        writer.close()


@asynccontextmanager
async def pages(*answers: bytes) -> AsyncIterator[Pages]:
    told = Pages(answers)
    server = await asyncio.start_server(told.serve, "127.0.0.1", 0)
    told.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield told


def page(text: str, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {len(text)}\r\n\r\n{text}".encode()


def tokens(readings: Sequence[Reading]) -> list[float]:
    return [value for reading in readings for value in reading.samples.values()]


async def test_a_servers_address_alone_means_its_metrics() -> None:
    async with pages(page("vllm:generation_tokens_total 5\n")) as server:
        (told,) = await fetch([server.url])
        assert (told.url, tokens([told])) == (f"{server.url}/metrics", [5.0])
        assert server.requests[0].startswith(b"GET /metrics HTTP/1.1")
        (other,) = await fetch([f"{server.url}/inner/prom?all=1"])
        assert server.requests[1].startswith(b"GET /inner/prom?all=1 ")
        assert other.url == f"{server.url}/inner/prom"  # a query may hold a token, which no report shall show


async def test_several_addresses_are_read_in_their_order() -> None:
    async with (
        pages(page("vllm:generation_tokens_total 1\n")) as one,
        pages(page("vllm:prompt_tokens_total 2\n")) as two,
    ):
        assert tokens(await fetch([two.url, one.url])) == [2.0, 1.0]


async def test_proxies_of_the_environment_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    async with pages(page("vllm:generation_tokens_total 5\n")) as server:
        assert tokens(await fetch([server.url])) == [5.0]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (page("no", "404 Not Found"), "answers 404"),
        (page("", "302 Found"), "answers 302"),
        (page("<html>"), "no counter that is known here"),
        (b"", "cannot be read"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nvllm:", "cannot be read"),
        (b"220 smtp\r\n", "cannot be read"),
    ],
)
async def test_what_is_no_metrics_page_is_refused_by_its_address(answer: bytes, words: str) -> None:
    async with pages(answer) as server:
        with pytest.raises(Unreadable, match=words) as refused:
            await fetch([server.url])
        assert f"{server.url}/metrics" in str(refused.value)


async def test_a_server_that_is_down_is_refused_by_its_address_though_others_answer() -> None:
    async with pages(page("vllm:generation_tokens_total 5\n")) as up:
        async with pages(page("")) as down:
            pass
        with pytest.raises(Unreadable, match=rf"{down.url}/metrics cannot be read"):
            await fetch([up.url, down.url])


async def test_a_page_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_counts, "MOST_BYTES", 2**20)
    async with pages(page("vllm:generation_tokens_total 5\n" * 40_000)) as server:
        with pytest.raises(Unreadable, match="more than 1 MiB"):
            await fetch([server.url])


async def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_counts, "MOST_SECONDS", 0.05)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with server:
        with pytest.raises(Unreadable, match="took longer than"):
            await fetch([f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"])


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8000/metrics", "ftp://host/metrics", "http://[::1/metrics", "http:///metrics"]
)
async def test_what_is_no_address_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(Unreadable, match="is not a URL of a server's metrics; write http"):
        await fetch([url])


async def test_a_password_in_an_address_is_never_repeated() -> None:
    with pytest.raises(Unreadable) as refused:
        await fetch(["http://me:hunter2@127.0.0.1:1/metrics"])
    assert "hunter2" not in str(refused.value)


async def test_counts_are_taken_when_they_no_longer_change() -> None:
    naps: list[float] = []

    async def nap(seconds: float) -> None:
        naps.append(seconds)

    async with pages(*(page(f"vllm:generation_tokens_total {count}\n") for count in (5, 8, 9, 9, 77))) as server:
        assert tokens(await fetch_settled([server.url], nap)) == [9.0]
    assert len(naps) == 3


async def test_a_server_that_others_load_is_not_waited_for_for_ever() -> None:
    async def nap(seconds: float) -> None:
        pass

    async with pages(*(page(f"vllm:generation_tokens_total {count}\n") for count in range(100))) as server:
        assert tokens(await fetch_settled([server.url], nap)) == [float(server_counts.MOST_READINGS)]
