"""Scenarios as people write them: what they mean, and each way in which they can be wrong."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loadtest.reading.faults import Fault
from loadtest.reading.scenario_file import ScenarioError, read_scenario
from loadtest.scenario import (
    Arrivals,
    Bounds,
    Cancel,
    Columns,
    Objectives,
    Phase,
    Scenario,
    Span,
    Sweep,
    Target,
    Tenant,
    Trace,
)

KEYS = {"VICTIM_KEY": "sk-victim-1234", "CROWD_KEY": "sk-crowd-5678"}

FULL = """\
target: {url: "http://127.0.0.1:8080/v1", model: tiny, endpoint: chat, timeout: 2m}
seed: 7
warmup: 5s
objectives: {ttft: 500ms, itl: 50ms, e2e: 30s}
bounds: {duration: 10m, requests: 100k, openStreams: 6000}
phases:                                  # left out: one, everybody
  - {name: alone, duration: 60s, tenants: [victim]}
  - {name: crowded, duration: 60s}
  - {name: after, duration: 60s, tenants: [victim]}
tenants:
  - {name: victim, key: "${VICTIM_KEY}", arrivals: {kind: poisson, rate: 10}, input: {tokens: 512}, output: {tokens: 128}}
  - {name: crowd, key: "${CROWD_KEY}", arrivals: {kind: closed, users: 100, thinkTime: 0s}, input: {tokens: [64, 2048]},
     output: {tokens: 64}, cancel: {share: 10%, afterTokens: [1, 32]}}
trace: {file: conv.csv, speed: 20, columns: {time: TIMESTAMP, input: ContextTokens, output: GeneratedTokens},
        client: null, split: {victim: 1, crowd: 3}, clip: 2048}
"""  # noqa: E501 - as people write it

TARGET = "target: {url: http://127.0.0.1/v1, model: m}\n"
OPEN = "tenants: [{name: a, arrivals: {kind: poisson, rate: 10}}]\n"
CLOSED = "tenants: [{name: a, arrivals: {kind: closed, users: 10}}]\n"
PHASE = "phases: [{name: main, duration: 60s}]\n"
SMALL = TARGET + OPEN + PHASE
TRACED = TARGET + "tenants: [{name: a}]\ntrace: {file: t.csv}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("conv.csv", "t.csv"):
        (tmp_path / name).touch()
    return tmp_path


def read(text: str, folder: Path, env: dict[str, str] | None = None) -> Scenario:
    return read_scenario(text, KEYS if env is None else env, source="s.yaml", folder=folder)


def faults_of(text: str, folder: Path, env: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ScenarioError) as caught:
        read(text, folder, env)
    assert str(caught.value).splitlines() == [str(fault) for fault in caught.value.faults]
    return [str(fault) for fault in caught.value.faults]


# ---- what a file means ---------------------------------------------------------------------------------------------


def test_a_full_file_says_what_it_says(folder: Path) -> None:
    assert read(FULL, folder) == Scenario(
        target=Target(url="http://127.0.0.1:8080/v1", model="tiny", endpoint="chat", timeout_seconds=120.0),
        tenants=(
            Tenant("victim", "sk-victim-1234", Arrivals("poisson", rate=10.0), Span(512, 512), Span(128, 128)),
            Tenant(
                "crowd",
                "sk-crowd-5678",
                Arrivals("closed", users=100, think=Span(0.0, 0.0)),
                Span(64, 2048),
                Span(64, 64),
                Cancel(0.1, Span(1, 32)),
            ),
        ),
        phases=(
            Phase("alone", 60.0, ("victim",)),
            Phase("crowded", 60.0, ("victim", "crowd")),
            Phase("after", 60.0, ("victim",)),
        ),
        seed=7,
        warmup_seconds=5.0,
        objectives=Objectives(ttft=0.5, itl=0.05, e2e=30.0),
        bounds=Bounds(600.0, 100_000, 6000),
        trace=Trace(
            str(folder / "conv.csv"),
            {"victim": 1.0, "crowd": 3.0},
            20.0,
            Columns("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
            2048,
            "clip",
        ),
    )


def test_what_is_left_out_has_the_defaults_of_the_facts(folder: Path) -> None:
    scenario = read(SMALL, folder)
    assert scenario.target == Target("http://127.0.0.1/v1", "m")
    assert scenario.tenants == (Tenant("a", arrivals=Arrivals("poisson", rate=10.0)),)
    assert scenario.phases == (Phase("main", 60.0, ("a",)),)
    assert (scenario.seed, scenario.warmup_seconds, scenario.objectives) == (0, 0.0, Objectives())
    assert (scenario.trace, scenario.sweep) == (None, None)


def test_every_key_of_the_target_and_of_a_tenant_arrives(folder: Path) -> None:
    text = """\
target: {url: "https://[::1]:8443/base/", model: m, endpoint: completions, timeout: 30, usage: off, stream: true,
         body: {temperature: 0, stop: [x], options: {a: null}}}
