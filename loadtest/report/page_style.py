"""How the report looks and what it does under a pointer: one style sheet and one script, both of them ours.

Colours follow the reader's system, light or dark, and print on white. A line is told by its dash and its marks as well
as by its colour. The six colours are at least 0.1 apart in OKLab, also for eyes without red, green or blue cones
(matrices of Machado, Oliveira and Fernandes 2009; tests/loadtest/test_page.py computes it), and at least 3 : 1 on
their ground.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Final

from loadtest.report.series import MOST_SERIES

LIGHT_COLOURS: Final = ("#1657c4", "#e8641b", "#149a86", "#99145f", "#574200", "#b072f2")
DARK_COLOURS: Final = ("#8fbaff", "#ff9a2e", "#5ff0b4", "#f4408f", "#857c1c", "#6f6cf2")
LIGHT_GROUND: Final = "#ffffff"
DARK_GROUND: Final = "#161a20"
_DASHES: Final = ("none", "7 3", "2.5 2.5", "9 3 2 3")

_LIGHT = f"""color-scheme:light;--page:#f4f5f7;--card:{LIGHT_GROUND};--ink:#191c22;--soft:#5a6270;--rule:#d9dde3;
--grid:#e6e9ee;--hover:#1b6ef31f;--bad:#b3261e;--bad-ground:#fdecea;--fair:#8a5a00;--fair-ground:#fff4dc;--good:#0d6b4f;
--good-ground:#e6f4ee;--note:#47597a;--note-ground:#edf1f7;--even:#eef1f6;--odd:#f7f8fa;--rest:#7a828f;"""
_DARK = f"""color-scheme:dark;--page:#0d1014;--card:{DARK_GROUND};--ink:#e7eaef;--soft:#a2abb8;--rule:#333b47;
--grid:#272e38;--hover:#8fbaff2e;--bad:#ff8a80;--bad-ground:#3a1a1a;--fair:#ffc766;--fair-ground:#35280f;--good:#6fdcae;
--good-ground:#12301f;--note:#b3c5e6;--note-ground:#1c2534;--even:#1d232c;--odd:#191e26;--rest:#8b95a3;"""

