"""The report as a whole: what stands in it, that it is whole by itself, and what Chromium makes of it."""

from __future__ import annotations

import html
import json
import re
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from loadtest.report.figures import duration, number
from loadtest.report.page import MOST_FACETS, page
from loadtest.report.page_style import DARK_COLOURS, DARK_GROUND, LIGHT_COLOURS, LIGHT_GROUND, SCRIPT, policy, style
from loadtest.summary import Count, Distribution, Mark, Summary, read, written
from tests.instruments.requires import find_program, requires_program
from tests.loadtest.summaries import (
    Mix,
    a_crowd,
    a_noisy_neighbour,
    a_phase,
    a_server,
    a_soak,
    a_strain,
    a_strained_run,
    a_summary,
    a_sweep,
    an_empty_run,
)
from tests.loadtest.svg_reading import attributes, of_class, svgs, tips

RUNS: list[Callable[[], Summary]] = [
    a_summary,
    a_noisy_neighbour,
    a_sweep,
    a_soak,
    a_crowd,
    a_strained_run,
    an_empty_run,
]
VOID = {"meta", "br"}


class Outline(HTMLParser):
    """Tags, attributes and text as a browser would see them; complains of what is left open."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.shapes: set[tuple[str, tuple[str, ...]]] = set()
        self.tags: list[str] = []
        self.text: list[str] = []
        self.values: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.shapes.add((tag, tuple(sorted(name for name, _ in attrs))))
        self.tags.append(tag)
        self.values += [value for _, value in attrs if value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> where {self.open[-3:]} are open"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def sections(summary: Summary) -> list[str]:
    return [html.unescape(title) for title in re.findall(r"<h2>(.*?)</h2>", page(summary))]


def text_of(summary: Summary) -> str:
    return " ".join(Outline(page(summary)).text)


# ---- whole, and by itself --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", RUNS)
def test_every_tag_is_closed_and_every_drawing_is_whole(run: Callable[[], Summary]) -> None:
    drawn = page(run())
    outline = Outline(drawn)
    assert outline.tags.count("script") == outline.tags.count("style") == outline.tags.count("h1") == 1
    assert len(svgs(drawn)) == drawn.count("<svg ")


@pytest.mark.parametrize("run", RUNS)
def test_no_coordinate_is_missing_or_infinite(run: Callable[[], Summary]) -> None:
    for drawing in svgs(page(run())):
        for value in attributes(drawing):
            assert not re.search(r"nan|inf|none", value, re.IGNORECASE), value


@pytest.mark.parametrize("run", RUNS)
def test_every_shape_lies_on_its_sheet(run: Callable[[], Summary]) -> None:
    for drawing in svgs(page(run())):
        _, _, width, height = map(float, (drawing.get("viewBox") or "").split())
        for shape in drawing.iter("rect"):
            left, top, across, down = (float(shape.get(name, "")) for name in ("x", "y", "width", "height"))
            assert left >= -1 and top >= -1 and left + across <= width + 1 and top + down <= height + 1


@pytest.mark.parametrize("run", RUNS)
def test_nothing_is_loaded_from_anywhere(run: Callable[[], Summary]) -> None:
    summary = run()
    drawn = page(summary)
    addresses = set(re.findall(r"[a-z]+://[^\s<>\"'&]*", drawn))
    assert addresses <= {summary.url}
    outline = Outline(drawn)
    names = {name for _, attributes in outline.shapes for name in attributes}
    assert not names & {"src", "href", "srcset", "data", "action", "poster", "background"}
    assert not set(outline.tags) & {"link", "img", "iframe", "object", "embed", "form", "base"}
    assert "url(" not in style() and "@import" not in style()


def test_the_policy_names_the_script_that_is_there() -> None:
    assert f"<script>{SCRIPT}</script>" in page(a_summary())
    assert html.escape(policy()) in page(a_summary())
    assert "unsafe-inline" not in policy().split("script-src")[1].split(";")[0]


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</title></style></script><script>alert(1)</script>",
    "]]> --> &lt;b&gt; {{7*7}} ${x}",
    "a\tb\nc\r\x00\x1b[31m\u202e\ud800",
]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_names_codes_and_addresses_are_text_and_nothing_else(hostile: str) -> None:
    def run(name: str) -> Summary:
        phase = a_phase(name, Mix(name, rate=5, codes={name: 0.2}), Mix("other", rate=5), seconds=10)
        phase.server = a_server(command=name)
        count = Count(name=name, labels={name: name}, server=2, client=1, source=name)
        return a_summary(
            name=name,
            url=name,
            model=name,
            started=name,
            ended=name,
            phases=[phase],
            scenario={"tenants": [{"name": name, "arrivals": {"kind": "closed"}}], name: name},
            marks=[Mark(kind=name, phase=name, text=name), Mark(kind="note", phase=name, text=name)],
            isolation=[msgspec.structs.replace(entry, tenant=name) for entry in a_noisy_neighbour().isolation],
            sweep=msgspec.structs.replace(
                sweep := a_sweep().sweep or pytest.fail("no sweep"),
                steps=[msgspec.structs.replace(step, reason=name, phase=name) for step in sweep.steps],
            ),
            counts=[count],
        )

    plain, attacked = Outline(page(run("plain"))), Outline(page(run(hostile)))
    assert attacked.shapes == plain.shapes
    assert attacked.tags == plain.tags
    if hostile.isprintable():
        assert sum(hostile in text for text in attacked.text) > 10
    page(run(hostile)).encode()


# ---- what stands in it -----------------------------------------------------------------------------------------------

ALWAYS = {"At a glance", "Phase by phase", "How the load tester itself fared", "What was asked", "How to read this"}


@pytest.mark.parametrize(
    ("run", "more"),
    [
        (a_summary, {"Latency", "Over time"}),
        (a_noisy_neighbour, {"Latency", "Over time", "Isolation between tenants", "The server beside"}),
        (a_sweep, {"Latency", "Over time", "Sweep"}),
        (a_soak, {"Latency", "Over time", "The server beside"}),
        (an_empty_run, set()),
    ],
)
def test_a_section_is_there_only_where_it_has_something_to_say(run: Callable[[], Summary], more: set[str]) -> None:
    told = sections(run())
    assert set(told) == ALWAYS | more
    assert len(told) == len(set(told))


def test_a_run_that_never_began_is_told_as_such() -> None:
    summary = a_summary(phases=[], ended="failed", scenario={})
    assert sections(summary) == ["How to read this"]
    assert "The run failed" in text_of(summary) and "No call was done" in text_of(summary)


def test_where_no_call_was_done_nobody_is_told_that_the_tester_kept_up() -> None:
    told = text_of(an_empty_run())
    assert "No call was done" in told and "The run was stopped by hand" in told
    assert "kept up" not in told


def test_marks_stand_before_every_figure_and_worst_first() -> None:
    drawn = page(a_strained_run(ended="bounds"))
    order = ["ended at its bounds", "Client-bound:", "Machine-bound:", "Censored:", "To be noted", "At a glance"]
    places = [drawn.index(words) for words in order]
    assert places == sorted(places)
    for mark in a_strained_run().marks:
        assert html.escape(mark.text) in drawn
    assert "The load tester kept up" not in drawn


def test_where_nothing_was_in_the_way_the_report_says_what_makes_one_believe_it() -> None:
    phases = [
        a_phase("one", seconds=5, strain=a_strain(send_lag_p99=0.0012)),
        a_phase("two", seconds=5, at=5, strain=a_strain(core=0.52)),
    ]
    told = text_of(a_summary(phases=phases))
    assert "The load tester kept up" in told
    assert "within 1.20 ms of their time" in told and "52.0 % of a core" in told


def test_calls_that_waited_behind_the_limit_of_streams_did_not_leave_on_time() -> None:
    phase = a_phase("one", seconds=5)
    phase.all.client_wait = msgspec.structs.replace(phase.all.client_wait, p99=3.61)
    told = text_of(a_summary(phases=[phase]))
    assert "Calls waited before they were sent" in told and "Up to 3.61 s at p99" in told
    assert "kept up" not in told and "the figures below are the target’s" not in told


def test_many_marks_of_one_kind_are_told_under_one_title() -> None:
    marks = [Mark(kind="client-bound", phase=f"step {at}", text=f"reason {at}") for at in range(20)]
    drawn = page(a_summary(marks=marks))
    assert drawn.count("Client-bound:") == 1
    assert all(f"reason {at}." in drawn for at in range(20))
    assert "<summary>14 more</summary>" in drawn


def test_a_mark_of_an_unknown_kind_is_told_all_the_same() -> None:
    assert "moon-bound" in text_of(a_summary(marks=[Mark(kind="moon-bound", phase="", text="full")]))


def test_one_phase_has_its_figures_at_large() -> None:
    summary = a_summary()
    everyone = summary.phases[0].all
    big = re.findall(r'<div class="big">(.*?)</div>', page(summary))
    assert big[:6] == [
        number(everyone.done_per_second),
        number(everyone.tokens_per_second),
        duration(everyone.ttft.p50),
        duration(everyone.ttft.p99),
        duration(everyone.itl.p50),
        duration(everyone.itl.p99),
    ]


def test_a_few_phases_stand_beside_each_other_and_the_warm_up_is_not_among_them() -> None:
    drawn = page(a_noisy_neighbour())
    bars = re.findall(r'<h3>First token, p99 \(TTFT\)</h3><div class="bars">(.*?)</div>', drawn)
    assert [re.findall(r">([^<>]+)</span>", bar) for bar in bars] == [["alone", "crowded", "after"]]


def test_without_objectives_nothing_is_called_good() -> None:
    with_them, without = a_summary(), a_summary(scenario={"objectives": {"ttft": None}})
    assert "Met every objective" in text_of(with_them) and "objective 500 ms" in text_of(with_them)
    assert "Met every objective" not in text_of(without)
    assert ">good<" in page(with_them) and ">good<" not in page(without)


def test_each_tenants_figures_are_in_the_table_of_its_phase() -> None:
    summary = a_noisy_neighbour()
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", found) for found in re.findall(r"<tr.*?</tr>", page(summary))]
    for phase in summary.phases:
        for results in phase.tenants:
            figures = {duration(results.ttft.p50), duration(results.ttft.p99), duration(results.e2e.p99)}
            assert any(row[0] == results.name and figures <= set(row) for row in rows)


def test_failures_are_told_by_code_with_their_meaning_and_their_tenant() -> None:
    told = " ".join(text_of(a_summary()).split())
    crowd = a_summary().phases[0].tenants[1]
    assert f"429 token_rate {crowd.codes['429 token_rate']} refused by the server crowd" in told
    assert f"timeout {crowd.codes['timeout']} no end within the time limit crowd" in told


def test_ever_new_codes_of_a_server_do_not_fill_the_page() -> None:
    summary = a_summary()
    codes = {f"500 {at:032x}": 1000 - at for at in range(1000)}
    for results in (summary.phases[0].all, summary.phases[0].tenants[0]):
        results.codes = codes
    drawn = page(summary)
    assert "960 other codes" in drawn
    assert len(drawn) < 200_000


def test_closed_loop_tenants_are_named_as_blind() -> None:
    scenario = {"tenants": [{"name": "crowd", "arrivals": {"kind": "closed", "users": 5}}, {"name": "victim"}]}
    assert "blind to what waits while the target stalls: crowd." in text_of(a_summary(scenario=scenario))
    assert "blind to what waits" not in text_of(a_summary())


def test_counts_that_differ_say_by_how_much() -> None:
    counts = [
        Count(name="same", labels={"tenant": "a"}, server=10, client=10),
        Count(name="more", labels={}, server=110, client=100),
        Count(name="unknown", labels={}, server=3, client=None),
    ]
    told = " ".join(text_of(a_summary(counts=counts)).split())
    assert "same tenant=a 10 10 none" in told
    assert "more 110 100 +10 (9.1 %)" in told
    assert "unknown 3 – –" in told


def test_growth_that_may_be_noise_is_called_that() -> None:
    summary = a_soak()
    growth = summary.growth
    assert growth is not None
    assert "Its memory grows by 1.40 MiB an hour" in text_of(summary)
    noise = msgspec.structs.replace(growth, bytes_per_hour=1000.0, low=-5000.0, high=7000.0)
    assert "no growth that could be told from noise" in text_of(a_soak(growth=noise))


def test_what_is_over_a_limit_is_marked_with_more_than_a_colour() -> None:
    drawn = page(a_strained_run())
    marked = re.findall(r'<td class="over">(.*?)</td>', drawn)
    assert marked == ["310 ms !", "288 ms !", "93.0 % !", "22.0 % !", "47.0 % !", "1.00 s at 21.3 s !"]


def test_of_many_phases_some_are_drawn_and_all_are_in_the_tables() -> None:
    phases = [a_phase(f"phase {at}", Mix("one", rate=3), at=at * 5.0, seconds=5) for at in range(MOST_FACETS + 3)]
    drawn = page(a_summary(phases=phases))
    assert drawn.count("<h4>") == 2 * MOST_FACETS
    assert f"{MOST_FACETS} of {len(phases)} phases are drawn" in drawn
    assert all(f"<caption>phase {at} " in drawn for at in range(len(phases)))


def test_a_sweep_draws_its_least_its_last_kept_up_with_and_its_first_saturated_load() -> None:
    assert re.findall(r"<h4>(.*?)</h4>", page(a_sweep()))[:3] == ["4/s", "30.375/s", "32/s"]


def test_the_scenario_is_told_as_people_write_it() -> None:
    (told,) = re.findall(r"<pre>(.*?)</pre>", page(a_summary()), re.DOTALL)
    assert "input: [64, 512]" in told
    assert "arrivals: {kind: poisson, rate: 10.0" in told
    assert "null" not in told


def test_a_summary_read_back_from_its_file_makes_the_same_report() -> None:
    for run in RUNS:
        assert page(read(written(run()))) == page(run())


def test_a_summary_without_any_figure_is_still_a_page() -> None:
    summary = a_noisy_neighbour()
    for phase in summary.phases:
        for results in (*phase.tenants, phase.all):
            for name in ("ttft", "ttft_from_sending", "client_wait", "itl", "tpot", "e2e"):
                setattr(results, name, Distribution())
            results.share_served = None
        phase.jain_tokens = phase.jain_served = phase.server = None
    summary.isolation = [
        msgspec.structs.replace(entry, p50=None, p99=None, p50_interval=None, p99_interval=None)
        for entry in summary.isolation
    ]
    assert "–" in text_of(summary)
    assert svgs(page(summary))


# ---- size ------------------------------------------------------------------------------------------------------------


def test_a_long_run_of_many_tenants_stays_well_below_two_megabytes() -> None:
    assert len(page(a_soak(hours=3, tenants=12)).encode()) < 800_000


def test_a_long_sweep_of_many_tenants_does_too() -> None:
    mixes = [Mix(f"client-{at}", rate=2) for at in range(27)]
    phases = [a_phase(f"step {at}", *mixes, at=at * 21.0, seconds=20, server=a_server()) for at in range(24)]
    assert len(page(a_sweep(phases=phases)).encode()) < 1_500_000


# ---- colours ---------------------------------------------------------------------------------------------------------

# Machado, Oliveira, Fernandes: A physiologically-based model for simulation of color vision deficiency, 2009 (at its
# severest)
SIGHTS = {
    "three cones": np.eye(3),
    "no red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "no blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
# Björn Ottosson: A perceptual color space for image processing, 2020
TO_CONES = [
    [0.4122214708, 0.5363325363, 0.0514459929],
    [0.2119034982, 0.6806995451, 0.1073969566],
    [0.0883024619, 0.2817188376, 0.6299787005],
]
TO_OKLAB = [
    [0.2104542553, 0.7936177850, -0.0040720468],
    [1.9779984951, -2.4285922050, 0.4505937099],
    [0.0259040371, 0.7827717662, -0.8086757660],
]


def linear(colour: str) -> Any:
    parts = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    """WCAG 2's."""
    dark, light = sorted(float(linear(colour) @ [0.2126, 0.7152, 0.0722]) for colour in (one, other))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize(("colours", "ground"), [(LIGHT_COLOURS, LIGHT_GROUND), (DARK_COLOURS, DARK_GROUND)])
