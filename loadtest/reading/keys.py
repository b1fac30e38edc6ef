"""Every key of a scenario, once: its kind, its default as it would be written, and what it is for.

Reading a file, reading options (which are put under the same keys) and the tables of `docs/loadtest.md` follow from
these classes; a key is added here and nowhere else. What keys say about each other is `contradictions`' affair, and
the facts that follow from them are made in `scenario_file`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from loadtest.reading import written
from loadtest.scenario import ArrivalKind, Endpoint, Span, Usage

MOST_REQUESTS = 1_000_000_000
MOST_STREAMS = 1_000_000
MOST_USERS = 1_000_000

_TOKENS = written.span(written.count(1, written.MOST_TOKENS), "512, or [64, 2048] to draw evenly between them")
_TIMES = written.span(written.duration(above_zero=False), "1s, or [1s, 5s] to draw evenly between them")


def _required(meaning: str) -> Any:
    return Field(description=meaning)


def _optional(meaning: str) -> Any:
    return Field(default=None, description=meaning)


def _default(value: object, meaning: str) -> Any:
    """A key with a default, given as it would be written."""
    return Field(default=value, description=meaning, validate_default=True)


class Keys(BaseModel):
    """A mapping of the scenario: these keys and no others."""

    model_config = ConfigDict(alias_generator=to_camel, extra="forbid", frozen=True, strict=True)


class TargetKeys(Keys):
    """What is called."""

    url: Annotated[tuple[str, ...], written.base_urls()] = _required(
        "The base URL as SDKs take it, `http://HOST:PORT/v1`; one without a path gets `/v1`. A list names several "
        "servers of one service, which are called in turn."
    )
    model: Annotated[str, written.text("model")] = _required("The model that is asked for.")
    endpoint: Annotated[Endpoint, written.choice("chat", "completions")] = _default(
        "chat", "`/chat/completions` with one message of the user, or `/completions` with a prompt."
    )
    timeout: Annotated[float, written.duration()] = _default(
        "2m", "How long a call may take from its sending; then it is left and counts as failed."
    )
    usage: Annotated[Usage, written.choice("bounded", "exact", "off")] = _default(
        "bounded",
        "How a reported usage is held against what arrived. `bounded`: no fewer tokens than events with text, no more "
        "than asked for. `exact`: one event a token. `off`: none is asked for; tokens are counted by events.",
    )
    stream: Annotated[bool, written.boolean()] = _default(
        "true", "Whether answers are streamed. `false`: whole answers; their first token comes with the last."
    )
    body: Annotated[dict[str, Any], written.body()] = _default(
        {}, "Further top-level keys of each request's body, such as `{temperature: 0, ignore_eos: true}`."
    )


class ObjectivesKeys(Keys):
    """What a good call keeps. Goodput is the calls a second that were done and kept all that are given."""

    ttft: Annotated[float | None, written.duration()] = _optional(
        "From the scheduled arrival to the first event with text, reasoning or a tool call."
    )
    itl: Annotated[float | None, written.duration()] = _optional("The mean gap between the call's events.")
    tpot: Annotated[float | None, written.duration()] = _optional("(E2E − TTFT) / (output tokens − 1).")
    e2e: Annotated[float | None, written.duration()] = Field(
        default=None, alias="e2e", description="From the scheduled arrival to the answer's end."
    )


class BoundsKeys(Keys):
    """Where the run ends, whatever else."""

    duration: Annotated[float | None, written.duration()] = _optional(
        "Seconds of load in all. Left out: the warm-up and all phases, or all steps of a sweep; `10m` where only the "
        "trace tells when a phase ends."
    )
    requests: Annotated[int | None, written.count(1, MOST_REQUESTS)] = _optional(
        "Calls in all. Left out: `100k`, or a tenth more than the rates ask for where that is more."
    )
    open_streams: Annotated[int | None, written.count(1, MOST_STREAMS)] = _optional(
        "Calls open at once; those beyond wait in the client, and their latencies go on. Left out: what descriptors "
        "and local ports allow, up to 10,000."
    )


class PhaseKeys(Keys):
    """A stretch of the run. Phases come in the order in which they stand; in each the trace begins anew."""

    name: Annotated[str, written.name()] = _required("What the report calls it.")
    duration: Annotated[float | None, written.duration()] = _optional(
        "How long it lasts. Left out: until the trace ends."
    )
    tenants: Annotated[tuple[str, ...] | None, written.names()] = _optional(
        "Who calls in it; left out, everybody. A tenant's calls are the same in each phase."
    )
    scale: Annotated[tuple[float, float], written.scale()] = _default(
        "1", "Multiplies rates and users; two numbers go evenly from the first to the second: a ramp."
    )


class ArrivalsKeys(Keys):
    """When a tenant's calls come."""

    kind: Annotated[ArrivalKind, written.choice("constant", "poisson", "gamma", "closed")] = _required(
        "Open loop, whatever became of the calls before: `constant` gaps, `poisson`, `gamma`. Closed loop: `closed`, "
        "users who each wait for their answer before they call again."
    )
    rate: Annotated[float | None, written.number(at_most=written.MOST_RATE)] = _optional(
        "Open loop, required: calls a second."
    )
    burstiness: Annotated[float | None, written.number(at_most=1e6)] = _optional(
        "`gamma` alone: its shape. 1 is Poisson, below 1 burstier, above 1 more even. Left out: 1."
    )
    users: Annotated[int | None, written.count(1, MOST_USERS)] = _optional("Closed loop, required: how many there are.")
    think_time: Annotated[Span | None, _TIMES] = _optional(
        "Closed loop: the pause between an answer's end and the user's next call. Left out: none."
    )


