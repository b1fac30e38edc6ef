"""The command lines of `penstock loadtest`, and the help that teaches them.

Words become a namespace here, whose `action` says what is to be done: run, sweep, soak, compare, selfcheck or report.
Only the form of words is judged, and where results are to be written, so that no run ends with nowhere to put them;
what a load says is read under the keys of a scenario (`option_values`), with the same faults as a file.
"""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from loadtest.reading import option_words, usage
from loadtest.reading.option_values import scenario_of

__all__ = ["ACTIONS", "parse", "parser_for", "scenario_of"]

FORMATS = ("vllm", "aiperf")
DEFAULT_FAIL_OVER = 0.1

Words = Sequence[str]

# ---- words to a namespace ------------------------------------------------------------------------------------------


def parse(words: Words, parser_class: type[argparse.ArgumentParser] = argparse.ArgumentParser) -> argparse.Namespace:
    """The namespace of the words after `penstock loadtest`, with `action`.

    Misuse ends with `SystemExit` 2 and --help with 0, as argparse does.
    """
    action, parser, rest = parser_for(words, parser_class)
    args, unknown = parser.parse_known_args(rest)
    if unknown:
        _refuse(parser, unknown[0])
    args.action = action
    if action in ("run", "sweep", "soak"):
        _check_load(parser, args)
        _check_outputs(parser, args)
    return args


