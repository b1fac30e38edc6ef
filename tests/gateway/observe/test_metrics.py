"""What is counted of a record, what a scrape reads, and docs/metrics.md against both."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from backends.fleet import Fleet
from backends.outcome import Ending
from backends.routing.choice import Choice
from gateway.observe.exposition import Counters, Histograms
from gateway.observe.metrics import Metrics
from gateway.record import Record
from tenancy.admission import Admission
from tenancy.policy import Budget, Model, Pod, Policy, ServedModel, Tenant
from tenancy.refusal import Code

DOCS = Path(__file__).resolve().parents[3] / "docs" / "metrics.md"
GIB = 1024**3

POLICY = Policy(
    models={"tiny": Model("tiny", kv_bytes_per_token=4096)},
    pods={
        "chat-0": Pod("chat-0", ("gpu0",), (ServedModel("tiny", "tiny"),), url="http://x", kv_memory_bytes=GIB),
        "wide": Pod("wide", ("gpu0", "gpu1"), (ServedModel("tiny", "tiny"),), url="http://y", kv_memory_bytes=2 * GIB),
    },
    tenants={"acme": Tenant("acme", budget=Budget(memory_bytes=GIB, concurrency=4)), "free": Tenant("free")},
)


def gateway() -> tuple[Metrics, Admission, Fleet]:
    fleet = Fleet(POLICY, clock=lambda: 0.0)
    admission = Admission(POLICY, Choice(fleet, random=Random(1)), 0.0)
    return Metrics(POLICY, admission, fleet), admission, fleet


def record(**facts: Any) -> Record:
    made = Record("r1", "/v1/chat/completions", 100.0, tenant="acme", model="tiny", status=200, ended_at=101.0)
    for name, value in facts.items():
        setattr(made, name, value)
    return made


def read(metrics: Metrics) -> dict[str, dict[tuple[str, ...], float]]:
    """Every sample by name and label values, as Prometheus' own parser understands it."""
    samples: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(metrics.expose().decode()):
        for sample in family.samples:
            samples.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return samples


def test_the_docs_list_every_metric_with_its_type_and_labels_and_no_other() -> None:
    metrics, admission, fleet = gateway()
    metrics.take(
        record(
            streamed=True,
            code="memory_budget",
            outcomes=(("chat-0", "complete"),),
            attempts=1,
            first_token_at=100.5,
            completion_tokens=3,
        )
    )
    fleet.ready("chat-0")
    fleet.ready("wide")
    admission.pods_changed(fleet.capacities(), 0.0)
    told = {}
    for family in text_string_to_metric_families(metrics.expose().decode()):
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = [label for label in family.samples[0].labels if label != "le"]
        told[name] = (family.type, labels)
    row = re.compile(r"^\| `(penstock_\w+)` \| (\w+) \| ([`\w ]+) \| .+ \|$", re.MULTILINE)
    assert {name: (kind, re.findall(r"\w+", labels)) for name, kind, labels in row.findall(DOCS.read_text())} == told


@pytest.mark.parametrize("ending", Ending)
def test_the_docs_name_every_outcome_of_an_attempt(ending: Ending) -> None:
    assert f"`{ending.value}`" in DOCS.read_text()


def test_a_stream_is_counted_and_timed() -> None:
    metrics, _, _ = gateway()
    for _ in range(2):
        metrics.take(
            record(
                streamed=True,
                queued_seconds=0.25,
                first_token_at=100.5,
                prompt_tokens=12,
                completion_tokens=11,
                attempts=2,
                outcomes=(("chat-0", "reset"), ("wide", "complete")),
            )
        )
    seen = read(metrics)
    who = ("acme", "tiny")
    assert seen["penstock_requests_total"] == {(*who, "200"): 2}
    assert seen["penstock_tokens_total"] == {(*who, "prompt"): 24, (*who, "completion"): 22}
    assert seen["penstock_attempts_total"] == {("chat-0", "reset"): 2, ("wide", "complete"): 2}
    assert seen["penstock_time_to_first_token_seconds_sum"] == {who: 1.0}
    assert seen["penstock_inter_token_seconds_sum"][who] == pytest.approx(0.1)
    assert seen["penstock_request_seconds_count"] == {who: 2}
    assert seen["penstock_queue_seconds_sum"] == {who: 0.5}
    assert seen["penstock_queue_seconds_bucket"][(*who, "0.1")] == 0
    assert seen["penstock_queue_seconds_bucket"][(*who, "0.25")] == 2
    assert seen["penstock_queue_seconds_bucket"][(*who, "+Inf")] == 2