def test_colours_stand_out_from_their_ground(colours: tuple[str, ...], ground: str) -> None:
    assert all(contrast(colour, ground) >= 3 for colour in colours)


@pytest.mark.parametrize("sight", SIGHTS)
@pytest.mark.parametrize("colours", [LIGHT_COLOURS, DARK_COLOURS])
def test_no_two_colours_look_alike_to_anybody(colours: tuple[str, ...], sight: str) -> None:
    def seen(colour: str) -> Any:
        return TO_OKLAB @ np.cbrt(TO_CONES @ np.clip(SIGHTS[sight] @ linear(colour), 0, 1))

    for one, other in combinations(colours, 2):
        assert np.linalg.norm(seen(one) - seen(other)) >= 0.1, (one, other)


def test_tenants_are_told_apart_without_colours() -> None:
    dashes = dict(re.findall(r"\.line\.(t\d+):not\(\.solid\)\{stroke-dasharray:([^}]*)\}", style()))
    looks = [(LIGHT_COLOURS[at % len(LIGHT_COLOURS)], dashes.get(f"t{at}", "")) for at in range(12)]
    assert len(set(looks)) == 12
    assert len({dash for _, dash in looks[:4]}) == 4
    marks = [
        of_class(drawing, "shape")[0].get("d") for drawing in svgs(page(a_crowd(8))) if "swatch" in attributes(drawing)
    ]
    assert len(marks) == len(set(marks)) == 8