class InputKeys(Keys):
    """How long prompts are."""

    tokens: Annotated[Span, _TOKENS] = _required(
        "Words of one token each in common vocabularies; what the server counts is reported beside it."
    )


class OutputKeys(Keys):
    """How long answers may be."""

    tokens: Annotated[Span, _TOKENS] = _required("The call's `max_tokens`.")


class CancelKeys(Keys):
    """Calls that the client leaves before they end."""

    share: Annotated[float, written.share(above_zero=True)] = _required("Of the tenant's calls.")
    after_tokens: Annotated[Span, _TOKENS] = _default([1, 32], "After how many events with text they are left.")


class TenantKeys(Keys):
    """One tenant's mix."""

    name: Annotated[str, written.name()] = _required("What the report calls it; a trace's client of that name is it.")
    key: Annotated[str | None, written.key()] = _optional(
        'Its API key, best as `"${NAME}"` from the environment. Left out: calls carry none.'
    )
    model: Annotated[str | None, written.text("model")] = _optional("Left out: the target's.")
    arrivals: Annotated[ArrivalsKeys | None, written.section()] = _optional(
        "When its calls come. May be left out for whom the trace has calls."
    )
    input: Annotated[InputKeys | None, written.section()] = _optional(
        "Left out: 128 tokens. Calls of the trace have their own."
    )
    output: Annotated[OutputKeys | None, written.section()] = _optional(
        "Left out: 64 tokens. Calls of the trace have their own."
    )
    cancel: Annotated[CancelKeys | None, written.section()] = _optional("Left out: no call is left on purpose.")
    shared_prefix: Annotated[float, written.share()] = _default(
        "0%",
        "The part of each prompt that all the tenant's prompts begin with. At `0%` each begins with a nonce, and no "
        "cache of prefixes can answer for it.",
    )


class ColumnsKeys(Keys):
    """The names of the trace's columns."""

    time: Annotated[str, written.text("column")] = _required(
        "A date with a time, or a number of seconds; of milliseconds where its name ends in `_ms`."
    )
    input: Annotated[str, written.text("column")] = _required("Prompt tokens.")
    output: Annotated[str, written.text("column")] = _required("Completion tokens.")
    client: Annotated[str | None, written.text("column", may_be_null=True)] = _optional(
        "Whose call it was; left out or `null`, nobody's."
    )


class TraceKeys(Keys):
    """Calls as they once came, from a CSV file with a header."""

    file: Annotated[str, written.text("file")] = _required("Its path, relative to this file.")
    speed: Annotated[float, written.number(at_most=1e6)] = _default("1", "20: an hour's calls in three minutes.")
    columns: Annotated[ColumnsKeys | None, written.section()] = _optional(
        "Left out: told by the header, which is known for Azure's LLM traces, BurstGPT, and plain names such as "
        "`time, client, input_tokens, output_tokens`."
    )
    client: Annotated[str | None, written.text("column", may_be_null=True)] = _optional(
        "The client column; the same as `columns.client`, and needs `columns`."
    )
    split: Annotated[dict[str, float] | None, written.weights()] = _optional(
        "Who gets how much of the clients, or of the rows where there is no client column: tenants and weights. A "
        "client with a tenant's name is that tenant; weight 0 means such clients alone. Left out: the tenants without "
        "`arrivals`, evenly."
    )
    clip: Annotated[int | None, written.count(2, written.MOST_TOKENS)] = _optional(
        "The context: calls of more tokens, in and out, have their input cut, and are counted."
    )
    skip: Annotated[int | None, written.count(2, written.MOST_TOKENS)] = _optional(
        "The context: calls of more tokens are left out, and counted. Not together with `clip`."
    )


class SweepKeys(Keys):
    """Rising loads until the target no longer keeps up, in place of phases."""

    of: Annotated[Literal["rate", "users"], written.choice("rate", "users")] = _required(
        "What rises: calls a second of all tenants together, in the proportion of their own rates; or users."
    )
    from_: Annotated[float, written.number(at_most=written.MOST_RATE)] = Field(
        alias="from", description="The first load."
    )
    to: Annotated[float, written.number(at_most=written.MOST_RATE)] = _required("The greatest load that is tried.")
    factor: Annotated[float, written.number(at_most=100, above=1)] = _default("1.5", "From one load to the next.")
    step_duration: Annotated[float, written.duration()] = _default("20s", "How long each load lasts.")
    within: Annotated[float, written.share(above_zero=True)] = _default(
        "5%", "How near the loads that just hold and just do not must come; the bracket is halved until then."
    )


class ScenarioKeys(Keys):
    """A scenario: what is called, by whom, how, and for how long."""

    target: TargetKeys = _required("What is called.")
    tenants: list[TenantKeys] = Field(min_length=1, description="Who calls.")
    seed: Annotated[int, written.count(0, 2**53)] = _default(
        "0", "The same seed draws the same arrivals, sizes and prompts' words."
    )
    warmup: Annotated[float, written.duration(above_zero=False)] = _default(
        "0s", "How long the first phase's load runs before anything counts."
    )
    objectives: ObjectivesKeys = _default({}, "What a good call keeps.")
    bounds: BoundsKeys = _default({}, "Where the run ends, whatever else.")
    phases: Annotated[list[PhaseKeys] | None, written.section()] = Field(
        default=None,
        min_length=1,
        description="Left out: one, of everybody, as long as `bounds.duration` leaves, or as the trace.",
    )
    trace: Annotated[TraceKeys | None, written.section()] = _optional("Calls as they once came.")
    sweep: Annotated[SweepKeys | None, written.section()] = _optional(
        "A search for the load at which the target saturates."
    )