_RULES = """
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif;-webkit-text-size-adjust:100%}
main{max-width:1120px;margin:0 auto;padding:28px 24px 64px}
h1{font-size:28px;line-height:1.2;margin:2px 0 6px;overflow-wrap:anywhere}
h2{font-size:20px;line-height:1.3;margin:40px 0 10px}
h3{font-size:15px;margin:0 0 2px}
p{margin:0 0 10px}
.soft,.kicker,figcaption,.lead{color:var(--soft)}
.kicker{font-size:13px;letter-spacing:.04em;margin:0}
.lead{margin:-6px 0 14px;max-width:92ch}
code,pre{font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
.facts{display:flex;flex-wrap:wrap;gap:2px 22px;margin:0;padding:0;font-size:14px}
.facts div{display:flex;gap:6px;min-width:0}
.facts dt{color:var(--soft)}
.facts dd{margin:0;overflow-wrap:anywhere;min-width:0}
.card,figure{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:16px;margin:0 0 16px}
.marks{margin:20px 0 0;display:grid;gap:10px}
.mark{border-radius:10px;border:1px solid;border-left-width:6px;padding:12px 16px;overflow-wrap:anywhere}
.mark h3{font-size:17px}
.mark p,.mark ul{margin:4px 0 0;color:var(--ink)}
.mark ul{padding-left:20px}
.mark.bad{color:var(--bad);background:var(--bad-ground)}
.mark.fair{color:var(--fair);background:var(--fair-ground)}
.mark.note{color:var(--note);background:var(--note-ground)}
.mark.good{color:var(--good);background:var(--good-ground)}
.cards{display:grid;gap:12px;grid-template-columns:repeat(auto-fit,minmax(min(100%,250px),1fr));margin:16px 0 0}
.cards .card{margin:0;padding:12px 16px 14px}
.cards h3{font-size:13px;font-weight:600;color:var(--soft)}
.big{font-size:28px;line-height:1.25;font-weight:650;font-variant-numeric:tabular-nums}
.big small{font-size:15px;font-weight:400;color:var(--soft)}
.bars{display:grid;grid-template-columns:minmax(0,auto) minmax(24px,1fr) auto;gap:5px 10px;align-items:center;
margin-top:6px;font-variant-numeric:tabular-nums}
.bars .name{overflow:hidden;text-overflow:ellipsis;white-space:nowrap;font-size:14px}
.bars b{text-align:right;font-weight:650}
.bars i{display:block;height:8px;border-radius:4px;background:var(--rest);min-width:2px}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:13px;font-variant-numeric:tabular-nums}
caption{text-align:left;font-weight:650;font-size:15px;padding:0 0 6px;overflow-wrap:anywhere}
th,td{padding:5px 7px;text-align:right;border-bottom:1px solid var(--rule);white-space:nowrap;vertical-align:top}
td.words,th .words{text-align:left}
thead th{color:var(--soft);font-weight:600;vertical-align:bottom}
thead tr.groups th{border-bottom:0;padding-bottom:0;text-align:center}
thead tr.groups th:not(:empty){box-shadow:inset 0 -1px var(--rule)}
.words{text-align:left;white-space:normal;overflow-wrap:anywhere;min-width:7ch}
th:first-child{text-align:left}
tbody th{text-align:left;font-weight:500;white-space:normal;overflow-wrap:anywhere;min-width:9ch}
tbody tr.all th,tbody tr.all td{font-weight:650;border-top:2px solid var(--rule)}
td.over{color:var(--bad);font-weight:650}
.card .scroll+.scroll,.below+.scroll{margin-top:16px}
.below{margin:8px 0 0;font-size:13px;color:var(--soft)}
details{margin:0 0 16px}
summary{cursor:pointer;padding:6px 0;font-weight:600}
.legend{position:sticky;top:0;z-index:2;display:flex;flex-wrap:wrap;gap:4px 6px;align-items:center;
background:var(--page);padding:8px 0;margin:10px 0 6px;border-bottom:1px solid var(--rule)}
.legend button{display:inline-flex;align-items:center;gap:6px;max-width:230px;background:none;color:inherit;
border:1px solid transparent;border-radius:6px;padding:3px 7px;font:inherit;font-size:13px;cursor:pointer}
.legend button span{overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.legend button:hover,.legend button:focus-visible{border-color:var(--soft)}
.legend button[aria-pressed=false]{opacity:.45;text-decoration:line-through}
.legend .soft{font-size:13px}
svg.swatch{width:28px;height:12px;flex:none;overflow:visible}
figcaption{font-size:13.5px;margin:0 0 10px;max-width:92ch}
.facets{display:grid;gap:14px 18px;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr))}
.facets.three{grid-template-columns:repeat(auto-fit,minmax(min(100%,290px),1fr))}
.pair{display:grid;gap:16px;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr))}
.pair figure{margin:0}
.facets h4{margin:0 0 2px;font-size:14px;overflow-wrap:anywhere}
svg{display:block;width:100%;height:auto;overflow:visible;touch-action:pan-x pan-y}
svg:focus-visible{outline:2px solid var(--c0);outline-offset:3px;border-radius:4px}
svg text{font-size:12px;fill:var(--ink)}
svg .tick,svg .title{fill:var(--soft)}
svg .head,svg .label{font-weight:600}
svg .halo{paint-order:stroke;stroke:var(--card);stroke-width:4px;stroke-linejoin:round}
.wide svg{min-width:680px}
.grid{stroke:var(--grid);fill:none}
.axis{stroke:var(--soft);fill:none}
.edge{stroke:var(--rule);fill:none}
.line,.thin,.whisker,.ghost,.rss{fill:none;stroke:var(--c);stroke-width:2;stroke-linejoin:round}
.thin{stroke-width:1.2;opacity:.8}
.rss{stroke-width:1}
.ghost{stroke-width:1.6;stroke-dasharray:1.5 3.5;stroke-linecap:round}
.band{fill:var(--c);fill-opacity:.2;stroke:none}
.shape{fill:var(--c);stroke:var(--c);stroke-width:1.6}
.hollow{fill:var(--card);stroke:var(--c);stroke-width:2}
.cross{fill:none;stroke:var(--c);stroke-width:2.2}
.failed{fill:var(--bad)}
.phase.even{fill:var(--even)}
.phase.odd{fill:var(--odd)}
.phase.uncounted{fill:var(--rule);fill-opacity:.55}
.stripe{fill:var(--odd)}
.bracket{fill:var(--bad);fill-opacity:.13}
.saturation{stroke:var(--bad);stroke-width:1.6;fill:none}
.reference{stroke:var(--soft);stroke-width:1.4;stroke-dasharray:5 4;fill:none}
.objective{stroke:var(--good);stroke-width:1.4;stroke-dasharray:8 4;fill:none}
.hit{fill:transparent;outline:none}
.hit.on{fill:var(--hover)}
.rest,.plain{--c:var(--rest)}
.ink{--c:var(--ink)}
.line.dashed{stroke-dasharray:6 3}
.line.rest{stroke-dasharray:1 2}
.line.solid{stroke-dasharray:none}
#tip{position:fixed;z-index:9;left:0;top:0;max-width:min(94vw,560px);padding:8px 11px;border-radius:8px;font-size:13px;
background:var(--card);color:var(--ink);border:1px solid var(--soft);box-shadow:0 4px 18px #0004;pointer-events:none}
#tip table{width:auto}
#tip td{border:0;padding:1px 0 1px 12px}
#tip td:first-child{text-align:left;padding-left:0;white-space:normal;overflow-wrap:anywhere;max-width:240px}
#tip b{display:block;margin-bottom:3px;overflow-wrap:anywhere}
#tip svg.swatch{display:inline-block;vertical-align:-1px;margin-right:6px}
pre{margin:0;white-space:pre-wrap;overflow-wrap:anywhere}
.how{margin:0}
.how dt:first-child{margin-top:0}
.how dt{font-weight:650;margin-top:10px}
.how dd{margin:0;max-width:90ch}
footer{margin-top:36px;color:var(--soft);font-size:13px}
@media (max-width:640px){main{padding:18px 12px 48px}h1{font-size:23px}h2{margin-top:30px}
.card,figure{padding:12px 10px}.facets svg text{font-size:13px}}
@media print{body{font-size:12px}main{max-width:none;padding:0}.legend{position:static}.card,figure,.mark,tr
{break-inside:avoid}h2,h3,caption{break-after:avoid}.scroll{overflow:visible}.wide svg{min-width:0}
.phase,.band,.bracket,.bars i,.mark{print-color-adjust:exact;-webkit-print-color-adjust:exact}
table{font-size:10px}th,td{padding:2px 4px}#tip{display:none}}
"""