def test_dark_is_for_screens_that_ask_for_it_and_paper_is_white() -> None:
    assert style().count("prefers-color-scheme:dark") == 1
    assert "@media screen and (prefers-color-scheme:dark)" in style()
    assert "@media print" in style()
    light, dark = (re.findall(r"--([\w-]+):", block) for block in re.findall(r":root\{(.*?)\}", style(), re.DOTALL))
    assert sorted(light) == sorted(dark)


# ---- in Chromium -----------------------------------------------------------------------------------------------------

# What a reader does, and what is seen then, as JSON in the page's title. It replaces the policy, which would refuse it.
VISIT = """
const seen = {}, tip = document.getElementById("tip");
const cells = row => [...row.cells].map(one => one.textContent);
const rows = () => tip.hidden ? null : [...tip.querySelectorAll("tr")].map(cells);
const svg = document.querySelector("figure svg[tabindex]"), hits = [...svg.querySelectorAll(".hit")];
const at = (hit, type) => {
  const box = hit.getBoundingClientRect();
  hit.dispatchEvent(new PointerEvent(type, { bubbles: true, clientX: box.x, clientY: box.y, pointerType: "mouse" }));
};
seen.ground = getComputedStyle(document.body).backgroundColor;
seen.titles = document.querySelectorAll("svg title").length;
seen.before = rows();
at(hits[5], "pointermove");
seen.heading = tip.querySelector("b").textContent;
seen.hover = rows();
seen.swatches = tip.querySelectorAll("svg").length;
svg.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
seen.next = tip.querySelector("b").textContent;
svg.dispatchEvent(new KeyboardEvent("keydown", { key: "End", bubbles: true }));
seen.end = tip.querySelector("b").textContent;
const box = tip.getBoundingClientRect();
seen.inside = box.left >= 0 && box.top >= 0 && box.right <= innerWidth && box.bottom <= innerHeight;
svg.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape", bubbles: true }));
seen.after = rows();
document.querySelector('.legend button[data-css="t1"]').click();
const display = one => getComputedStyle(one).display;
const displays = css => [...document.querySelectorAll(`figure .series.${css}`)].map(display);
seen.hidden = displays("t1").every(one => one === "none");
seen.shown = displays("t0").every(one => one !== "none");
at(hits[5], "pointermove");
seen.alone = rows();
seen.wide = document.documentElement.scrollWidth > innerWidth;
document.title = JSON.stringify(seen);
"""


