"""The end of a run, as text."""

from __future__ import annotations

import io
import re
from functools import cache

import msgspec
import pytest
from rich.cells import cell_len
from rich.console import Console

from loadtest.report.table import Column, fitted, growth_in_words, print_summary, printable
from loadtest.summary import Count, Growth, Isolation, Mark, Summary
from tests.loadtest import summaries
from tests.loadtest.summaries import (
    a_crowd,
    a_noisy_neighbour,
    a_strained_run,
    a_summary,
    a_sweep,
    an_empty_run,
)

RUNS = ("a_summary", "a_noisy_neighbour", "a_sweep", "a_soak", "a_crowd", "a_strained_run", "an_empty_run")


@cache
def made(run: str) -> Summary:
    """One of them, to be looked at and left as it is."""
    summary = getattr(summaries, run)()
    assert isinstance(summary, Summary)
    return summary


def shown(summary: Summary, width: int = 100, files: dict[str, str] | None = None) -> str:
    """The text that a terminal without colour gets."""
    console = Console(file=io.StringIO(), width=width, color_system=None, highlight=False)
    print_summary(summary, console, files)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def words(text: str) -> str:
    """The same on one line, however it was wrapped."""
    return " ".join(text.split())


def test_a_phase_is_a_table_of_its_tenants_and_all_of_them() -> None:
    lines = shown(a_summary()).splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("tenant"))
    head, victim, crowd, every = lines[at : at + 4]
    assert head.split()[:5] == ["tenant", "sent", "done", "failed", "good"]
    figures = r"600 +600 +0 +98\.8 % +1,280 +82\.5 ms +684 ms +21\.9 ms +39\.8 ms +3\.02 s +3\.55 s"
    assert re.fullmatch(rf"victim +{figures}", victim)
    assert crowd.startswith("crowd ") and every.startswith("all ")
    assert len({line.rindex(" s") for line in (victim, crowd, every)}) == 1, "figures stand below one another"


def test_a_phase_of_one_tenant_has_no_line_for_all() -> None:
    assert not re.search(r"^all ", shown(an_empty_run()), re.MULTILINE)
    assert shown(a_noisy_neighbour()).count("fairness") == 1  # of the crowded phase


@pytest.mark.parametrize("width", [30, 46, 60, 80, 100, 140])
@pytest.mark.parametrize("run", RUNS)
def test_no_line_is_wider_than_the_terminal_and_no_figure_is_cut(run: str, width: int) -> None:
    text = shown(made(run), width)
    assert max(cell_len(line) for line in text.splitlines()) <= width
    if width >= 60:
        assert "…" not in text


@pytest.mark.parametrize("run", ["a_summary", "a_sweep", "a_strained_run", "a_soak"])
def test_an_ordinary_run_fits_on_a_screen(run: str) -> None:
    assert len(shown(made(run), 80).splitlines()) <= 40


def test_marks_come_before_any_figure_loudest_first_and_are_recalled_at_the_end() -> None:
    summary = a_strained_run()
    summary.marks.reverse()
    text = shown(summary)
    order = [
        text.index(word)
        for word in ("!! CLIENT-BOUND in load: The tool's", "!! MACHINE-BOUND", "!! CENSORED", "neighbours: tiny at")
    ]
    assert order == sorted(order)
    assert text.splitlines()[-1] == "!! CLIENT-BOUND, MACHINE-BOUND, CENSORED: see the top"
    assert "note  Requests were clipped to 2,048 tokens of input: 12 of 4,000." in text


def test_a_run_without_marks_says_nothing_of_any() -> None:
    assert "!!" not in shown(a_summary())


def test_a_note_names_its_phase() -> None:
    text = shown(a_summary(marks=[Mark(kind="note", phase="alone", text="it rained")]))
    assert "note  alone: it rained" in text
    assert "!!" not in text


