"""What the server says it did, beside what its client saw: counters of `/metrics`, before and after the run.

Two parties that counted apart and agree are worth more than one. Known are the counters of Penstock, vLLM, SGLang and
llama.cpp; of each it is said which figure of ours it should equal, and nothing is bent to make them equal: a server
counts tokens that a cancelled call never received, and requests of others. Several addresses (the pods behind one
gateway) add up. Whether a difference matters is the reader's to say.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx
from prometheus_client.parser import text_string_to_metric_families

from loadtest.summary import Count, PhaseResults, Results

MOST_BYTES = 64 * 2**20
TIMEOUT_SECONDS = 5.0
MOST_SECONDS = 30.0
"""The longest that one answer may take, however it trickles."""

SETTLE_SECONDS = 0.25
MOST_READINGS = 20

Labels = tuple[tuple[str, str], ...]
Samples = Mapping[tuple[str, Labels], float]

_START = "process_start_time_seconds"
_EXAMPLE = "http://127.0.0.1:8000/metrics"


class Unreadable(Exception):
    """Metrics that cannot be had; the text says why, and what would help."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The known counters of one address at one time."""

    url: str
    samples: Samples
    names: frozenset[str]
    """The known counters that it announces, those included that have no samples yet."""

    started: float | None
    """When the server says that it started."""


class Counted(NamedTuple):
    """The figures side by side, and what is to be said about them."""

    counts: list[Count]
    notes: list[str]


_NEVER_THERE = ("refused_connection", "tls_failed", "no_descriptors", "no_ports")


@dataclass(slots=True)
class Own:
    """What one tenant, or all, met in all phases together."""

    reached: int = 0
    """Calls that reached the server: without those for which no connection could be made."""

    done: int = 0
    cancelled: int = 0
    unreported: int = 0
    """Calls whose usage nobody told us."""

    tokens: int = 0
    prompt_tokens: int = 0
    codes: Counter[str] = field(default_factory=Counter)

    def add(self, results: Results) -> None:
        """Take one phase's."""
        self.reached += results.sent - sum(results.codes.get(code, 0) for code in _NEVER_THERE)
        self.done += results.done
        self.cancelled += results.cancelled
        self.unreported += results.cancelled + results.failed - results.refused
        self.tokens += results.tokens_received
        self.prompt_tokens += results.prompt_tokens_reported
        self.codes.update(results.codes)

    def statuses(self) -> list[str]:
        """The statuses of answers that were ours."""
        failed = {match[1] for code in self.codes if (match := _STATUS.match(code))}
        return sorted(failed | {"200"})

    def of_status(self, status: str) -> float | None:
        """Calls that a server would count under a status: 200 are those that it answered, left by us or not.

        `None` for 499, its word for a client that left before any answer, and for a status that may be one of an error
        in the middle of a stream, which told us a code alone.
        """
        if status == "200":
            return self.done + self.cancelled
        has_error_events = any(code.startswith("error_event") for code in self.codes)
        if status == "499" or (has_error_events and status >= "500"):
            return None
        return sum(count for code, count in self.codes.items() if code.split(" ")[0] == status)

    def of_reason(self, reason: str) -> float:
        """Calls that were answered by an error of that code."""
        return sum(count for code, count in self.codes.items() if (match := _STATUS.match(code)) and match[2] == reason)


_STATUS = re.compile(r"([1-5][0-9][0-9])(?: (.+))?$")


@dataclass(frozen=True, slots=True)
class _Known:
    """A counter, and what we counted of the same: in all, or by the values of `label`.

    `ours` gives it for one value (`None`: we have nothing to hold against it), `expected` names those values that must
    stand there even if the server has none of them, `fold` maps the server's values to fewer.
    """

    name: str
    ours: Callable[[Own, str], float | None]
    label: str = ""
    expected: Callable[[Own], Iterable[str]] = lambda own: ("",)
    fold: Callable[[str], str] = str


def _nothing(own: Own, value: str) -> None:
    """No counterpart."""


def _reached(own: Own, value: str) -> float:
    return own.reached


def _completion(own: Own, value: str) -> float:
    return own.tokens


def _prompt(own: Own, value: str) -> float:
    return own.prompt_tokens


