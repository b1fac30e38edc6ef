"""One run as the command line asks for it: judged, asked about, run, and told in every form that was wanted.

Here the parts meet: what may be loaded (`guard`), the run itself, the view, the files, and the server's own side, its
process and its metrics. A file that cannot be written any more is told and let go; it does not end a run.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rich.console import Console

from loadtest import summary as summaries
from loadtest.guard import Address, Refused, ask_unless_loopback, reachable, resolve, room_for_streams
from loadtest.messages import Call, Progress
from loadtest.report.aiperf import Aiperf
from loadtest.report.lines import FileFault, Lines
from loadtest.report.page import page
from loadtest.report.showing import Showing
from loadtest.report.table import print_summary, printable, result_console
from loadtest.report.vllm import Vllm
from loadtest.run import Control, StreamsFailed, run_scenario
from loadtest.scenario import Phase, Scenario
from loadtest.server import growth
from loadtest.server.counts import Reading, Unreadable, compare_counts, fetch, fetch_settled
from loadtest.server.watch import Unwatchable, Watch
from loadtest.summary import Mark, PhaseResults, Summary, SweepStep
from loadtest.tally import Now
from loadtest.totals import STOPPED
from loadtest.traces import rows_of
from tenancy.units import format_duration

GOOD, WANTING, MISUSED, INTERRUPTED = 0, 1, 2, 130
SAMPLE_SECONDS = 1.0


class CallFile(Protocol):
    """A file that takes every call that ended."""

    def write(self, phase: str, tenant: str, call: Call, started_epoch: float, is_counted: bool = True) -> None:
        """Take one; raises `FileFault`."""


def run(args: argparse.Namespace, scenario: Scenario) -> int:
    """Run what the options ask for, and return the exit code: 0 good, 1 found wanting, 2 not begun, 130 interrupted."""
    errors = Console(stderr=True)
    try:
        resolved = [resolve(url) for url in scenario.target.urls]
        for address in resolved:
            ask_unless_loopback(address, load=_load_in_words(scenario), assume_yes=args.yes, ask=_asker())
        addresses = [reachable(address) for address in resolved]
        room = _room(scenario, addresses)
        rows_of(scenario)  # a wrong trace is told before anything is loaded; the streams' process reads its own
        watch = Watch(args.pid) if args.pid is not None else None
        files = _files(args)
    except (Refused, Unwatchable, FileFault, ValueError, OSError) as wrong:
        errors.print(f"penstock loadtest: {wrong}", style="bold red", markup=False, highlight=False, soft_wrap=True)
        return MISUSED
    return asyncio.run(_Session(args, scenario, addresses, room, watch, files, errors).run())


class _Session:
    """One run, with all that is told of it."""

    def __init__(
        self,
        args: argparse.Namespace,
        scenario: Scenario,
        addresses: Sequence[Address],
        room: int,
        watch: Watch | None,
        files: Sequence[CallFile],
        errors: Console,
    ) -> None:
        self._args = args
        self._scenario = scenario
        self._addresses = [(address.ip, address.port) for address in addresses]
        self._room = room
        self._files = files
        self._errors = errors
        self._control = Control()
        self._is_unwritten = False
        self._name = args.name or _default_name(args, scenario)
        self._showing = Showing(scenario, self._name, is_plain=args.plain)
        self._server = _Server(watch)
        self._counting: asyncio.Task[list[Reading]] | None = None

    async def run(self) -> int:
        """The run, and its exit code."""
        loop = asyncio.get_running_loop()
        metrics: list[str] = self._args.metrics or []
        try:
            before = await fetch(metrics) if metrics else []
        except Unreadable as wrong:
            self._say(str(wrong))
            return MISUSED
        loop.add_signal_handler(signal.SIGINT, self._interrupt)
        loop.add_signal_handler(signal.SIGTERM, self._stop)
        calls = _CallFiles(self._files, self._showing.note)
        try:
            with self._showing, self._server.sampled(loop):
                summary = await run_scenario(
                    self._scenario,
                    addresses=self._addresses,
                    open_streams=self._room,
                    name=self._name,
                    watchers=[self._server, calls, self._showing],
                    control=self._control,
                    keep_gaps=self._args.gaps,
                )
            self._server.add_to(summary)
            if metrics:
                await self._count(summary, metrics, before)
        except StreamsFailed as wrong:
            self._say(str(wrong))
            return WANTING
        finally:
            loop.remove_signal_handler(signal.SIGINT)
            loop.remove_signal_handler(signal.SIGTERM)
        written = self._write(summary, calls)
        print_summary(summary, result_console(), written)
        return self._verdict(summary)

    def _interrupt(self) -> None:
        """Ctrl-C: end the load and report; the second time at once."""
        if self._control.is_stopped:
            raise KeyboardInterrupt
        self._showing.note("interrupted: ending what is open; Ctrl-C again to leave without a report")
        self._stop()

    def _stop(self) -> None:
        """End the load, or the wait for the server's counts, which may be long; the report is made of what there is."""
        self._control.stop()
        if self._counting is not None:
            self._counting.cancel()

    async def _count(self, summary: Summary, metrics: Sequence[str], before: Sequence[Reading]) -> None:
        """The server's own counts beside ours."""
        self._counting = asyncio.get_running_loop().create_task(fetch_settled(metrics))
        await asyncio.wait({self._counting})
        if self._counting.cancelled():
            summary.marks.append(Mark(kind="note", phase="", text="interrupted before the server's counts were read"))
            return
        try:
            counted = compare_counts(before, self._counting.result(), summary.phases)
        except Unreadable as wrong:
            summary.marks.append(Mark(kind="note", phase="", text=str(wrong)))
            return
        summary.counts = counted.counts
        summary.marks += [Mark(kind="note", phase="", text=note) for note in counted.notes]

    def _write(self, summary: Summary, calls: _CallFiles) -> dict[str, str]:
        """All files that were asked for, by what they are; what cannot be written is told."""
        written = {}
        wanted: list[tuple[str, str | None, Callable[[], bytes]]] = [
            ("summary", self._args.json, lambda: summaries.written(summary)),
            ("page", self._args.html, lambda: page(summary).encode()),
        ]
        for name, path, content in wanted:
            if path is None:
                continue
            try:
                Path(path).write_bytes(content())
                written[name] = path
            except OSError as wrong:
                self._say(f"{path} cannot be written: {wrong.strerror}")
                self._is_unwritten = True
        for fault in calls.close(summary, written, self._args.jsonl or ""):
            self._say(fault)
            self._is_unwritten = True
        return written

    def _verdict(self, summary: Summary) -> int:
        """What the exit code says of it."""
        counted = [phase.all for phase in summary.phases if phase.is_counted]
        failed = sum(each.failed for each in counted)
        if summary.ended == "interrupted":  # whoever ended the run has left these, and not the target
            failed -= sum(each.codes.get(STOPPED, 0) for each in counted)
        good = sum(each.done + each.cancelled for each in counted)
        most = self._args.most_failed
        code = WANTING if self._is_unwritten or summary.ended == "failed" else GOOD
        if not good:
            self._say(f"no call was done; {failed:,} failed")
            code = code if summary.ended == "interrupted" else WANTING
        elif most is not None and failed > most * (failed + good):
            self._say(f"{failed:,} of {failed + good:,} calls failed")
            code = WANTING
        if self._args.action == "soak" and self._args.most_growth is not None:
            judged = growth.verdict(summary.growth, self._args.most_growth)
            self._say(judged.text)
            # A bound that a run was too short to judge is not kept: a gate that nothing can shut is none.
            code = WANTING if judged.is_kept is False or summary.growth is None else code
        return INTERRUPTED if summary.ended == "interrupted" and code == GOOD else code

    def _say(self, text: str) -> None:
        said = f"penstock loadtest: {printable(text)}"  # what a server answered may stand in it
        self._errors.print(said, markup=False, highlight=False, soft_wrap=True)