SCRIPT: Final = """
(() => {
  const page = document.querySelector("main"), tip = document.getElementById("tip");
  const buttons = [...document.querySelectorAll(".legend button")];
  const owner = new Map(buttons.map(button => [button.dataset.label, button]));
  for (const hit of document.querySelectorAll(".hit")) {
    const title = hit.querySelector("title");
    hit.told = title.textContent;
    title.remove();
  }
  let shown = null;
  const hide = () => {
    if (shown) shown.classList.remove("on");
    shown = null;
    tip.hidden = true;
  };
  const show = (hit, x, y) => {
    if (hit !== shown) {
      hide();
      shown = hit;
      hit.classList.add("on");
      const [heading, ...rows] = hit.told.split("\\n");
      const head = document.createElement("b"), table = document.createElement("table");
      head.textContent = heading;
      for (const row of rows) {
        const cells = row.split("\\t"), button = owner.get(cells[0]);
        if (button && button.getAttribute("aria-pressed") === "false") continue;
        const line = table.insertRow();
        for (const cell of cells) line.insertCell().textContent = cell;
        if (button) line.cells[0].prepend(button.querySelector("svg").cloneNode(true));
      }
      tip.replaceChildren(head, table);
      tip.hidden = false;
    }
    const { width, height } = tip.getBoundingClientRect();
    const left = x + 16 + width > innerWidth ? x - 16 - width : x + 16;
    tip.style.left = `${Math.max(Math.min(left, innerWidth - width - 6), 6)}px`;
    tip.style.top = `${Math.max(Math.min(y + 14, innerHeight - height - 6), 6)}px`;
  };
  for (const svg of document.querySelectorAll("svg[tabindex]")) {
    const hits = [...svg.querySelectorAll(".hit")];
    const point = event => {
      const hit = event.target.closest(".hit");
      if (hit) show(hit, event.clientX, event.clientY);
      else hide();
    };
    svg.addEventListener("pointermove", point);
    svg.addEventListener("pointerdown", point);
    svg.addEventListener("pointerleave", event => event.pointerType === "mouse" && hide());
    svg.addEventListener("blur", hide);
    svg.addEventListener("keydown", event => {
      const at = hits.indexOf(shown), last = hits.length - 1;
      const next = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at < 0 ? last : at - 1,
        ArrowUp: at < 0 ? last : at - 1, Home: 0, End: last }[event.key];
      if (event.key === "Escape") hide();
      if (next === undefined) return;
      event.preventDefault();
      const hit = hits[Math.max(0, Math.min(next, last))], box = hit.getBoundingClientRect();
      show(hit, box.right, box.top + Math.min(box.height / 3, 80));
    });
  }
  document.addEventListener("pointerdown", event => event.target.closest("svg[tabindex]") || hide());
  addEventListener("scroll", hide, { passive: true });
  for (const button of buttons) {
    const css = button.dataset.css;
    button.addEventListener("click", () => {
      const off = page.classList.toggle(`off-${css}`);
      button.setAttribute("aria-pressed", String(!off));
    });
    button.addEventListener("pointerenter", () => { page.dataset.only = css; });
    button.addEventListener("pointerleave", () => { delete page.dataset.only; });
  }
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(one => { one.open = true; }));
})();
"""


def style() -> str:
    """The style sheet."""
    rules = [_RULES]
    for at in range(MOST_SERIES):
        rules.append(f".t{at}{{--c:var(--c{at % len(LIGHT_COLOURS)})}}")
        # twelve pairs of colour and dash, no two the same
        dash = _DASHES[(at + at // len(LIGHT_COLOURS)) % len(_DASHES)]
        if dash != "none":
            rules.append(f".line.t{at}:not(.solid){{stroke-dasharray:{dash}}}")
    for css in (*(f"t{at}" for at in range(MOST_SERIES)), "rest"):
        rules.append(f".off-{css} .series.{css}{{display:none}}")
        rules.append(f"[data-only={css}] .series:not(.{css}){{opacity:.12}}")
    return (
        f":root{{{_LIGHT}{_variables(LIGHT_COLOURS)}}}"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{_DARK}{_variables(DARK_COLOURS)}}}}}"
        f"{''.join(rules)}"
    )


def policy() -> str:
    """A content security policy under which nothing is loaded, and no script runs but ours."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none';"
        " form-action 'none'"
    )


def _variables(colours: tuple[str, ...]) -> str:
    return "".join(f"--c{at}:{colour};" for at, colour in enumerate(colours))