def opened(drawn: str, folder: Path, *, dark: bool = False, width: int = 1280) -> tuple[str, list[str]]:
    """The document as Chromium has it once its scripts have run, and what it said on the console."""
    program = find_program("chromium")
    assert program is not None
    file = folder / "report.html"
    file.write_text(drawn, encoding="utf-8")
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    switches = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--no-first-run", scheme]
    switches += [f"--user-data-dir={folder / 'profile'}", f"--window-size={width},900", "--virtual-time-budget=2000"]
    ran = subprocess.run(
        [program, *switches, "--dump-dom", file.as_uri()], capture_output=True, text=True, timeout=90, check=True
    )
    return ran.stdout, re.findall(r"CONSOLE:?\d*[^\]]*\] (.*)", ran.stderr)


def visited(drawn: str, folder: Path, **how: Any) -> tuple[dict[str, Any], list[str]]:
    """What `VISIT` saw."""
    free = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", drawn)
    dom, console = opened(free.replace("</body>", f"<script>{VISIT}</script></body>"), folder, **how)
    title = re.search(r"<title>(.*?)</title>", dom, re.DOTALL)
    assert title is not None
    return json.loads(html.unescape(title[1])), console


@requires_program("chromium", install="apt-get install chromium")
def test_in_chromium_its_plots_tell_their_figures_to_pointer_and_keys(tmp_path: Path) -> None:
    summary = a_summary()
    seen, console = visited(page(summary), tmp_path)
    told = tips(svgs(page(summary))[2])  # after the two swatches of the legend
    assert console == []
    assert (seen["before"], seen["after"], seen["titles"]) == (None, None, 0)
    assert seen["heading"] == told[5][0][0]
    assert seen["hover"] == told[5][1:] and len(told[5]) == 3
    assert seen["swatches"] == 2
    assert (seen["next"], seen["end"]) == (told[6][0][0], told[-1][0][0])
    assert seen["inside"] is True