tenants:
  - {name: a, model: other, sharedPrefix: 80%, arrivals: {kind: gamma, rate: 2.5, burstiness: 0.5}}
  - {name: b, arrivals: {kind: closed, users: 3, thinkTime: [1s, 5s]}, cancel: {share: 0.25}}
  - {name: c, arrivals: {kind: constant, rate: "4"}}
phases: [{name: ramp, duration: 1m, scale: [0, 2]}, {name: flat, duration: 60, scale: 2}]
"""
    scenario = read(text, folder)
    body = {"temperature": 0, "stop": ["x"], "options": {"a": None}}
    assert scenario.target == Target("https://[::1]:8443/base", "m", "completions", 30.0, "off", True, body)
    assert scenario.tenants == (
        Tenant("a", arrivals=Arrivals("gamma", 2.5, 0.5), shared_prefix=0.8, model="other"),
        Tenant("b", arrivals=Arrivals("closed", users=3, think=Span(1.0, 5.0)), cancel=Cancel(0.25, Span(1, 32))),
        Tenant("c", arrivals=Arrivals("constant", 4.0)),
    )
    assert [phase.scale for phase in scenario.phases] == [(0.0, 2.0), (2.0, 2.0)]


def test_a_sweep_says_what_it_says(folder: Path) -> None:
    sweep = "sweep: {of: rate, from: 10, to: 80, factor: 2, stepDuration: 30s, within: 10%}"
    assert read(TARGET + OPEN + sweep, folder).sweep == Sweep("rate", 10.0, 80.0, 2.0, 30.0, 0.1)
    assert read(TARGET + CLOSED + "sweep: {of: users, from: 1, to: 8}", folder).sweep == Sweep("users", 1.0, 8.0)


@pytest.mark.parametrize(
    ("written", "url"),
    [
        ("http://a", "http://a/v1"),
        ("http://a/", "http://a/v1"),
        ("http://a:8000/v1/", "http://a:8000/v1"),
        ("http://a/openai", "http://a/openai"),
    ],
)
def test_a_url_without_a_path_gets_v1_and_any_other_stays(written: str, url: str, folder: Path) -> None:
    assert read(SMALL.replace("http://127.0.0.1/v1", written), folder).target.urls == (url,)


def test_several_urls_are_one_service(folder: Path) -> None:
    text = SMALL.replace("http://127.0.0.1/v1", "[http://a, http://b/v1]")
    assert read(text, folder).target.urls == ("http://a/v1", "http://b/v1")


def test_a_trace_gives_calls_to_whom_has_none_where_no_split_says_otherwise(folder: Path) -> None:
    tenants = "tenants: [{name: a}, {name: b, arrivals: {kind: poisson, rate: 1}}, {name: c}]\n"
    scenario = read(TARGET + tenants + "trace: {file: t.csv, skip: 100}", folder)
    assert scenario.trace == Trace(str(folder / "t.csv"), {"a": 1.0, "c": 1.0}, context=100, over="skip")
    assert scenario.phases == (Phase("main", None, ("a", "b", "c")),)


@pytest.mark.parametrize("place", ["columns: {time: t, input: i, output: o, client: c}", "client: c"])
def test_a_client_column_may_stand_in_either_place(place: str, folder: Path) -> None:
    columns = "" if "columns" in place else "columns: {time: t, input: i, output: o}, "
    trace = read(TRACED.replace("t.csv}", f"t.csv, {columns}{place}}}"), folder).trace
    assert trace is not None and trace.columns == Columns("t", "i", "o", "c")


def test_a_weight_of_zero_is_a_share(folder: Path) -> None:
    tenants = "tenants: [{name: a}, {name: b}]\ntrace: {file: t.csv, split: {a: 0, b: 2}}"
    trace = read(TARGET + tenants, folder).trace
    assert trace is not None and trace.split == {"a": 0.0, "b": 2.0}


def test_an_absolute_trace_is_taken_as_it_is(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "x.csv"
    elsewhere.touch()
    trace = read(TRACED.replace("t.csv", str(elsewhere)), folder).trace
    assert trace is not None and trace.file == str(elsewhere)


@pytest.mark.parametrize(
    ("more", "seconds"),
    [
        ("", 60.0),
        ("warmup: 5s\n", 65.0),
        ("bounds: {duration: 5m}\n", 300.0),
    ],
)
def test_a_run_is_bounded_by_what_it_asks_for(more: str, seconds: float, folder: Path) -> None:
    assert read(SMALL + more, folder).bounds.seconds == seconds


def test_a_run_that_only_its_trace_ends_is_bounded_by_ten_minutes(folder: Path) -> None:
    assert read(TRACED, folder).bounds == Bounds(600.0, 100_000, None)


def test_without_phases_everybody_calls_as_long_as_the_bounds_leave(folder: Path) -> None:
    scenario = read(TARGET + OPEN + "warmup: 10s\nbounds: {duration: 1m}\n", folder)
    assert scenario.phases == (Phase("main", 50.0, ("a",)),)
    assert scenario.bounds.seconds == 60.0


def test_calls_are_bounded_by_what_rates_ask_for_where_that_is_more_than_100k(folder: Path) -> None:
    fast = SMALL.replace("rate: 10", "rate: 10k")
    with pytest.raises(ScenarioError):  # a rate is a number, not a count
        read(fast, folder)
    scaled = "phases: [{name: main, duration: 60s, scale: [0, 4]}]\n"
    fast = TARGET + OPEN.replace("10", "1000") + scaled
    assert read(fast, folder).bounds.requests == 132_000  # a tenth more than 1000 × 2 × 60
    assert read(fast + "bounds: {requests: 5}", folder).bounds.requests == 5
    assert read(SMALL, folder).bounds.requests == 100_000


def test_a_sweep_is_bounded_by_all_its_steps(folder: Path) -> None:
    scenario = read(TARGET + OPEN + "warmup: 10s\nsweep: {of: rate, from: 100, to: 1600, factor: 2}", folder)
    # 100, 200, 400, 800; then 1600, and halving 2 to 1.05 takes five more, and one
    assert scenario.bounds.seconds == 10 + (4 + 7) * 20
    assert scenario.bounds.requests == pytest.approx(1.1 * 20 * (1500 + 7 * 1600), abs=1)
    assert scenario.phases == (Phase("main", 20.0, ("a",)),)
    assert read(TARGET + CLOSED + "sweep: {of: users, from: 1, to: 8, factor: 2}", folder).bounds.requests == 1_000_000


def test_variables_come_from_the_environment_and_are_never_structure(folder: Path) -> None:
    text = SMALL.replace("model: m", 'model: "${MODEL}"').replace("rate: 10", 'rate: "${RATE}"')
    scenario = read(text, folder, {"MODEL": "{a: [b]}", "RATE": "2.5"})
    assert scenario.target.model == "{a: [b]}"
    assert scenario.tenants[0].arrivals == Arrivals("poisson", 2.5)
    assert read(SMALL.replace("model: m", 'model: "$${X}"'), folder).target.model == "${X}"


def test_a_key_loses_the_line_end_that_files_of_keys_have(folder: Path) -> None:
    text = SMALL.replace("{name: a,", '{name: a, key: "${K}",')
    assert read(text, folder, {"K": "sk-1\n"}).tenants[0].key == "sk-1"


def test_a_key_is_in_no_repr(folder: Path) -> None:
    assert "sk-" not in repr(read(FULL, folder))


def test_settings_can_be_shared_by_merging(folder: Path) -> None:
    text = """\