def test_failures_stand_by_code_beside_what_else_became_of_calls() -> None:
    summary = a_summary()
    crowd = summary.phases[0].tenants[1]
    crowd.codes = {"429 token_rate": 86, "cut": 4, "timeout": 3, "malformed": 2, "unfinished": 1, "no_done": 1}
    crowd.cancelled, crowd.never_sent, crowd.clipped, crowd.skipped = 234, 12, 5, 1
    crowd.client_wait.p99 = 0.8
    assert words(
        "crowd 86 × 429 token_rate · 4 × cut · 3 × timeout · 2 × malformed · 2 × 2 other codes · 234 left on purpose "
        "· 12 never sent · 5 clipped · 1 skipped as too long · held back by the client 800 ms (p99), which TTFT "
        "and E2E include"
    ) in words(shown(summary))


def test_goodput_is_told_only_of_objectives() -> None:
    summary = a_summary()
    assert "goodput  38.7 a second, 83.0 % of the calls that were done met every objective" in shown(summary)
    summary.scenario["objectives"] = {"ttft": None}
    assert "good" not in shown(summary)


def test_isolation_comes_with_its_confidence() -> None:
    each = Isolation(
        tenant="victim", alone="alone", phase="crowded", calls_alone=1204, calls=1198,
        p50=3.21, p50_interval=(2.9, 3.6), p99=12.4, p99_interval=(9.1, 15.0),
    )  # fmt: skip
    text = words(shown(a_summary(isolation=[each, msgspec.structs.replace(each, p99=None, p99_interval=None)])))
    assert "victim crowded alone 1,198 1,204 ×3.21 2.90–3.60 ×12.4 9.10–15.0" in text
    assert "victim crowded alone 1,198 1,204 ×3.21 2.90–3.60 –" in text


def test_a_sweep_shows_its_steps_by_load_and_where_it_saturates() -> None:
    text = shown(a_sweep())
    loads = re.findall(r"^([\d.]+) +(yes|no) ", text, re.MULTILINE)
    assert [load for load, _ in loads] == [
        "4.00",
        "6.00",
        "9.00",
        "13.5",
        "20.2",
        "30.4",
        "32.0",
        "33.6",
        "37.2",
        "45.6",
    ]
    assert [verdict for _, verdict in loads] == ["yes"] * 6 + ["no"] * 4
    assert words(
        "no at 32.0 first tokens came ever later, 0.3 s a second (also at 33.6, 37.2, 45.6) saturation 31.2 calls a "
        "second (it kept up with 30.4, and not with 32.0); 31.2 calls a second were done when saturated"
    ) in words(text)
    assert "tenant" not in text, "the steps are the phases"


def test_a_sweep_that_found_nothing_says_up_to_where_it_looked() -> None:
    summary = a_sweep()
    assert summary.sweep is not None
    summary.sweep.saturation = None
    summary.sweep.of = "users"
    assert "saturation  not found up to 45.6 users" in shown(summary)


def test_the_servers_cost_is_in_its_phase() -> None:
    text = shown(a_noisy_neighbour())
    assert "server  0.52 core · 11.8 µs/chunk · 184 µs/request · RSS 98 → 104 MiB" in text
    assert "server  0.20 core · 184 µs/request" in text
    assert "server  pid 4242: penstock serve penstock.yaml" in text


def test_a_peak_of_memory_is_told_where_it_stands_out() -> None:
    server = summaries.a_server(rss_most_bytes=220 << 20)
    assert "(most" not in shown(a_noisy_neighbour())
    assert "RSS 98 → 104 MiB (most 220)" in shown(a_summary(phases=[summaries.a_phase(server=server)]))


def test_counts_stand_beside_each_other_with_their_difference() -> None:
    counts = [
        Count(name="tokens", labels={"tenant": "a", "kind": "completion"}, server=1100, client=1000),
        Count(name="tokens", labels={}, server=990, client=1000),
        Count(name="calls", labels={}, server=7, client=7),
        Count(name="open", labels={}, server=61, client=None),
    ]
    text = words(shown(a_summary(counts=counts)))
    assert "tokens {tenant=a, kind=completion} 1,100 1,000 +100 (10.0 %)" in text
    assert "tokens 990 1,000 −10 (1.0 %)" in text
    assert "calls 7 7 nothing" in text
    assert "open 61 –" in text
    many = words(shown(a_summary(counts=[counts[2]] * 25)))
    assert many.count("calls 7 7") == 20
    assert "and 5 more, in the JSON summary" in many