@requires_program("chromium", install="apt-get install chromium")
def test_in_chromium_a_tenant_can_be_hidden_and_is_then_in_no_tip(tmp_path: Path) -> None:
    seen, _ = visited(page(a_summary()), tmp_path, width=400)
    assert [row[0] for row in seen["hover"]] == ["victim", "crowd"]
    assert (seen["hidden"], seen["shown"]) == (True, True)
    assert [row[0] for row in seen["alone"]] == ["victim"]
    assert seen["wide"] is False, "a narrow screen has to scroll sideways"


@requires_program("chromium", install="apt-get install chromium")
@pytest.mark.parametrize(("dark", "ground"), [(False, "rgb(244, 245, 247)"), (True, "rgb(13, 16, 20)")])
def test_in_chromium_it_is_light_or_dark_as_the_reader_is(tmp_path: Path, dark: bool, ground: str) -> None:
    seen, _ = visited(page(a_summary()), tmp_path, dark=dark)
    assert seen["ground"] == ground


@requires_program("chromium", install="apt-get install chromium")
def test_in_chromium_no_script_runs_but_its_own(tmp_path: Path) -> None:
    foreign = '<script>document.title = "taken"</script></body>'
    dom, console = opened(page(a_strained_run()).replace("</body>", foreign), tmp_path)
    assert "<title>neighbours" in dom
    assert len(console) == 1 and "Content Security Policy" in console[0]
    dom, console = opened(page(a_strained_run()), tmp_path)
    assert console == []
    assert "came within</title>" not in dom, "its own script has not run"