tenants:
  - &a {name: a, arrivals: {kind: poisson, rate: 10}, input: {tokens: 9}}
  - {<<: *a, name: b}
"""
    tenants = read(TARGET + text + PHASE, folder).tenants
    assert [(tenant.name, tenant.input) for tenant in tenants] == [("a", Span(9, 9)), ("b", Span(9, 9))]


# ---- what is wrong with one value ----------------------------------------------------------------------------------

RANGES = [
    ("rate: 10", "rate: -1", "tenants[0].arrivals.rate: must be more than 0, not -1"),
    ("rate: 10", "rate: 0", "tenants[0].arrivals.rate: must be more than 0, not 0"),
    ("rate: 10", "rate: .inf", "tenants[0].arrivals.rate: inf is not a number; write a number, more than 0"),
    ("rate: 10", "rate: 2000000", "tenants[0].arrivals.rate: must be at most 1,000,000, not 2000000"),
    ("rate: 10", "rate: fast", "tenants[0].arrivals.rate: 'fast' is not a number; write a number, more than 0"),
    ("rate: 10", "rate: yes", "tenants[0].arrivals.rate: true is not a number"),
    ("rate: 10", "rate: [1, 2]", "tenants[0].arrivals.rate: a list is not a number"),
    ("rate: 10", "rate: ", "tenants[0].arrivals.rate: has no value; give it one, or leave the key out"),
    ("poisson", "poison", "arrivals.kind: 'poison' is none of constant, poisson, gamma, closed; did you mean 'poisson"),
    ("kind: poisson", "kind: gamma, burstiness: 0", "arrivals.burstiness: must be more than 0, not 0"),
    ("duration: 60s", "duration: 0s", "phases[0].duration: must be more than nothing; write 10s, 5m, 1h30m or 250ms"),
    ("duration: 60s", "duration: 60sec", "phases[0].duration: '60sec' is not a duration; write 10s"),
    ("duration: 60s", "duration: -3", "phases[0].duration: -3 is not a duration; write 10s"),
    ("duration: 60s", "duration: true", "phases[0].duration: true is not a duration; write 10s"),
    ("duration: 60s", "duration: 60s, scale: -1", "phases[0].scale: must be at least 0, not -1"),
    ("duration: 60s", "duration: 60s, scale: 0", "phases[0].scale: leaves no load at all; write 2, or [0.5, 2]"),
    ("duration: 60s", "duration: 60s, scale: [1, 2, 3]", "phases[0].scale: must be one number or two, not 3"),
    ("duration: 60s", "duration: 60s, tenants: a", "phases[0].tenants: must be a list of names, not 'a'"),
    ("duration: 60s", "duration: 60s, tenants: []", "phases[0].tenants: is an empty list; give it a name"),
    ("duration: 60s", "duration: 60s, tenants: [a, a]", "phases[0].tenants: has a twice; leave it once"),
    ("name: main", "name: 7", 'phases[0].name: must be a name, but YAML reads 7 as a number; write it in quotes: "7"'),
    ("name: main", "name: a b", "phases[0].name: 'a b' is not a name; write letters, digits"),
    ("name: a,", "name: 2024-01-01,", "tenants[0].name: must be a name, but YAML reads 2024-01-01 as a date"),
    ("name: a,", "name: '',", "tenants[0].name: is empty; write a name, or leave the key out"),
    ("model: m", "model: [m]", "target.model: must be a model, not a list"),
    ("model: m", 'model: "m\\n"', "target.model: has line ends or control characters in it"),
    ("model: m", "model: m, timeout: 0", "target.timeout: must be more than nothing"),
    ("model: m", "model: m, usage: on", "target.usage: true is none of bounded, exact, off; known: bounded"),
    ("model: m", "model: m, stream: maybe", "target.stream: 'maybe' is neither true nor false; write true or false"),
    ("model: m", "model: m, endpoint: chats", "target.endpoint: 'chats' is none of chat, completions; did you mean 'c"),
    ("model: m", "model: m, body: [1]", "target.body: must be a mapping, not a list; write {temperature: 0}"),
    ("model: m", "model: m, body: {a: [.nan]}", "target.body: 'a[0]' is a number, which JSON has not"),
    ("model: m", "model: m, body: {a: {b: 2024-01-01}}", "target.body: 'a.b' is a date, which JSON has not"),
    ("http://127.0.0.1/v1", "127.0.0.1:80", 'target.url: does not begin with http:// or https://; write "http://127'),
    ("http://127.0.0.1/v1", "http://u:secret@h", "target.url: has credentials in it; give the key as the tenant's `ke"),
    ("http://127.0.0.1/v1", '"http://h/v1?key=secret"', "target.url: has a `?` or a `#` in it; write"),
    ("http://127.0.0.1/v1", "http://h:99999", "target.url: is not a URL: its host or port cannot be read"),
    ("http://127.0.0.1/v1", "http://", "target.url: is not a URL: its host or port cannot be read"),
    ("http://127.0.0.1/v1", "http://h/v1/chat/completions", "target.url: ends in an endpoint, which is added to it"),
    ("http://127.0.0.1/v1", "17", "target.url: 17 is not a URL"),
    ("http://127.0.0.1/v1", "[]", "target.url: is an empty list"),
    ("http://127.0.0.1/v1", "[http://h, http://h/v1]", "target.url: names the same URL twice; leave it once"),
    ("rate: 10}", "rate: 10}, key: 17", "tenants[0].key: must be text; write it in quotes"),
    ("rate: 10}", "rate: 10}, key: a b", "tenants[0].key: has blanks or characters in it that no header can carry"),
    ("rate: 10}", "rate: 10}, key: ' '", "tenants[0].key: is empty; leave it out where no key is needed"),
    ("rate: 10}", "rate: 10}, input: {tokens: 0}", "tenants[0].input.tokens: must be from 1 to 10,000,000, not 0"),
    ("rate: 10}", "rate: 10}, input: {tokens: 1.5}", "tenants[0].input.tokens: 1.5 is not a whole number"),
    ("rate: 10}", "rate: 10}, input: {tokens: [9, 1]}", "input.tokens: begins above its end: 9 is more than 1; write"),
    ("rate: 10}", "rate: 10}, input: {tokens: [9]}", "input.tokens: must be one count or two, not 1; write 512, or [6"),
    ("rate: 10}", "rate: 10}, input: 512", "input: must be a mapping of keys, not a number; known: tokens"),
    ("rate: 10}", "rate: 10}, input: ", "tenants[0].input: has no value; give it one, or leave the key out"),
    ("rate: 10}", "rate: 10}, cancel: {share: 101%}", "cancel.share: '101%' is not between 0% and 100%; write 20% or"),
    ("rate: 10}", "rate: 10}, cancel: {share: 10}", "cancel.share: 10 is more than the whole; write 10% or 0.1"),
    ("rate: 10}", "rate: 10}, cancel: {share: 0}", "cancel.share: must be more than nothing"),
    ("rate: 10}", "rate: 10}, cancel: {}", "cancel.share: is missing; add it: of the tenant's calls"),
    ("rate: 10}", "rate: 10}, sharedPrefix: much", "sharedPrefix: 'much' is not a share; write 20% or 0.2"),
    ("target:", "seed: -1\ntarget:", "seed: must be from 0 to 9,007,199,254,740,992, not -1"),
    ("target:", "seed: 1.5\ntarget:", "seed: 1.5 is not a whole number; write a whole number from 0"),
    ("target:", "warmup: soon\ntarget:", "warmup: 'soon' is not a duration"),
    ("target:", "objectives: {ttft: 0}\ntarget:", "objectives.ttft: must be more than nothing"),
    ("target:", "objectives: \ntarget:", "objectives: has no value; give it one, or leave the key out"),
    ("target:", "bounds: {requests: 0}\ntarget:", "bounds.requests: must be from 1 to 1,000,000,000, not 0"),
    ("target:", "bounds: {openStreams: many}\ntarget:", "bounds.openStreams: 'many' is not a whole number"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "fault"), RANGES)
def test_a_wrong_value_is_refused_with_its_place_and_what_is_right(
    old: str, new: str, fault: str, folder: Path
) -> None:
    assert old in SMALL
    (found,) = faults_of(SMALL.replace(old, new, 1), folder)
    assert fault in found
    assert "secret" not in found


TRACE_RANGES = [
    ("file: t.csv", "file: ", "trace.file: has no value"),
    ("file: t.csv", "file: no.csv", "trace.file: there is no file '{folder}/no.csv'; write the path of a CSV file"),
    ("file: t.csv", "file: .", "trace.file: '{folder}/.' is a folder; write the path of a CSV file"),
    ("t.csv", "t.csv, speed: 0", "trace.speed: must be more than 0, not 0"),
    ("t.csv", "t.csv, clip: 1", "trace.clip: must be from 2 to 10,000,000, not 1"),
    ("t.csv", "t.csv, columns: ", "trace.columns: has no value"),
    ("t.csv", "t.csv, columns: {time: t, input: i}", "trace.columns.output: is missing; add it: completion tokens"),
    ("t.csv", "t.csv, columns: {time: t, input: i, output: 3}", "trace.columns.output: must be a column, but YAML rea"),
    ("t.csv", "t.csv, columns: {time: t, input: t, output: o}", "trace.columns.input: 't' is the column of time, too"),
    ("t.csv", "t.csv, client: c", "trace.client: names one column, and the others are to be told by the header; name"),
    ("t.csv", "t.csv, split: [a]", "trace.split: must be a mapping of tenants to weights, not a list; write {victim:"),
    ("t.csv", "t.csv, split: {a: -1}", "trace.split: the weight of 'a': must be at least 0, not -1"),
    ("t.csv", "t.csv, clip: 9, skip: 9", "trace.skip: a call that is too long is clipped or skipped, not both"),
    ("t.csv", "t.csv, split: {a: 1, b: 1}", "trace.split.b: no tenant is called 'b'; known: a"),
    ("{name: a}", "{name: a, input: {tokens: 5}}", "tenants[0].input: comes with the trace's calls, and there are no"),
    ("{name: a}", "{name: a}, {name: b}", None),
    ("{name: a}]", "{name: a}, {name: b, arrivals: {kind: constant, rate: 1}}]\nphases: [{name: p, tenants: [b]}]",
     "phases[0].duration: is missing; say how long it lasts; none of its tenants is in the trace"),
    ("{name: a}", "{name: a, arrivals: {kind: constant, rate: 1}}",
     "trace.split: is missing, and everybody has arrivals of their own; add split: {TENANT: 1}"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "fault"), TRACE_RANGES)
def test_a_wrong_trace_is_refused_with_its_place_and_what_is_right(
    old: str, new: str, fault: str | None, folder: Path
) -> None:
    text = TRACED.replace(old, new, 1)
    if fault is None:
        read(text, folder)
        return
    (found,) = faults_of(text, folder)
    assert fault.replace("{folder}", str(folder)) in found


# ---- keys ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("model: m", "model: m, timeeout: 3s", "target.timeeout: unknown key; did you mean 'timeout'?"),
        (
            "kind: poisson",
            "kind: poisson, think_time: 3s",
            "arrivals.think_time: unknown key; did you mean 'thinkTime'?",
        ),
        ("{name: a,", "{name: a, rate: 3,", "tenants[0].rate: unknown key; it belongs under 'arrivals'"),
        ("{name: a,", "{name: a, sweep: 3,", "tenants[0].sweep: unknown key; it belongs at the top"),
        ("target:", "duration: 3s\ntarget:", "duration: unknown key; it belongs under 'bounds'"),
        ("target:", "zzz: 3s\ntarget:", "zzz: unknown key; known: target, tenants, seed, warmup, objectives, bounds"),
        ("target:", "objectives: {e2E: 3s}\ntarget:", "objectives.e2E: unknown key; did you mean 'e2e'?"),
        ("model: m", "odel: m", "target.odel: unknown key; did you mean 'model'?"),
    ],
)
def test_an_unknown_key_is_told_the_nearest_known(old: str, new: str, fault: str, folder: Path) -> None:
    assert any(fault in found for found in faults_of(SMALL.replace(old, new, 1), folder))


def test_what_is_required_is_missed_by_its_place(folder: Path) -> None:
    assert faults_of("seed: 1\nbounds: {duration: 3s}", folder) == [
        "s.yaml:1: target: is missing; add it: what is called",
        "s.yaml:1: tenants: is missing; add it: who calls",
    ]
    found = faults_of(SMALL.replace(", model: m", "").replace("kind: poisson, ", ""), folder)
    assert [fault.split(";")[0] for fault in found] == [
        "s.yaml:1: target.model: is missing",
        "s.yaml:2: tenants[0].arrivals.kind: is missing",
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "s.yaml: is empty; begin with `target:`"),
        ("# nothing\n", "s.yaml: is empty; begin with `target:`"),
        ("[a]", "s.yaml: is not a mapping of keys; begin with `target:`"),
        ("just text", "s.yaml: is not a mapping of keys; begin with `target:`"),
        ("a: [", "s.yaml:1: is not YAML: while parsing a flow node, did not find expected node content"),
        ("a:\n\tb: 1", "s.yaml:2: is not YAML: "),
        ("a: {b: ${C}}", 's.yaml:1: is not YAML: while parsing a flow mapping, did not find expected \',\' or \'}\';'),
        ("a: *b", "s.yaml:1: is not YAML: found undefined alias"),
        ("target: {}\n---\ntarget: {}", "s.yaml:2: a second document begins here; leave one, without `---`"),
    ],
)  # fmt: skip
def test_a_text_that_is_no_scenario_is_told_so(text: str, fault: str, folder: Path) -> None:
    (found,) = faults_of(text, folder)
    assert found.startswith(fault)


@pytest.mark.parametrize("kind", ["tenants", "phases"])
def test_an_empty_list_and_no_list_are_refused(kind: str, folder: Path) -> None:
    for value, reason in (
        ("[]", "is an empty list"),
        ("{a: 1}", "must be a list, not a mapping"),
        ("", "has no value"),
    ):
        text = SMALL.replace(OPEN if kind == "tenants" else PHASE, f"{kind}: {value}\n")
        assert [fault.split(";")[0] for fault in faults_of(text, folder)] == [
            f"s.yaml:{2 if kind == 'tenants' else 3}: {kind}: {reason}"
        ]


# ---- what keys say about each other --------------------------------------------------------------------------------

CONTRADICTIONS = [
    (SMALL.replace("duration: 60s", "duration: 60s, tenants: [b]"),
     "s.yaml:3: phases[0].tenants[0]: no tenant is called 'b'; known: a"),
    (SMALL.replace("name: a,", "name: victim,").replace("60s", "60s, tenants: [victm]"),
     "s.yaml:3: phases[0].tenants[0]: no tenant is called 'victm'; did you mean 'victim'?"),
    (SMALL.replace("name: a,", "name: tiny,").replace("60s", "60s, tenants: [tyni]"),
     "s.yaml:3: phases[0].tenants[0]: no tenant is called 'tyni'; did you mean 'tiny'?"),
    (SMALL.replace("phases: [", "phases: [{name: main, duration: 1s}, "),
     "s.yaml:3: phases[1].name: 'main' is the name of phases[0], too; rename one"),
    (SMALL.replace("main", "warm-up"), "phases[0].name: 'warm-up' is what the load before the phases is called"),
    (SMALL.replace("tenants: [", "tenants: [{name: a, arrivals: {kind: poisson, rate: 1}}, "),
     "s.yaml:2: tenants[1].name: 'a' is the name of tenants[0], too; rename one"),
    (SMALL.replace("name: a,", "name: all,"), "tenants[0].name: 'all' is what all tenants together are called"),
    (SMALL.replace(", arrivals: {kind: poisson, rate: 10}", ""),
     "tenants[0].arrivals: is missing; say when calls come, or give a `trace` that does"),
    (TRACED.replace("{name: a}", "{name: a}, {name: b}").replace("t.csv}", "t.csv, split: {a: 1}}"),
     "s.yaml:2: tenants[1]: 'b' has neither arrivals nor a share of the trace; add it to `trace.split`, or give it"),
    (SMALL.replace("poisson, rate: 10", "closed"), "arrivals.users: is missing; say how many users call in the closed"),
    (SMALL.replace(", rate: 10", ""), "tenants[0].arrivals.rate: is missing; say how many calls come a second"),
    (TARGET + CLOSED.replace("users: 10", "users: 10, rate: 3") + PHASE,
     "tenants[0].arrivals.rate: is for open loops; leave it out, or change `kind`"),
    (TARGET + CLOSED.replace("users: 10", "users: 10, burstiness: 3") + PHASE,
     "tenants[0].arrivals.burstiness: is for open loops; leave it out, or change `kind`"),
    (SMALL.replace("rate: 10", "rate: 10, users: 3"), "arrivals.users: is for closed loops; write kind: closed, or le"),
    (SMALL.replace("rate: 10", "rate: 10, thinkTime: 3s"), "arrivals.thinkTime: is for closed loops; write kind"),
    (SMALL.replace("rate: 10", "rate: 10, burstiness: 3"),
     "arrivals.burstiness: means nothing to poisson arrivals; write kind: gamma, or leave it out"),
    (SMALL.replace(", duration: 60s", ""),
     "s.yaml:3: phases[0].duration: is missing; say how long it lasts; only a trace can tell instead"),
    (TARGET + OPEN, "s.yaml:1: phases: is missing, and nothing else says how long the run is; add phases"),
    (SMALL + "warmup: 5s\nbounds: {duration: 1m}",
     "s.yaml:5: bounds.duration: is less than the warm-up and the phases together, 1m5s; raise it, or leave it out"),
    (TARGET + OPEN + "warmup: 1m\nbounds: {duration: 1m}", "bounds.duration: leaves nothing after the warm-up, 1m; ra"),
    (TRACED + "warmup: 1m\nbounds: {duration: 1m}", "bounds.duration: leaves nothing after the warm-up, 1m; raise it"),
    (TRACED.replace("t.csv}", "t.csv, columns: {time: t, input: i, output: o, client: c}, client: d}"),
     "trace.client: `columns.client` names another column; leave one out"),
    (SMALL.replace("model: m", "model: m, body: {stream: true}"),
     "target.body.stream: is written by the load tester; set `target.stream`"),
    (SMALL.replace("model: m", "model: m, body: {model: x}"), "target.body.model: is written by the load tester; set"),
    (SMALL.replace("model: m", "model: m, body: {n: 2}"), "target.body.n: asks for several answers in one"),
    (SMALL.replace("model: m", "model: m, stream: false, usage: exact"),
     "target.usage: is judged by a stream's events, and answers are not streamed"),
    (SMALL.replace("model: m", "model: m, stream: false").replace("10}}", "10}, cancel: {share: 1%}}"),
     "tenants[0].cancel: counts a stream's events, and answers are not streamed; leave it out"),
    (SMALL.replace("10}}", "10}, cancel: {share: 1%, afterTokens: [64, 99]}}"),
     "tenants[0].cancel.afterTokens: comes after the end: answers have at most 64 tokens; make it less"),
    (SMALL.replace("10}}", "10}, output: {tokens: [1, 9]}, cancel: {share: 1%, afterTokens: 9}}"),
     "tenants[0].cancel.afterTokens: comes after the end: answers have at most 9 tokens; make it less"),
    (SMALL + "sweep: {of: rate, from: 1, to: 2}", "s.yaml:3: phases: a sweep makes its own; leave `phases` or `sweep`"),
    (TARGET + CLOSED + "sweep: {of: rate, from: 1, to: 2}",
     "tenants[0].arrivals.kind: closed does not rise with a sweep of rate; make it an open loop, or sweep the other"),
    (TARGET + OPEN + "sweep: {of: users, from: 1, to: 2}",
     "tenants[0].arrivals.kind: poisson does not rise with a sweep of users; make it closed, or sweep the other"),
    (TARGET + OPEN + "sweep: {of: rate, from: 2, to: 2}", "s.yaml:3: sweep.to: must be more than where it begins, 2;"),
    (TARGET + OPEN + "sweep: {of: rate, from: 1, to: 2, factor: 1}", "sweep.factor: must be more than 1, not 1"),
    (TARGET + OPEN + "sweep: {of: rate, from: 1, to: 2, within: 0}", "sweep.within: must be more than nothing"),
    (TARGET + OPEN + "sweep: {of: load, from: 1, to: 2}", "sweep.of: 'load' is none of rate, users; known: rate, user"),
    (TARGET + CLOSED + "sweep: {of: users, from: 1.5, to: 2}", "sweep.from: 1.5 users are no whole number"),
    (TARGET + OPEN + "sweep: {of: rate, from: 1, to: 2}\nbounds: {duration: 39s}",
     "s.yaml:4: bounds.duration: holds fewer than two steps of 20s after the warm-up; raise it, or leave it out"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "fault"), CONTRADICTIONS)
def test_a_contradiction_is_refused_with_its_place_and_the_way_out(text: str, fault: str, folder: Path) -> None:
    (found,) = faults_of(text, folder)
    assert fault in found


def test_a_sweep_has_no_trace(folder: Path) -> None:
    text = TARGET + OPEN + "sweep: {of: rate, from: 1, to: 2}\ntrace: {file: t.csv, split: {a: 1}}"
    assert faults_of(text, folder) == [
        "s.yaml:4: trace: comes at its own times, which a sweep cannot raise; leave `trace` or `sweep` out"
    ]


@pytest.mark.parametrize(
    "text",
    [
        SMALL + "bounds: {duration: 1m}",
        SMALL.replace("10}}", "10}, output: {tokens: [1, 9]}, cancel: {share: 1%, afterTokens: [8, 20]}}"),
        SMALL.replace("model: m", "model: m, body: {n: 1}"),
        TARGET + OPEN + "sweep: {of: rate, from: 1, to: 2}\nbounds: {duration: 40s}",
        TRACED + "phases: [{name: p}]",
        TRACED.replace("{name: a}", "{name: a, cancel: {share: 1%, afterTokens: 1000}}"),
    ],
)
def test_what_only_comes_near_a_contradiction_is_taken(text: str, folder: Path) -> None:
    read(text, folder)


# ---- all at once, in order, and without secrets --------------------------------------------------------------------

WRONG = """\
target: {url: "ftp://x", modelx: tiny, timeout: 0}
seed: -7
seed: 8
bounds: {requests: "${CROWD_KEY}"}
phases:
  - {name: alone, duration: 60s, tenants: [victim, victom]}
  - {name: alone, duration: 60s}
