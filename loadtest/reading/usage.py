"""What `penstock loadtest --help` says around the options: what each action is for, examples, exit codes."""

from __future__ import annotations

PROG = "penstock loadtest"

RUN = """\
Call an OpenAI-compatible server or gateway as several tenants would, and report what each of them met: first tokens
timed from the *scheduled* arrival, so that a server that stalls cannot hide behind calls that were never sent; gaps,
whole answers, refusals by code, goodput under your objectives, fairness and isolation between tenants. When this tool
or this machine was the limit, the report says so first.
"""
RUN_MORE = """\
examples:
  penstock loadtest http://127.0.0.1:8080/v1 --model tiny --users 100 --duration 30s
        100 users, each calling again when it has its answer (closed loop)
  penstock loadtest http://127.0.0.1:8080/v1 --model tiny --rate 20 --objective ttft=500ms --html report.html
        20 calls a second whatever the server does (open loop, Poisson), and a page to look at
  penstock loadtest http://127.0.0.1:8080/v1 --model tiny --trace conv.csv --speed 20 --clip 4096
        the calls of a trace, twenty times as fast
  penstock loadtest -f scenario.yaml --json result.json
        several tenants, each with its own key and mix, in several phases

actions:
  penstock loadtest sweep       raise the load until the target no longer keeps up, and say where that was
  penstock loadtest soak        a long run, and whether the server's memory grows
  penstock loadtest compare     two results: what became worse, and how sure that is
  penstock loadtest selfcheck   is this tool right on this machine? measured against a server of known delays
  penstock loadtest report      a result once more, as a table or a page
  penstock loadtest ACTION --help

Anything but loopback is asked about before it is loaded. Ctrl-C ends the run, and the report is still made.

exit codes: 0 good; 1 no call was done, or more failed than --most-failed allows; 2 misused: a wrong option or scenario,
or a load that this machine cannot make; 130 interrupted (the report is still made)
"""

SWEEP = """\
Raise the load step by step until the target no longer keeps up, and find the load that it just keeps up with. A step is
saturated when first tokens come later and later within it, or more and more calls are open: when their slopes are above
zero with confidence. Then the bracket is halved, and the sweep stops.
"""
SWEEP_MORE = """\
examples:
  penstock loadtest sweep http://127.0.0.1:8080/v1 --model tiny --rate 10-1000
  penstock loadtest sweep http://127.0.0.1:8080/v1 --model tiny --users 1-512 --step 30s --factor 2 --html sweep.html
  penstock loadtest sweep -f scenario.yaml --rate 10-1000      several tenants, in the proportion of their own rates

exit codes: 0 good, whether or not saturation was found; 1 no call was done, or more failed than --most-failed allows;
2 misused; 130 interrupted (the report is still made)
"""

SOAK = """\
One load for a long time, while the memory of the server's process, with all its children, is watched. The report has
the slope of its RSS with a 95 % confidence; what happens in the warm-up does not count.
"""
SOAK_MORE = """\
examples:
  penstock loadtest soak http://127.0.0.1:8080/v1 --model tiny --pid 4711 --users 50 --duration 8h
  penstock loadtest soak -f scenario.yaml --pid $(pgrep -of 'penstock serve') --most-growth 8Mi

exit codes: 0 good; 1 no call was done, more failed than --most-failed allows, or memory grew by more than
--most-growth; 2 misused; 130 interrupted (the report is still made)
"""

COMPARE = """\
Compare two results that --json has written: for each phase and tenant, what became worse or better, and whether the
difference is more than chance. Runs in which the tool or the machine was the limit, and runs of different loads, are
not compared unless you say --anyway.
"""
COMPARE_MORE = """\
examples:
  penstock loadtest compare before.json after.json
  penstock loadtest compare main.json branch.json --fail-over 10%      in CI

exit codes: 0 nothing became worse; 1 something became worse by more than --fail-over, and not by chance; 2 misused, or
not to be compared
"""

SELFCHECK = """\
Validate this tool on this machine: it starts a server whose delays are known, calls it over real sockets, and says for
each figure what was to be expected and what was measured. Among the tests: a freeze of one second, which an open loop
must see and a closed loop cannot.
"""
SELFCHECK_MORE = """\
examples:
  penstock loadtest selfcheck            about a minute
  penstock loadtest selfcheck --quick    a few seconds, in CI

exit codes: 0 all figures are right; 1 some are not; 2 misused
"""

REPORT = """\
Show once more what a run that --json has written found: as a table, and as a page if asked for.
"""
REPORT_MORE = """\
examples:
  penstock loadtest report result.json
  penstock loadtest report result.json --html report.html

exit codes: 0 good; 2 misused: the file is no result of this tool
"""

USAGES = {
    "run": f"""\
{PROG} URL --model NAME (--users N | --rate X | --trace FILE) [options]
       {PROG} -f FILE [options]
       {PROG} (sweep | soak | compare | selfcheck | report) --help""",
    "sweep": f"""\
{PROG} sweep URL --model NAME (--rate FROM-TO | --users FROM-TO) [options]
       {PROG} sweep -f FILE [options]""",
    "soak": f"""\
{PROG} soak URL --model NAME --pid N (--users N | --rate X | --trace FILE) [options]
       {PROG} soak -f FILE --pid N [options]""",
}