def parser_for(
    words: Words, parser_class: type[argparse.ArgumentParser]
) -> tuple[str, argparse.ArgumentParser, list[str]]:
    """The action that the words name first (none: `run`), its parser, and the words that are left for it."""
    action, rest = (words[0], list(words[1:])) if words and words[0] in ACTIONS else ("run", list(words))
    add, description, epilog = ACTIONS[action]
    parser = parser_class(
        prog=usage.PROG if action == "run" else f"{usage.PROG} {action}",
        usage=usage.USAGES.get(action),
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if action == "run" and rest and (near := _mistyped(rest[0])) is not None:
        parser.error(f"there is no action {rest[0]!r}; did you mean {near!r}?")
    add(parser)
    return action, parser, rest


def _mistyped(word: str) -> str | None:
    """The action that was probably meant by a word that is neither an option nor like a URL."""
    if word.startswith("-") or any(mark in word for mark in ":./"):
        return None
    near = difflib.get_close_matches(word, [action for action in ACTIONS if action != "run"], n=1)
    return near[0] if near else None


def _refuse(parser: argparse.ArgumentParser, word: str) -> NoReturn:
    near = difflib.get_close_matches(word.split("=")[0], list(parser._option_string_actions), n=1)
    parser.error(f"unknown argument {word!r}" + (f"; did you mean {near[0]}?" if near else ""))


def _check_load(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Whether it is said what is called and how, and whether each option has the one that it belongs to."""
    if args.file is None and not args.url:
        parser.error("say what to call: a URL such as http://127.0.0.1:8080/v1, or a scenario with -f FILE")
    trace = getattr(args, "trace", None)
    if args.file is None and args.rate is None and args.users is None and trace is None:
        ranges = args.action == "sweep"
        choices = "--rate 10-1000 or --users 1-512" if ranges else "--users 100, --rate 20 or --trace FILE"
        parser.error(f"say how calls come: {choices}, or a scenario with -f FILE")
    needs = {
        "--arrivals": ("rate", args.arrivals),
        "--burstiness": ("rate", args.burstiness),
        "--think": ("users", args.think),
        **{f"--{name}": ("trace", getattr(args, name, None)) for name in ("speed", "split", "columns", "clip", "skip")},
    }
    for option, (needed, value) in needs.items():
        if value is not None and args.file is None and getattr(args, needed, None) is None:
            parser.error(f"{option} goes with --{needed}")


def _check_outputs(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Whether everything that is to be written has a place of its own."""
    if (args.format is None) != (args.out is None):
        parser.error("--format and --out go together: --format vllm --out bench.json")
    if args.gaps and args.jsonl is None and args.format != "aiperf":
        parser.error("--gaps needs a place: --jsonl FILE, or --format aiperf --out FILE")
    read = {"-f": args.file, "--trace": getattr(args, "trace", None)}
    taken = {Path(file).absolute(): option for option, file in read.items() if file is not None}
    for option in ("--json", "--jsonl", "--html", "--out"):
        file = getattr(args, option[2:])
        if file is None:
            continue
        path = Path(file).absolute()
        is_folder = option == "--out" and args.format == "aiperf"
        if path in taken:
            parser.error(f"{option}: {file} is the file of {taken[path]}, too")
        if not path.parent.is_dir():
            parser.error(f"{option}: there is no folder {path.parent}")
        if path.exists() and path.is_dir() != is_folder:
            parser.error(f"{option}: {file} is {'no' if is_folder else 'a'} folder")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            parser.error(f"{option}: {file} may not be written")
        taken[path] = option


# ---- the options of each action ------------------------------------------------------------------------------------


def _add_run(parser: argparse.ArgumentParser) -> None:
    _add_target(parser)
    _add_load(parser, is_soak=False)
    _add_calls(parser)
    _add_judging(parser)
    _add_outputs(parser)
    _add_server(parser)


def _add_sweep(parser: argparse.ArgumentParser) -> None:
    _add_target(parser)
    group = parser.add_argument_group("how the load rises (in place of a number of its own)")
    group.add_argument("-f", "--file", metavar="FILE", help="a scenario (YAML), for several tenants")
    either = group.add_mutually_exclusive_group()
    either.add_argument(
        "--rate", type=option_words.rising, metavar="FROM-TO", help="open loop: calls a second, such as 10-1000"
    )
    either.add_argument(
        "--users", type=option_words.rising, metavar="FROM-TO", help="closed loop: users, such as 1-512"
    )
    group.add_argument("--step", metavar="TIME", help="how long each load lasts (default 20s)")
    group.add_argument("--factor", metavar="X", help="from one load to the next (default 1.5)")
    group.add_argument(
        "--within", metavar="SHARE", help="how near the loads that just hold and just do not must come (default 5%%)"
    )
    _add_arrivals(group)
    _add_warmup(group, "0s")
    _add_calls(parser)
    _add_judging(parser)
    _add_outputs(parser)
    _add_server(parser)


def _add_soak(parser: argparse.ArgumentParser) -> None:
    _add_target(parser)
    _add_load(parser, is_soak=True)
    _add_calls(parser)
    _add_judging(parser)
    _add_outputs(parser)
    group = _add_server(parser, is_needed=True)
    group.add_argument(
        "--most-growth",
        type=option_words.size,
        metavar="SIZE",
        help="exit code 1 where its RSS surely grows by more an hour, such as 8Mi (the confidence's lower end)",
    )


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("before", metavar="A", help="a result of --json, the one before")
    parser.add_argument("after", metavar="B", help="the one after")
    parser.add_argument(
        "--fail-over",
        type=option_words.share,
        default=DEFAULT_FAIL_OVER,
        metavar="SHARE",
        help="exit code 1 where a figure became worse by more than this, and not by chance (default 10%%)",
    )
    parser.add_argument("--anyway", action="store_true", help="compare what should not be compared")


def _add_selfcheck(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="fewer calls, wider tolerances")


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("summary", metavar="SUMMARY.json", help="a result that --json has written")
    parser.add_argument("--html", metavar="FILE", help="write the page, too")


def _add_target(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is called")
    group.add_argument(
        "url",
        nargs="*",
        metavar="URL",
        help="base URL as SDKs take it; one without a path gets /v1. Several are called in turn, as one service",
    )
    group.add_argument("--model", metavar="NAME", help="the model that is asked for; required without -f")
    group.add_argument(
        "--key",
        metavar="KEY",
        help="the API key; left out: PENSTOCK_LOADTEST_KEY or else OPENAI_API_KEY of the environment. A key on the "
        "command line is visible to everybody on this machine",
    )
    group.add_argument("--endpoint", metavar="NAME", help="chat (default) or completions")
    group.add_argument("--timeout", metavar="TIME", help="after which a call is left and has failed (default 2m)")
    group.add_argument(
        "--body", type=option_words.json_object, metavar="JSON", help="further keys of each request's body"
    )
    group.add_argument("--no-stream", action="store_const", const="false", help="ask for whole answers")
    group.add_argument(
        "--usage",
        metavar="HOW",
        help="how a reported usage is held against what came: bounded (default), exact (one event a token), off",
    )


def _add_load(parser: argparse.ArgumentParser, *, is_soak: bool) -> None:
    group = parser.add_argument_group("how calls come (one of -f, --users, --rate and --trace)")
    either = group.add_mutually_exclusive_group()
    either.add_argument("-f", "--file", metavar="FILE", help="a scenario (YAML): tenants, keys, mixes, phases")
    either.add_argument("--users", metavar="N", help="closed loop: so many users; blind to stalls")
    either.add_argument("--rate", metavar="X", help="open loop: calls a second, whatever became of those before")
    either.add_argument("--trace", metavar="FILE", help="the calls of a CSV file with times and token counts")
    duration = "1h" if is_soak else "30s"
    group.add_argument(
        "--duration", metavar="TIME", help=f"how long (default {duration}; with --trace: until the trace ends)"
    )
    _add_warmup(group, "1m" if is_soak else "0s")
    _add_arrivals(group)
    group.add_argument("--speed", metavar="X", help="of the trace: 20 is an hour in three minutes (default 1)")
    group.add_argument(
        "--split",
        type=option_words.split,
        metavar="NAME=WEIGHT,…",
        help="share the trace's clients, or rows, among tenants: a=1,b=3. With keys from the environment: "
        "a=1@A_KEY,b=3@B_KEY",
    )
    group.add_argument(
        "--columns",
        type=option_words.columns,
        metavar="time=…,input=…,output=…",
        help="the trace's columns, and client=… if it has one; needed where its header is not known",
    )
    group.add_argument("--clip", metavar="TOKENS", help="cut the input of calls beyond this context; they are counted")
    group.add_argument("--skip", metavar="TOKENS", help="leave such calls out; they are counted")


def _add_arrivals(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--arrivals", metavar="KIND", help="with --rate: poisson (default), constant or gamma")
    group.add_argument(
        "--burstiness", metavar="X", help="with --rate: gamma arrivals of this shape; below 1 burstier than Poisson"
    )
    group.add_argument(
        "--think", type=option_words.ends, metavar="TIME", help="with --users: pause before the next call; 1s, 1s-5s"
    )


def _add_warmup(group: argparse._ArgumentGroup, default: str) -> None:
    group.add_argument("--warmup", metavar="TIME", help=f"load that is not counted, at the start (default {default})")


def _add_calls(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is asked")
    group.add_argument(
        "--input", type=option_words.ends, metavar="TOKENS", help="prompts: 512, or 64-2048 (default 128)"
    )
    group.add_argument(
        "--output", type=option_words.ends, metavar="TOKENS", help="answers at most: 64, or 1-256 (default 64)"
    )
    group.add_argument(
        "--cancel",
        type=option_words.cancel,
        metavar="SHARE@TOKENS",
        help="leave a share of the calls after so many events: 10%%@1-32",
    )
    group.add_argument(
        "--shared-prefix",
        metavar="SHARE",
        help="the part of each prompt that all begin with (default 0%%: each begins with a nonce of its own)",
    )
    group.add_argument("--seed", metavar="N", help="the same seed draws the same arrivals and sizes (default 0)")


def _add_judging(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is judged, and where it ends")
    group.add_argument(
        "--objective",
        type=option_words.objective,
        action="append",
        metavar="WHAT=TIME",
        help="what a good call keeps: ttft=500ms, itl=50ms, tpot=50ms, e2e=30s; may be repeated",
    )
    group.add_argument(
        "--most-failed",
        type=option_words.share,
        metavar="SHARE",
        help="exit code 1 where a greater share of the calls failed, refusals among them (default: where all did)",
    )
    group.add_argument("--max-requests", metavar="N", help="calls in all (default 100k, or what --rate asks for)")
    group.add_argument(
        "--max-streams", metavar="N", help="calls open at once (default: what this machine allows, up to 10,000)"
    )
    group.add_argument("--yes", action="store_true", help="do not ask before loading what is not loopback")


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what comes out")
    group.add_argument("--json", metavar="FILE", help="everything found, as JSON: for `compare` and `report`")
    group.add_argument("--jsonl", metavar="FILE", help="one line for each call")
    group.add_argument("--html", metavar="FILE", help="one page with plots, nothing else needed")
    group.add_argument("--format", choices=FORMATS, help="also results as this tool leaves them, for its readers")
    group.add_argument(
        "--out",
        metavar="FILE",
        help="where those go: for vllm a file (with several phases, one each), for aiperf a folder",
    )
    group.add_argument("--gaps", action="store_true", help="each call's raw gaps, in --jsonl and aiperf's format")
    group.add_argument("--plain", action="store_true", help="lines in place of the live view")
    group.add_argument("--name", metavar="TEXT", help="what the report is called")


def _add_server(parser: argparse.ArgumentParser, *, is_needed: bool = False) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("the server's side")
    group.add_argument(
        "--pid",
        type=option_words.pid,
        required=is_needed,
        metavar="N",
        help="of the server, on this machine: its CPU a chunk and a request, and its RSS, with all its children",
    )
    group.add_argument(
        "--metrics",
        type=option_words.http_url,
        action="append",
        metavar="URL",
        help="its /metrics: its own counts beside the client's; may be repeated",
    )
    return group


_Add = Callable[[argparse.ArgumentParser], None]

ACTIONS: dict[str, tuple[_Add, str, str]] = {
    "run": (_add_run, usage.RUN, usage.RUN_MORE),
    "sweep": (_add_sweep, usage.SWEEP, usage.SWEEP_MORE),
    "soak": (_add_soak, usage.SOAK, usage.SOAK_MORE),
    "compare": (_add_compare, usage.COMPARE, usage.COMPARE_MORE),
    "selfcheck": (_add_selfcheck, usage.SELFCHECK, usage.SELFCHECK_MORE),
    "report": (_add_report, usage.REPORT, usage.REPORT_MORE),
}
"""Every action: how its options are declared, and what its help says before and after them."""