@dataclass(slots=True)
class _Server:
    """The server's process as it goes, if one is watched."""

    watch: Watch | None
    _began: float | None = None

    @contextlib.contextmanager
    def sampled(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """Look at it about once a second inside this block."""
        if self.watch is None:
            yield
            return
        task = loop.create_task(self._sample_always())
        try:
            yield
        finally:
            task.cancel()

    async def _sample_always(self) -> None:
        while True:
            self._sample()
            await asyncio.sleep(SAMPLE_SECONDS)

    def _sample(self) -> None:
        if self.watch is not None and self._began is not None:
            self.watch.sample(time.monotonic() - self._began)

    def phase_begins(self, phase: Phase, number: int, is_counted: bool) -> None:
        if self._began is None:
            self._began = time.monotonic()
        self._sample()

    def calls_ended(self, phase: Phase, tenant: str, calls: Sequence[Call], started_epoch: float) -> None:
        """Nothing to do."""

    def progressed(self, now: Now, progress: Progress) -> None:
        """Nothing to do."""

    def phase_ended(self, results: PhaseResults, step: SweepStep | None) -> None:
        self._sample()
        if self.watch is not None:
            whole = results.at, results.at + results.seconds
            results.server = self.watch.cost(*whole, chunks=results.all.events, requests=results.all.sent)

    def add_to(self, summary: Summary) -> None:
        """What is told of it at the end."""
        if self.watch is not None:
            summary.growth = self.watch.growth()
            if self.watch.note:
                summary.marks.append(Mark(kind="note", phase="", text=self.watch.note))


class _CallFiles:
    """The files that take each call. One that cannot be written any more is told once, and gets nothing further."""

    def __init__(self, files: Sequence[CallFile], note: Callable[[str], None]) -> None:
        self._files = list(files)
        self._note = note
        self._is_counted = True

    def phase_begins(self, phase: Phase, number: int, is_counted: bool) -> None:
        self._is_counted = is_counted

    def calls_ended(self, phase: Phase, tenant: str, calls: Sequence[Call], started_epoch: float) -> None:
        for file in list(self._files):
            try:
                for call in calls:
                    file.write(phase.name, tenant, call, started_epoch, self._is_counted)
            except FileFault as wrong:
                self._files.remove(file)
                self._note(f"{wrong}; the run goes on without it")

    def progressed(self, now: Now, progress: Progress) -> None:
        """Nothing to do."""

    def phase_ended(self, results: PhaseResults, step: SweepStep | None) -> None:
        """Nothing to do."""

    def close(self, summary: Summary, written: dict[str, str], lines_path: str) -> list[str]:
        """Write what is left, and say what could not be; adds the files to those `written`."""
        faults: list[str] = []
        for file in self._files:
            try:
                if isinstance(file, Lines):
                    file.close()
                    written["calls"] = lines_path
                elif isinstance(file, Vllm | Aiperf):
                    written[type(file).__name__.lower()] = ", ".join(file.finish(summary))
            except FileFault as wrong:
                faults.append(str(wrong))
        return faults


def _files(args: argparse.Namespace) -> list[CallFile]:
    """The files that calls go to; raises `FileFault` where one cannot be made."""
    files: list[CallFile] = []
    if args.jsonl is not None:
        lines = Lines(args.jsonl, keeps_gaps=args.gaps)
        lines.open()
        files.append(lines)
    if args.format == "vllm":
        files.append(Vllm(args.out, keeps_requests=args.gaps))
    elif args.format == "aiperf":
        files.append(Aiperf(args.out))
    return files


def _room(scenario: Scenario, addresses: Sequence[Address]) -> int:
    """How many streams may be open; a closed loop's users want that many at least."""
    wanted = scenario.bounds.open_streams
    if wanted is None:
        users = _most_users(scenario)
        return max(
            room_for_streams(None, address=addresses[0]), room_for_streams(users, address=addresses[0]) if users else 0
        )
    return room_for_streams(wanted, address=addresses[0])


def _most_users(scenario: Scenario) -> int:
    """The most users that any phase has at once."""
    if scenario.sweep is not None:
        return int(scenario.sweep.most) if scenario.sweep.of == "users" else 0
    return max(
        (
            sum(
                round(tenant.arrivals.users * max(phase.scale))
                for tenant in scenario.tenants
                if tenant.name in phase.tenants and tenant.arrivals is not None
            )
            for phase in scenario.phases
        ),
        default=0,
    )


def _load_in_words(scenario: Scenario) -> str:
    """The load, for somebody who is asked whether it may go out."""
    if scenario.sweep is not None:
        unit = "calls a second" if scenario.sweep.of == "rate" else "users"
        return f"up to {scenario.sweep.most:,g} {unit}, at most {scenario.bounds.requests:,} calls"
    return f"up to {scenario.bounds.requests:,} calls within {format_duration(scenario.bounds.seconds)}"


def _asker() -> Callable[[str], bool] | None:
    """How to ask a person, or nothing where there is no terminal."""
    if not sys.stdin.isatty() or not sys.stderr.isatty():
        return None

    def ask(question: str) -> bool:
        sys.stderr.write(f"{question} [y/N] ")
        sys.stderr.flush()
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    return ask


def _default_name(args: argparse.Namespace, scenario: Scenario) -> str:
    """What the report is called where nobody said."""
    if args.file is not None:
        return Path(args.file).stem
    return f"{scenario.target.model}, {args.action}"
