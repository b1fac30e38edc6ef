"""Command lines of the load tester: what they mean, how misuse is answered, and that --help teaches."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.cli import _Parser
from loadtest.reading import usage
from loadtest.reading.faults import ScenarioError
from loadtest.reading.options import ACTIONS, parse, parser_for, scenario_of
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

URL = "http://127.0.0.1:8080/v1"
USERS = f"{URL} --model m --users 100"
RATE = f"{URL} --model m --rate 20"
SCENARIO = """\
target: {url: "http://127.0.0.1:1/v1", model: m}
tenants: [{name: a, key: k, arrivals: {kind: poisson, rate: 3}}, {name: b, arrivals: {kind: constant, rate: 1}}]
"""
PHASES = "phases: [{name: p, duration: 9s}]\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "t.csv").touch()
    (tmp_path / "s.yaml").write_text(SCENARIO + PHASES)
    (tmp_path / "open.yaml").write_text(SCENARIO)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def scenario(words: str, folder: Path, **env: str) -> Scenario:
    return scenario_of(parse(shlex.split(words)), env, folder)


def faults_of(words: str, folder: Path, **env: str) -> list[str]:
    with pytest.raises(ScenarioError) as caught:
        scenario(words, folder, **env)
    return [str(fault) for fault in caught.value.faults]


def misuse(words: str, capsys: pytest.CaptureFixture[str], parser: type[argparse.ArgumentParser] = _Parser) -> str:
    with pytest.raises(SystemExit) as ended:
        parse(shlex.split(words), parser)
    assert ended.value.code == 2
    return capsys.readouterr().err


# ---- one-liners ----------------------------------------------------------------------------------------------------


def test_users_are_a_closed_loop(folder: Path) -> None:
    assert scenario(f"{USERS} --duration 1m --think 1s-5s", folder) == Scenario(
        target=Target(URL, "m"),
        tenants=(Tenant("load", arrivals=Arrivals("closed", users=100, think=Span(1.0, 5.0))),),
        phases=(Phase("main", 60.0, ("load",)),),
        bounds=Bounds(60.0, 100_000, None),
    )


@pytest.mark.parametrize(
    ("more", "arrivals"),
    [
        ("", Arrivals("poisson", 20.0)),
        ("--arrivals constant", Arrivals("constant", 20.0)),
        ("--burstiness 0.5", Arrivals("gamma", 20.0, 0.5)),
        ("--arrivals gamma --burstiness 2", Arrivals("gamma", 20.0, 2.0)),
    ],
)
def test_a_rate_is_an_open_loop(more: str, arrivals: Arrivals, folder: Path) -> None:
    run = scenario(f"{RATE} {more}", folder)
    assert run.tenants == (Tenant("load", arrivals=arrivals),)
    assert run.phases == (Phase("main", 30.0, ("load",)),)


def test_a_trace_runs_to_its_end_or_for_its_duration(folder: Path) -> None:
    words = f"{URL} --model m --trace t.csv"
    run = scenario(words, folder)
    assert run.trace == Trace(str(folder / "t.csv"), {"load": 1.0})
    assert (run.tenants, run.phases) == ((Tenant("load"),), (Phase("main", None, ("load",)),))
    more = "--duration 5m --speed 20 --skip 4k --columns time=T,input=I,output=O,client=C"
    run = scenario(f"{words} {more}", folder)
    assert run.trace == Trace(
        str(folder / "t.csv"), {"load": 1.0}, 20.0, Columns("T", "I", "O", "C"), context=4000, over="skip"
    )
    assert run.phases == (Phase("main", 300.0, ("load",)),)


def test_a_trace_can_be_split_among_tenants_with_keys_of_their_own(folder: Path) -> None:
    words = f"{URL} --model m --trace t.csv --split a=1@A_KEY,b=3 --cancel 10%@2-9 --clip 2048"
    run = scenario(words, folder, A_KEY="sk-a", OPENAI_API_KEY="sk-o")
    cancel = Cancel(0.1, Span(2, 9))
    assert run.tenants == (Tenant("a", "sk-a", cancel=cancel), Tenant("b", "sk-o", cancel=cancel))
    assert [tenant.key for tenant in run.tenants] == ["sk-a", "sk-o"]
    assert run.trace is not None and (run.trace.split, run.trace.context) == ({"a": 1.0, "b": 3.0}, 2048)


def test_every_option_of_target_calls_and_bounds_arrives(folder: Path) -> None:
    words = (
        "http://a --model m http://b --rate 20 --endpoint completions --timeout 30s --usage off --no-stream --seed 9 "
        "--warmup 5s --input 512 --output 1-256 --shared-prefix 80% --max-requests 5k --max-streams 300 "
        "--objective ttft=500ms --objective e2e=30s --body '{\"temperature\": 0}' --key sk-1"
    )
    with pytest.raises(SystemExit):  # URLs stand together
        parse(shlex.split(words))
    run = scenario(words.replace("http://a --model m http://b", "--model m http://a http://b"), folder)
    assert run == Scenario(
        target=Target("http://a/v1", "m", "completions", 30.0, "off", False, {"temperature": 0}, ("http://b/v1",)),
        tenants=(Tenant("load", "sk-1", Arrivals("poisson", 20.0), Span(512, 512), Span(1, 256), shared_prefix=0.8),),
        phases=(Phase("main", 30.0, ("load",)),),
        seed=9,
        warmup_seconds=5.0,
        objectives=Objectives(ttft=0.5, e2e=30.0),
        bounds=Bounds(35.0, 5000, 300),
    )
    assert run.tenants[0].key == "sk-1"


def test_cancelled_calls_are_left_within_32_events_where_nothing_is_said(folder: Path) -> None:
    assert scenario(f"{USERS} --cancel 5%", folder).tenants[0].cancel == Cancel(0.05, Span(1, 32))


@pytest.mark.parametrize(
    ("more", "env", "key"),
    [
        ("", {}, ""),
        ("", {"OPENAI_API_KEY": "sk-o"}, "sk-o"),
        ("", {"OPENAI_API_KEY": "sk-o", "PENSTOCK_LOADTEST_KEY": "sk-p"}, "sk-p"),
        ("", {"OPENAI_API_KEY": "sk-o", "PENSTOCK_LOADTEST_KEY": ""}, "sk-o"),
        ("--key sk-k", {"OPENAI_API_KEY": "sk-o", "PENSTOCK_LOADTEST_KEY": "sk-p"}, "sk-k"),
    ],
)
def test_the_key_comes_from_the_option_or_from_the_environment(
    more: str, env: dict[str, str], key: str, folder: Path
) -> None:
    assert scenario(f"{USERS} {more}", folder, **env).tenants[0].key == key


def test_a_sweep_goes_from_one_load_to_another(folder: Path) -> None:
    run = scenario(f"sweep {URL} --model m --rate 10-1000 --step 30s --factor 2 --within 10% --burstiness 0.5", folder)
    assert run.sweep == Sweep("rate", 10.0, 1000.0, 2.0, 30.0, 0.1)
    assert run.tenants == (Tenant("load", arrivals=Arrivals("gamma", 10.0, 0.5)),)
    assert run.bounds.seconds > 10 * 30
    run = scenario(f"sweep {URL} --model m --users 1-512", folder)
    assert run.sweep == Sweep("users", 1.0, 512.0)
    assert run.tenants == (Tenant("load", arrivals=Arrivals("closed", users=1)),)


def test_a_soak_lasts_an_hour_after_a_warm_up_and_is_not_cut_short_by_calls(folder: Path) -> None:
    words = f"soak {USERS} --pid 1"
    run = scenario(words, folder)
    assert (run.warmup_seconds, run.phases[0].seconds) == (60.0, 3600.0)
    assert run.bounds == Bounds(3660.0, 1_000_000_000, None)
    run = scenario(f"{words} --warmup 1s --duration 2s --max-requests 7", folder)
    assert (run.warmup_seconds, run.phases[0].seconds, run.bounds.requests) == (1.0, 2.0, 7)


# ---- over a file ---------------------------------------------------------------------------------------------------


def test_a_file_says_what_is_run(folder: Path) -> None:
    run = scenario("-f s.yaml", folder, OPENAI_API_KEY="sk-o")
    assert run.phases == (Phase("p", 9.0, ("a", "b")),)
    assert [tenant.key for tenant in run.tenants] == ["k", ""]  # the environment's is for one-liners


def test_options_that_change_no_load_may_speak_over_a_file(folder: Path) -> None:
    words = "-f s.yaml http://b --model other --seed 9 --warmup 2s --objective itl=1s --max-requests 3 --timeout 5s"
    run = scenario(words, folder)
    assert run.target == Target("http://b/v1", "other", timeout_seconds=5.0)
    assert (run.seed, run.warmup_seconds, run.objectives) == (9, 2.0, Objectives(itl=1.0))
    assert run.bounds == Bounds(11.0, 3, None)
    assert scenario("-f open.yaml --duration 3s", folder).phases == (Phase("main", 3.0, ("a", "b")),)


def test_options_that_change_a_load_may_not(folder: Path) -> None:
    assert faults_of("-f s.yaml --input 5 --key sk-x --duration 3s --seed x", folder) == [
        "--duration: cannot go with a file that has phases; change the file",
        "--key: cannot go with -f: the scenario says it; change the file",
        "--input: cannot go with -f: the scenario says it; change the file",
        "--seed: 'x' is not a whole number; write 600, 100k (100,000) or 128Ki (131,072)",
    ]


def test_a_trace_in_a_file_is_relative_to_the_file(folder: Path) -> None:
    (folder / "below").mkdir()
    text = 'target: {url: "http://a", model: m}\ntenants: [{name: a}]\ntrace: {file: ../t.csv}\n'
    (folder / "below" / "s.yaml").write_text(text)
    trace = scenario("-f below/s.yaml", folder).trace
    assert trace is not None and Path(trace.file).samefile(folder / "t.csv")


def test_a_sweep_over_a_file_takes_the_loads_from_options(folder: Path) -> None:
    assert scenario("sweep -f open.yaml --rate 4-8 --step 1s", folder).sweep == Sweep("rate", 4.0, 8.0, 1.5, 1.0)
    assert faults_of("sweep -f open.yaml", folder) == [
        "open.yaml: sweep: is missing; add `sweep` to the file, or say --rate 10-1000 or --users 1-512",
    ]
    found = [fault.split(";")[0] for fault in faults_of("sweep -f s.yaml --users 4-8", folder)]
    assert found == [
        "s.yaml:2: tenants[0].arrivals.kind: poisson does not rise with a sweep of users",
        "s.yaml:2: tenants[1].arrivals.kind: constant does not rise with a sweep of users",
        "s.yaml:3: phases: a sweep makes its own",
    ]


def test_a_soak_holds_one_load(folder: Path) -> None:
    (folder / "w.yaml").write_text(SCENARIO + "sweep: {of: rate, from: 1, to: 2}")
    assert scenario("-f w.yaml", folder).sweep == Sweep("rate", 1.0, 2.0)
    assert faults_of("soak -f w.yaml --pid 1", folder) == [
        "w.yaml: sweep: is no load that could be held; leave it out of a soak"
    ]


def test_a_fault_in_a_file_has_its_line_and_a_fault_of_an_option_its_name(folder: Path) -> None:
    (folder / "x.yaml").write_text('target: {url: "${U}", model: m}\ntenants: 3\n' + PHASES)
    assert faults_of("-f x.yaml --max-streams 0", folder, U="secret") == [
        "--max-streams: must be from 1 to 1,000,000, not 0",
        "x.yaml:1: target.url: what ${U} holds cannot stand here; it must be a URL, or list (URL)",
        "x.yaml:2: tenants: must be a list, not a number; begin each entry with `- `",
    ]
    assert faults_of("-f x.yaml ftp://b", folder, U="secret")[0].startswith("URL: does not begin with http://")


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (lambda path: None, "x.yaml: cannot be read: No such file or directory; write the path of a scenario"),
        (lambda path: path.mkdir(), "x.yaml: cannot be read: Is a directory; write the path of a scenario"),
        (lambda path: path.write_bytes(b"\xff"), "x.yaml: cannot be read: it is not UTF-8 text; write the path of"),
        (lambda path: path.write_text(""), "x.yaml: is empty; begin with `target:`"),
    ],
)
def test_a_file_that_cannot_be_read_is_told_so(make: Callable[[Path], object], fault: str, folder: Path) -> None:
    make(folder / "x.yaml")
    (found,) = faults_of("-f x.yaml --seed 3", folder)
    assert found.startswith(fault)


# ---- faults of options ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "faults"),
    [
        (f"{URL} --users 1", ["--model: is missing; add it: the model that is asked for"]),
        ("localhost:80 --model m --users 1", ['URL: does not begin with http:// or https://; write "http://127.0.0.1']),
        (f"{URL} --model m --users 0", ["--users: must be from 1 to 1,000,000, not 0"]),
        (f"{URL} --model m --rate=-1", ["--rate: must be more than 0, not -1"]),
        (f"{RATE} --arrivals posson", ["--arrivals: 'posson' is none of constant, poisson, gamma, closed; did you me"]),
        (f"{RATE} --arrivals constant --burstiness 2", ["--burstiness: means nothing to constant arrivals; write kin"]),
        (f"{RATE} --input 64-2", ["--input: begins above its end: '64' is more than '2'; write 512, or 64-2048 to dr"]),
        (f"{RATE} --input 1-2-3", ["--input: must be one count or two, not 3; write 512, or 64-2048 to draw evenly"]),
        (f"{USERS} --think 5s-1s", ["--think: begins above its end: '5s' is more than '1s'; write 1s, or 1s-5s to dr"]),
        (f"{RATE} --objective tfft=3s", ["--objective tfft: unknown key; did you mean 'ttft'?"]),
        (f"{RATE} --objective ttft=3x", ["--objective ttft: '3x' is not a duration; write 10s, 5m, 1h30m or 250ms"]),
        (f"{RATE} --cancel 200%", ["--cancel share: '200%' is not between 0% and 100%; write 20% or 0.2"]),
        (f"{RATE} --cancel 10%@64-99", ["--cancel afterTokens: comes after the end: answers have at most 64 tokens"]),
        (f"{RATE} --cancel 10% --no-stream", ["--cancel: counts a stream's events, and answers are not streamed"]),
        (f"{RATE} --body '{{\"stream\": 1}}'", ["--body stream: is written by the load tester; set `target.stream`"]),
        (f"{RATE} --key 'a b'", ["--key: has blanks or characters in it that no header can carry"]),
        (f"{RATE} --duration 0 --seed -3 --usage of",
         ["--usage: 'of' is none of bounded, exact, off; did you mean 'off'?", "--seed: ", "--duration: must be more"]),
        (f"{URL} --model m --trace no.csv", ["--trace: there is no file '"]),
        (f"{URL} --model m --trace t.csv --input 5", ["--input: comes with the trace's calls, and there are no other"]),
        (f"{URL} --model m --trace t.csv --output 5 --split a=1,b=1",
         ["--output: comes with the trace's calls, and there are no others; leave it out"]),
        (f"{URL} --model m --trace t.csv --speed 0", ["--speed: must be more than 0, not 0"]),
        (f"{URL} --model m --trace t.csv --columns time=a,input=b", ["--columns output: is missing; add it: completi"]),
        (f"{URL} --model m --trace t.csv --columns tme=a,input=b,output=c",
         ["--columns time: is missing", "--columns tme: unknown key; did you mean 'time'?"]),
        (f"{URL} --model m --trace t.csv --clip 3 --skip 3", ["--skip: a call that is too long is clipped or skipped"]),
        (f"{URL} --model m --trace t.csv --split a=x,b=1", ["--split: the weight of 'a': 'x' is not a number"]),
        (f"{URL} --model m --trace t.csv --split all=1", ["--split all name: 'all' is what all tenants together are"]),
        (f"{URL} --model m --trace t.csv --split a=1@NO",
         ["--split a: the environment variable NO is not set; set NO to the key of 'a'"]),
        (f"sweep {URL} --model m --rate 9-3", ["--rate: must be more than where it begins, 9; raise it"]),
        (f"sweep {URL} --model m --rate 3-9 --factor 1", ["--factor: must be more than 1, not 1"]),
    ],
)  # fmt: skip
def test_a_fault_is_told_by_the_option_that_has_it(words: str, faults: list[str], folder: Path) -> None:
    found = faults_of(words, folder)
    assert len(found) == len(faults)
    for said, expected in zip(found, faults, strict=True):
        assert said.startswith(expected)


def test_a_body_may_not_nest_without_end(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for depth, said in (
        (30, ""),
        (31, "--body: is nested more than 30"),
        (500, "--body: is nested more"),
        (50_000, ""),
    ):
        words = [*RATE.split(), "--body", '{"a":' * depth + "1" + "}" * depth]
        if depth == 30:
            scenario_of(parse(words), {}, folder)
            continue
        with pytest.raises((ScenarioError, SystemExit)) as refused:
            scenario_of(parse(words), {}, folder)
        assert said in str(refused.value)
    assert "argument --body: is not JSON (" in capsys.readouterr().err


def test_a_key_of_the_environment_is_in_no_fault(folder: Path) -> None:
    (found,) = faults_of(USERS, folder, OPENAI_API_KEY="sk two words")
    assert found.startswith("the environment variable OPENAI_API_KEY: has blanks")
    assert "two" not in found


# ---- misuse --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "say what to call: a URL such as http://127.0.0.1:8080/v1, or a scenario with -f FILE"),
        (f"{URL} --model m", "say how calls come: --users 100, --rate 20 or --trace FILE, or a scenario with -f FILE"),
        (f"sweep {URL} --model m", "say how calls come: --rate 10-1000 or --users 1-512, or a scenario with -f FILE"),
        (f"swep {URL}", "there is no action 'swep'; did you mean 'sweep'?"),
        (f"{USERS} --rate 3", "argument --rate: not allowed with argument --users"),
        (f"{USERS} -f s.yaml", "argument -f/--file: not allowed with argument --users"),
        (f"{USERS} --modle x", "unknown argument '--modle'; did you mean --model?"),
        (f"{USERS} --zzz=3", "unknown argument '--zzz=3'"),
        (f"{USERS} --mod x", "unknown argument '--mod'"),
        (f"{USERS} --arrivals constant", "--arrivals goes with --rate"),
        (f"{USERS} --burstiness 2", "--burstiness goes with --rate"),
        (f"{RATE} --think 2s", "--think goes with --users"),
        (f"{RATE} --speed 2", "--speed goes with --trace"),
        (f"{RATE} --split a=1", "--split goes with --trace"),
        (f"{RATE} --format vllm", "--format and --out go together: --format vllm --out bench.json"),
        (f"{RATE} --out x", "--format and --out go together"),
        (f"{RATE} --format csv --out x", "argument --format: invalid choice: 'csv'"),
        (f"{RATE} --gaps", "--gaps needs a place: --jsonl FILE, or --format aiperf --out FILE"),
        (f"{RATE} --json x --jsonl ./x", "--jsonl: ./x is the file of --json, too"),
        (f"{URL} -f s.yaml --json s.yaml", "--json: s.yaml is the file of -f, too"),
        (f"{URL} --trace t.csv --jsonl ./t.csv", "--jsonl: ./t.csv is the file of --trace, too"),
        (f"{RATE} --html no/x.html", "--html: there is no folder "),
        (f"{RATE} --json .", "--json: . is a folder"),
        (f"{RATE} --format vllm --out .", "--out: . is a folder"),
        (f"{RATE} --format aiperf --out t.csv", "--out: t.csv is no folder"),
        (f"{RATE} --pid me", "argument --pid: 'me' is no process id; write its number, such as 4711"),
        (f"{RATE} --metrics 8081", "argument --metrics: '8081' is no URL; write http://127.0.0.1:8081/metrics"),
        (f"{RATE} --objective 500ms", "argument --objective: '500ms' is no objective; write ttft=500ms"),
        (f"{RATE} --objective ttft=1s,itl=1s", "and each with its own --objective"),
        (f"{RATE} --cancel @3", "argument --cancel: '@3' does not say who is left when; write 10%@1-32"),
        (f"{RATE} --cancel 3%@", "argument --cancel: '3%@' does not say who is left when"),
        (f"{RATE} --body '{{'", "argument --body: is not JSON ("),
        (f"{RATE} --body '[]'", "argument --body: is no JSON object; write"),
        (f"{RATE} --most-failed 3", "argument --most-failed: 3 is more than the whole; write 3% or 0.03"),
        (f"{URL} --trace t.csv --split a", "argument --split: 'a' is no pair; write a=1,b=3"),
        (f"{URL} --trace t.csv --split a=1@", "argument --split: '1@' is no weight; write a=1, or a=1@VARIABLE"),
        (f"{URL} --trace t.csv --columns time=a,time=b", "argument --columns: 'time' stands twice in 'time=a,time=b'"),
        (f"sweep {URL} --rate 10", "argument --rate: '10' is no range; write where it begins and ends: 10-1000"),
        (f"soak {USERS}", "the following arguments are required: --pid"),
        (f"soak {USERS} --pid 1 --most-growth 8MB", "argument --most-growth: '8MB' is not a size: 'MB' is no suffix o"),
        ("compare a", "the following arguments are required: B"),
        ("compare a b --fail-over 110%", "argument --fail-over: '110%' is not between 0% and 100%; write 20% or 0.2"),
        ("selfcheck --quik", "unknown argument '--quik'; did you mean --quick?"),
        ("report", "the following arguments are required: SUMMARY.json"),
    ],
)  # fmt: skip
def test_misuse_is_answered_with_what_would_be_right(
    words: str, said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in misuse(words, capsys)
    assert said in misuse(words, capsys, argparse.ArgumentParser)


def test_a_file_that_may_not_be_written_is_refused_before_the_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert "--json: x.json may not be written" in misuse(f"{RATE} --json x.json", capsys)


# ---- the other actions ---------------------------------------------------------------------------------------------


def test_each_action_has_its_own_words(folder: Path) -> None:
    compare = parse(shlex.split("compare a.json b.json --fail-over 5% --anyway"))
    assert (compare.action, compare.before, compare.after) == ("compare", "a.json", "b.json")
    assert (compare.fail_over, compare.anyway) == (0.05, True)
    assert parse(["compare", "a", "b"]).fail_over == 0.1
    check = parse(["selfcheck", "--quick"])
    assert (check.action, check.quick) == ("selfcheck", True)
    report = parse(["report", "a.json", "--html", "a.html"])
    assert (report.action, report.summary, report.html) == ("report", "a.json", "a.html")
    soak = parse(shlex.split(f"soak {USERS} --pid 7 --most-growth 8Mi"))
    assert (soak.action, soak.pid, soak.most_growth) == ("soak", 7, 8 * 2**20)


def test_outputs_and_the_servers_side_are_kept_for_the_run(folder: Path) -> None:
    words = (
        f"{RATE} --json a.json --jsonl a.jsonl --html a.html --format vllm --out v.json --gaps --plain --yes "
        "--name mine --pid 3 --metrics http://a/metrics --metrics http://b/metrics --most-failed 1%"
    )
    args = parse(shlex.split(words))
    assert (args.action, args.json, args.jsonl, args.html) == ("run", "a.json", "a.jsonl", "a.html")
    assert (args.format, args.out, args.gaps, args.plain, args.yes) == ("vllm", "v.json", True, True, True)
    assert (args.name, args.pid, args.most_failed) == ("mine", 3, 0.01)
    assert args.metrics == ["http://a/metrics", "http://b/metrics"]
    assert parse(shlex.split(f"{RATE} --format aiperf --out .")).out == "."


# ---- what --help says ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parser_class", [argparse.ArgumentParser, _Parser])
@pytest.mark.parametrize("action", ACTIONS)
def test_help_teaches_what_it_is_for_with_examples_and_exit_codes(
    action: str, parser_class: type[argparse.ArgumentParser], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(["--help"] if action == "run" else [action, "--help"], parser_class)
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: {usage.PROG}" + ("" if action == "run" else f" {action}"))
    assert "\nexamples:\n" in said and "\nexit codes: 0 " in said and "misused" in said
    assert max(map(len, said.splitlines())) <= 120
    if action == "run":
        assert all(f"{usage.PROG} {other}" in said for other in ACTIONS if other != "run")


def examples() -> list[str]:
    said = "\n".join(more for _, _, more in ACTIONS.values()).replace("$(pgrep -of 'penstock serve')", "4711")
    lines = [line.strip() for line in said.splitlines() if line.startswith(f"  {usage.PROG}")]
    return [line.split("   ")[0].removeprefix(usage.PROG) for line in lines if "ACTION" not in line]


@pytest.mark.parametrize("words", examples())
def test_every_example_is_one_that_works(words: str, folder: Path) -> None:
    (folder / "conv.csv").touch()
    (folder / "scenario.yaml").write_text(SCENARIO if "sweep" in words else SCENARIO + PHASES)
    if words.strip() in ("sweep", "soak", "compare", "report"):
        return  # named in the list of actions
    args = parse(shlex.split(words))
    if args.action in ("run", "sweep", "soak"):
        scenario_of(args, {}, folder)


def test_there_are_examples() -> None:
    assert len(examples()) >= 15


def test_no_option_is_declared_and_then_forgotten(folder: Path) -> None:
    """Each option of a run changes the scenario, or is one of those that are for the run around it."""
    around = {"json", "jsonl", "html", "format", "out", "gaps", "plain", "name", "yes", "most_failed"}
    around |= {"pid", "metrics", "most_growth", "help", "file"}
    samples: dict[str, Any] = {
        "url": "http://other", "model": "x", "key": "sk", "endpoint": "completions", "timeout": "9s",
        "body": '{"a": 1}', "usage": "off", "users": "7", "rate": "7", "trace": "t.csv", "duration": "7s",
        "warmup": "7s", "arrivals": "constant", "burstiness": "2", "think": "2s", "speed": "2", "split": "x=1",
        "columns": "time=a,input=b,output=c", "clip": "9", "skip": "9", "input": "7", "output": "7", "cancel": "7%",
        "shared_prefix": "7%", "seed": "7", "objective": "ttft=7s", "max_requests": "7", "max_streams": "7",
        "step": "7s", "factor": "7", "within": "7%",
    }  # fmt: skip
    for action in ("run", "sweep", "soak"):
        _, parser, _ = parser_for([action] if action != "run" else [], argparse.ArgumentParser)
        for option in parser._actions:
            if option.dest in around:
                continue
            prefix = [] if action == "run" else [action] if action == "sweep" else [action, "--pid", "1"]
            if option.dest in ("trace", "speed", "split", "columns", "clip", "skip"):
                load, other = ["--trace", "t.csv"], ["--trace", "u.csv"]
                (folder / "u.csv").touch()
                load = other if option.dest == "trace" else load
            elif option.dest in ("users", "think"):
                load = ["--users", "1-9" if action == "sweep" else "1"]
            else:
                load = ["--rate", "1-9" if action == "sweep" else "1"]
            value = samples.get(option.dest)
            value = f"{value}-99" if action == "sweep" and option.dest in ("users", "rate") else value
            word = [] if option.dest == "url" else [option.option_strings[0]]
            given = [*word, value] if value is not None else word
            base = [*prefix, "--model", "m", *load]
            # The model is taken back where it is the option itself: argparse lets the last one speak.
            without = scenario_of(parse([*base, "http://a"]), {}, folder)
            with_it = scenario_of(parse([*base, *given, *([] if option.dest == "url" else ["http://a"])]), {}, folder)
            assert (without, without.tenants[0].key) != (with_it, with_it.tenants[0].key), (action, option.dest)