tenants:
  - {name: victim, key: "${MISSING_KEY}", arrivals: {kind: poisson, rate: -10, users: 3}, output: {tokens: abc}}
  - {name: crowd, arrivals: {kind: closed, rate: 3}, cancel: {share: 110%, afterTokens: [100, 320]}}
  - nobody
trace: {file: nope.csv, speed: 0, split: {victm: 1}, clip: 2048, skip: 4}
"""


def test_every_fault_is_told_at_once_in_the_order_of_lines(folder: Path) -> None:
    found = [fault.split(";")[0].removeprefix("s.yaml:") for fault in faults_of(WRONG, folder)]
    assert found == [
        "1: target.url: does not begin with http:// or https://",
        "1: target.model: is missing",
        "1: target.timeout: must be more than nothing",
        "1: target.modelx: unknown key",
        "2: seed: must be from 0 to 9,007,199,254,740,992, not -7",
        "3: seed: 'seed' stands here a second time",
        "4: bounds.requests: what ${CROWD_KEY} holds cannot stand here",
        "6: phases[0].tenants[1]: no tenant is called 'victom'",
        "7: phases[1].name: 'alone' is the name of phases[0], too",
        "9: tenants[0].key: the environment variable MISSING_KEY is not set",
        "9: tenants[0].arrivals.rate: must be more than 0, not -10",
        "9: tenants[0].output.tokens: 'abc' is not a whole number",
        "9: tenants[0].arrivals.users: is for closed loops",
        "10: tenants[1].cancel.share: '110%' is not between 0% and 100%",
        "10: tenants[1].arrivals.users: is missing",
        "10: tenants[1].arrivals.rate: is for open loops",
        "10: tenants[1].cancel.afterTokens: comes after the end: answers have at most 64 tokens",
        "11: tenants[2]: must be a mapping of keys, not text",
        "12: trace.speed: must be more than 0, not 0",
        "12: trace.skip: a call that is too long is clipped or skipped, not both",
        "12: trace.split.victm: no tenant is called 'victm'",
        f"12: trace.file: there is no file '{folder}/nope.csv'",
    ]


def test_faults_are_values_with_their_parts(folder: Path) -> None:
    with pytest.raises(ScenarioError) as caught:
        read(SMALL.replace("rate: 10", "rate: -1"), folder)
    assert caught.value.faults == (Fault("s.yaml", 2, "tenants[0].arrivals.rate", "must be more than 0, not -1", ""),)


def _places(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, below in inner for place in _places(below, (*path, key)))]


def _with(root: Any, path: tuple[str | int, ...], value: Any) -> Any:
    if not path:
        return value
    changed = copy.deepcopy(root)
    around = changed
    for step in path[:-1]:
        around = around[step]
    around[path[-1]] = value
    return changed


PLAIN = yaml.safe_load(FULL + "  # and a sweep\nsweep: {of: rate, from: 1, to: 9, within: 5%}")
PLACES = _places(PLAIN)


@pytest.mark.parametrize("secret", ["sk-abc def", "7sk-secret", "http://u:pw-secret@host/v1", "0.5s-secret"])
def test_what_a_variable_holds_is_in_no_fault_wherever_it_stands(secret: str, folder: Path) -> None:
    hidden = [piece for piece in (secret, "secret", "abc") if piece in secret]
    for path in PLACES:
        text = yaml.safe_dump(_with(PLAIN, path, "${SECRET}"), sort_keys=False)
        said = "\n".join(faults_of(text, folder, {**KEYS, "SECRET": secret}))
        assert not any(piece in said for piece in hidden), (path, said)


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-10, 10**18)
    | st.floats()
    | st.text(max_size=8)
    | st.dates()
    | st.sampled_from(["10s", "5%", "100k", "a", "closed", "gamma", "${VICTIM_KEY}", "${", "victim", "${NO}"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@given(path=st.sampled_from(PLACES), value=JUNK, second=st.sampled_from(PLACES), other=JUNK)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_stands_anywhere_is_read_or_refused_with_faults(
    path: tuple[str | int, ...], value: Any, second: tuple[str | int, ...], other: Any, folder: Path
) -> None:
    root = _with(PLAIN, path, value)
    if second in _places(root):
        root = _with(root, second, other)
    try:
        scenario = read(yaml.safe_dump(root, sort_keys=False, allow_unicode=True), folder)
    except ScenarioError as wrong:
        assert wrong.faults
        assert all(fault.reason for fault in wrong.faults)
        assert "sk-victim-1234" not in str(wrong)
    else:
        assert isinstance(scenario, Scenario)