@pytest.mark.parametrize(
    ("slope", "low", "high", "said"),
    [
        (1.4, 1.3, 1.5, "+1.4 MiB an hour (95 %: +1.3 MiB to +1.5 MiB): it grows"),
        (0.2, -0.3, 0.7, "+0.2 MiB an hour (95 %: −0.3 MiB to +0.7 MiB): no growth can be told from the noise"),
        (-150.0, -200.0, -101.0, "−150 MiB an hour (95 %: −200 MiB to −101 MiB): it shrinks"),
    ],
)
def test_growth_is_told_from_noise(slope: float, low: float, high: float, said: str) -> None:
    growth = Growth(bytes_per_hour=slope * 2**20, low=low * 2**20, high=high * 2**20)
    assert growth_in_words(growth) == said
    assert f"memory  {said}" in shown(a_summary(growth=growth))


def test_the_tool_is_told_at_its_worst() -> None:
    phases = [
        summaries.a_phase("a"),
        summaries.a_phase("b", strain=summaries.a_strain(timer_lag_p99=0.31, pressure=None)),
    ]
    text = shown(a_summary(phases=phases))
    assert "tool  timer lag p99 310 ms · send lag p99 800 µs · 0.41 of a core at most · pressure 3%" in text


def test_files_are_named() -> None:
    assert "  report  out/report.html" in shown(a_summary(), files={"report": "out/report.html"})


@pytest.mark.parametrize(
    ("ended", "said"),
    [
        ("complete", "complete"),
        ("interrupted", "what there was by then"),
        ("bounds", "ended by its bounds"),
        ("failed", "failed"),
    ],
)
def test_how_a_run_ended_stands_at_its_head(ended: str, said: str) -> None:
    line = shown(a_summary(ended=ended)).splitlines()[2]
    assert line.startswith("61.5 s, ") and said in line


def test_the_warm_up_is_not_shown_and_a_run_of_nothing_else_says_so() -> None:
    assert "warmup" not in shown(a_noisy_neighbour())
    phases = [summaries.a_phase(is_counted=False)]
    assert "No phase came to be counted." in shown(a_summary(phases=phases))


def test_many_tenants_are_shown_up_to_twenty() -> None:
    text = shown(a_crowd(25))
    assert len(re.findall(r"^client-\d+ +[\d,]+ ", text, re.MULTILINE)) == 20
    assert re.search(r"^all 25 ", text, re.MULTILINE)


def test_nothing_that_a_server_says_reaches_the_terminal_as_more_than_text() -> None:
    summary = a_summary(name="\x1b[2J", model="[bold]m[/bold]")
    tenant = summary.phases[0].tenants[0]
    tenant.name = "\x1b]0;owned\x07victim"
    tenant.codes = {"500 \x1b[31mred\x1b[0m [link=x]\n": 3}
    text = shown(summary, files={"report": "a\x1b[1mb"})
    assert "\x1b" not in text and "\x07" not in text
    assert "[bold]m[/bold]" in text and "3 × 500 ·[31mred·[0m [link=x]·" in text
    assert printable("ü 租 –") == "ü 租 –"


def test_columns_go_by_rank_and_names_give_way_to_twelve_cells() -> None:
    columns = [
        Column("name", ["a name that is long", "b"], is_figure=False),
        Column("x", ["1", "22"], 2),
        Column("y", ["333", "4"], 1),
    ]
    assert str(fitted(columns, 80)).splitlines() == [
        "name                  x    y",
        "a name that is long   1  333",
        "b                    22    4",
    ]
    assert str(fitted(columns, 22)).splitlines() == [
        "name            x    y",
        "a name that …   1  333",
        "b              22    4",
    ]
    assert str(fitted(columns, 20)).splitlines() == [
        "name               y",
        "a name that is…  333",
        "b                  4",
    ]
    assert str(fitted(columns, 12)).splitlines() == ["name", "a name that…", "b"]


def test_wide_letters_count_as_two_cells() -> None:
    rows = str(fitted([Column("n", ["租户", "ab"], is_figure=False), Column("x", ["1", "2"])], 40)).splitlines()
    assert [cell_len(row) for row in rows[1:]] == [7, 7]