def test_a_whole_answer_has_no_first_token() -> None:
    metrics, _, _ = gateway()
    metrics.take(record(first_token_at=100.5, completion_tokens=11))
    assert read(metrics)["penstock_time_to_first_token_seconds_count"] == {("acme", "tiny"): 0}


@pytest.mark.parametrize(
    ("facts", "labels"),
    [
        ({"model": "no-such-model"}, ("acme", "other", "200")),
        ({"model": ""}, ("acme", "", "200")),
        ({"tenant": "", "model": "", "status": 401, "code": "invalid_api_key"}, ("", "", "401")),
        ({"status": 499, "client_left": True}, ("acme", "tiny", "499")),
        ({"code": "pod_failed"}, ("acme", "tiny", "502")),
        ({"code": "pod_refused", "status": 422}, ("acme", "tiny", "422")),
    ],
)
def test_labels_are_bounded_and_a_broken_stream_is_no_success(facts: dict[str, Any], labels: tuple[str, ...]) -> None:
    metrics, _, _ = gateway()
    metrics.take(record(**facts))
    assert read(metrics)["penstock_requests_total"] == {labels: 1}


def test_only_what_policy_refused_is_a_refusal() -> None:
    metrics, _, _ = gateway()
    metrics.take(record(status=401, code="invalid_api_key"))
    metrics.take(record(status=502, code="pod_failed"))
    assert "penstock_refusals_total" not in read(metrics)
    for code in Code:
        metrics.take(record(status=429, code=code.value))
    assert read(metrics)["penstock_refusals_total"] == {("acme", code.value): 1 for code in Code}


def test_gauges_are_those_of_ledger_and_fleet_at_this_moment() -> None:
    metrics, admission, fleet = gateway()
    fleet.ready("chat-0")
    fleet.ready("wide")
    admission.pods_changed(fleet.capacities(), 0.0)
    seen = read(metrics)
    assert seen["penstock_tenant_gpu_memory_limit_bytes"] == {("acme",): GIB}
    assert seen["penstock_tenant_gpu_memory_reserved_bytes"] == {("acme",): 0, ("free",): 0}
    assert seen["penstock_tenant_concurrency_limit"] == {("acme",): 4}
    assert seen["penstock_tenant_concurrency_held"] == {("acme",): 0, ("free",): 0}
    assert seen["penstock_tenant_queued"] == {("acme",): 0, ("free",): 0}
    assert seen["penstock_pod_up"] == {("chat-0",): 1, ("wide",): 1}
    assert seen["penstock_pod_kv_capacity_bytes"] == {
        ("chat-0", "gpu0"): GIB,
        ("wide", "gpu0"): GIB,
        ("wide", "gpu1"): GIB,
    }
    fleet.drain("wide")
    assert read(metrics)["penstock_pod_up"] == {("chat-0",): 1, ("wide",): 0}


def test_label_values_of_any_kind_are_read_back() -> None:
    odd = 'quote " backslash \\ line\nend, comma, brace } ü'
    counters = Counters("some_total", "A help with\na line and a \\.", ("a", "b"))
    counters.child(odd, "").add(3)
    histograms = Histograms("other_seconds", "Help.", ("a",), (0.1, 1.0))
    for value in (0.1, 0.5, 7.0):
        histograms.child(odd).observe(value)
    families = list(text_string_to_metric_families(counters.expose() + histograms.expose()))
    assert [(sample.labels, sample.value) for sample in families[0].samples] == [({"a": odd, "b": ""}, 3)]
    assert {sample.labels.get("le", sample.name): sample.value for sample in families[1].samples} == {
        "0.1": 1,
        "1.0": 2,
        "+Inf": 3,
        "other_seconds_sum": 7.6,
        "other_seconds_count": 3,
    }
    assert {sample.labels["a"] for sample in families[1].samples} == {odd}
