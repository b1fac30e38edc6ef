from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from backends.engines.prometheus_text import samples, total


def test_only_the_exact_name_is_read() -> None:
    text = b'a:xy 2\na:x_total{k="v"} 4\n# HELP a:x 8\nba:x 16\na:x 1\na:x{k="v"} 32\n a:x 64\na:x'
    assert total(text, b"a:x") == 33.0
    assert total(b'a:x 1\na:xy 2\na:x{k="v"} 32', b"a:x") == 33.0
    assert total(b"a:xy 2\n", b"a:x") is None


def test_what_stands_after_a_metrics_own_lines_is_not_searched() -> None:
    """The format has all lines of a metric in one group; most of the text is histograms, after the gauges."""
    assert total(b'x{k="a"} 1\nx{k="b"} 2\ny 4\nx 8\n', b"x") == 3.0


def test_time_stamps_are_ignored_and_broken_lines_are_left_out() -> None:
    text = b'x 1 1700000000000\nx{k="open} 2\nx{k="v"\nx{} 4\nx{k="v",} 8\nx\nx words\nx{k="v"}16'
    assert [sample.value for sample in samples(text, b"x")] == [1.0, 4.0, 8.0, 16.0]


def test_a_missing_metric_is_none_and_not_zero() -> None:
    assert total(b"y 1\n", b"x") is None
    assert total(b"x 0\n", b"x") == 0.0


@given(st.dictionaries(st.text(max_size=8), st.floats(allow_nan=False), min_size=1, max_size=8))
def test_it_reads_what_prometheus_own_parser_reads(values: dict[str, float]) -> None:
    registry = CollectorRegistry()
    gauge = Gauge("wanted", 'odd "help"\n\\', ["label", "engine"], registry=registry)
    Gauge("wanted_too", "", registry=registry).set(7)
    for label, value in values.items():
        gauge.labels(label, "0").set(value)
    text = generate_latest(registry)
    reference = {
        sample.labels["label"]: sample.value
        for family in text_string_to_metric_families(text.decode())
        if family.name == "wanted"
        for sample in family.samples
    }
    assert {sample.labels["label"]: sample.value for sample in samples(text, b"wanted")} == reference