_KNOWN: tuple[_Known, ...] = (
    _Known("penstock_requests_total", _reached),
    _Known("penstock_requests_total", Own.of_status, "code", Own.statuses),
    # only those that it names: what we were refused by, the policy or something else, we cannot tell
    _Known("penstock_refusals_total", Own.of_reason, "code", lambda own: ()),
    _Known(
        "penstock_tokens_total",
        lambda own, kind: {"completion": own.tokens, "prompt": own.prompt_tokens}.get(kind),
        "kind",
        lambda own: ("completion", "prompt"),
    ),
    _Known("penstock_attempts_total", _nothing, "outcome"),
    _Known(
        "vllm:request_success_total",
        lambda own, reason: own.cancelled if reason == "abort" else own.done,
        "finished_reason",
        lambda own: ("abort", "not abort"),
        lambda reason: "abort" if reason == "abort" else "not abort",
    ),
    _Known("vllm:generation_tokens_total", _completion),
    _Known("vllm:prompt_tokens_total", _prompt),
    _Known("vllm:prefix_cache_hits_total", _nothing),
    _Known("vllm:num_preemptions_total", _nothing),
    _Known("sglang:num_requests_total", _reached),
    _Known("sglang:num_aborted_requests_total", lambda own, _: own.cancelled),
    _Known("sglang:generation_tokens_total", _completion),
    _Known("sglang:prompt_tokens_total", _prompt),
    _Known("sglang:cached_tokens_total", _nothing),
    _Known("llamacpp:tokens_predicted_total", _completion),
    _Known("llamacpp:prompt_tokens_total", _prompt),
)
_NAMES = frozenset(known.name for known in _KNOWN)
_PREFIXES = ("penstock_", "vllm:", "sglang:", "llamacpp:")
_LINES = re.compile(rf"^(?:{'|'.join(map(re.escape, sorted({*_NAMES, _START})))})[{{ \t][^\n]*\n?", re.MULTILINE)


def parse(url: str, text: str) -> Reading:
    """The known counters of a page in Prometheus' text format. Raises `Unreadable` where it is none, or has none.

    Only lines that are of use are parsed: a large server has tens of thousands.
    """
    samples: dict[tuple[str, Labels], float] = defaultdict(float)
    started = None
    try:
        for family in text_string_to_metric_families("".join(_LINES.findall(text))):
            for sample in family.samples:
                if sample.name == _START:
                    started = sample.value
                elif math.isfinite(sample.value):
                    samples[sample.name, tuple(sorted(sample.labels.items()))] += sample.value
    except (ValueError, KeyError, IndexError) as error:
        raise Unreadable(
            f"{url} does not answer in Prometheus' text format ({error}); give a server's /metrics"
        ) from None
    names = frozenset(name for name in _NAMES if name in text)
    if not names and not any(prefix in text for prefix in _PREFIXES):  # a server may announce what it has counted only
        raise Unreadable(
            f"{url} has no counter that is known here (Penstock's, vLLM's, SGLang's or llama.cpp's); give such a "
            f"server's /metrics, like {_EXAMPLE}, and switch it on there (--metrics, --enable-metrics)"
        )
    return Reading(url, dict(samples), names, started)


async def fetch(urls: Sequence[str]) -> list[Reading]:
    """One reading of each address, all at once. Raises `Unreadable`, which names the address, where one fails."""
    async with httpx.AsyncClient(timeout=TIMEOUT_SECONDS, trust_env=False) as client:
        readings = await asyncio.gather(*(_fetch_one(client, _address(url)) for url in urls), return_exceptions=True)
    for reading in readings:
        if isinstance(reading, BaseException):
            raise reading
    return [reading for reading in readings if isinstance(reading, Reading)]


async def fetch_settled(
    urls: Sequence[str], sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> list[Reading]:
    """Readings as they are once they no longer change, or after some seconds: calls that a client just left end later
    at the server.
    """
    readings = await fetch(urls)
    latest = time.monotonic() + MOST_SECONDS
    for _ in range(MOST_READINGS):
        if time.monotonic() > latest:  # a server that takes long to answer is not asked twenty times
            break
        await sleep(SETTLE_SECONDS)
        before, readings = readings, await fetch(urls)
        if [reading.samples for reading in before] == [reading.samples for reading in readings]:
            break
    return readings


def compare_counts(before: Sequence[Reading], after: Sequence[Reading], phases: Iterable[PhaseResults]) -> Counted:
    """Each known counter's growth over the run beside what we counted in all its phases, warm-up included.

    By tenant where the server's label `tenant` has names of ours, else for all together. `client` is `None` where we
    have no counterpart: other tenants' calls, retries behind the gateway. What both sides have none of is left out.
    """
    everybody, tenants = Own(), defaultdict[str, Own](Own)
    for phase in phases:
        everybody.add(phase.all)
        for results in phase.tenants:
            tenants[results.name].add(results)
    notes: list[str] = []
    grown: dict[tuple[str, Labels], float] = defaultdict(float)
    sources: dict[str, list[str]] = defaultdict(list)
    earlier = {reading.url: reading for reading in before}
    for reading in after:
        growth, note = _growth(earlier.get(reading.url), reading)
        notes += [note] if note else []
        for name in sorted(reading.names):
            sources[name].append(reading.url)
        for key, value in growth.items():
            grown[key] += value
    counts = [
        count
        for known in _KNOWN
        if known.name in sources
        for count in _counts(known, grown, tenants, everybody, ", ".join(sources[known.name]))
    ]
    if everybody.unreported and counts:
        notes.append(
            f"{everybody.unreported:,} calls were left on purpose or failed, and brought no usage: a server may have "
            "counted their prompts, and tokens that nobody read any more"
        )
    return Counted(counts, notes)


def _growth(before: Reading | None, after: Reading) -> tuple[Samples, str]:
    """How much each counter of one address grew, and a word where that is not the whole truth."""
    if before is None:
        return {}, f"{after.url} was not read before the run: its counts are left out"
    has_restarted = after.started is not None and before.started is not None and after.started != before.started
    if has_restarted or any(after.samples.get(key, -1.0) < value for key, value in before.samples.items()):
        return after.samples, (
            f"{after.url} counts from zero again, so its server was restarted during the run: "
            "what it had counted up to then is missing"
        )
    return {key: value - before.samples.get(key, 0.0) for key, value in after.samples.items()}, ""


def _counts(
    known: _Known,
    grown: Samples,
    tenants: Mapping[str, Own],
    everybody: Own,
    source: str,
) -> Iterable[Count]:
    """The rows of one counter, tenant by tenant where the server's tenants are ours."""
    theirs: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for (name, labels), value in grown.items():
        if name == known.name:
            by_name = dict(labels)
            told_apart = known.fold(by_name.get(known.label, "")) if known.label else ""
            theirs[by_name.get("tenant", "")][told_apart] += value
    if not theirs.keys() & tenants.keys():
        together: dict[str, float] = defaultdict(float)
        for values in theirs.values():
            for told_apart, value in values.items():
                together[told_apart] += value
        yield from _rows(known, {}, together, everybody, source)
        return
    for tenant in [*tenants, *sorted(theirs.keys() - tenants.keys())]:
        yield from _rows(known, {"tenant": tenant}, theirs.get(tenant, {}), tenants.get(tenant), source)


def _rows(
    known: _Known, labels: dict[str, str], theirs: Mapping[str, float], own: Own | None, source: str
) -> Iterable[Count]:
    """The rows of one counter and tenant; `own` is `None` for a tenant that is none of ours."""
    for value in sorted({*theirs, *(known.expected(own) if own else ())}):
        server = theirs.get(value, 0.0)
        client = known.ours(own, value) if own else None
        if server or client:
            told_apart = {known.label: value} if known.label else {}
            yield Count(name=known.name, labels={**labels, **told_apart}, server=server, client=client, source=source)


def _address(url: str) -> str:
    """An address with its path: a server's alone means its /metrics."""
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    if "@" in parts.netloc:  # said without the URL: it holds a password
        raise Unreadable("the URL of metrics may hold no user and password; write it without")
    if parts.scheme not in {"http", "https"} or not parts.netloc:
        raise Unreadable(f"{url!r} is not a URL of a server's metrics; write {_EXAMPLE}")
    return parts._replace(path="/metrics").geturl() if parts.path in {"", "/"} else url


async def _fetch_one(client: httpx.AsyncClient, address: str) -> Reading:
    body = bytearray()
    url = address.partition("?")[0]  # what is asked for may hold a token, which no report shall show
    try:
        async with asyncio.timeout(MOST_SECONDS):
            async with client.stream("GET", address, headers={"accept": "text/plain"}) as answer:
                if answer.status_code != 200:
                    raise Unreadable(f"{url} answers {answer.status_code}; give the address of a server's /metrics")
                async for part in answer.aiter_bytes():
                    body += part
                    if len(body) > MOST_BYTES:
                        raise Unreadable(
                            f"{url} answers more than {MOST_BYTES // 2**20} MiB; is it a server's /metrics?"
                        )
    except TimeoutError:
        raise Unreadable(f"{url} took longer than {MOST_SECONDS:.0f} s to answer") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        why = str(error) or type(error).__name__
        raise Unreadable(f"{url} cannot be read ({why}); is the server up, and its /metrics there?") from None
    return parse(url, body.decode("utf-8", "replace"))
