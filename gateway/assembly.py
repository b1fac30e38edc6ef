"""Where all objects of one gateway meet: clock, randomness, identities and sockets enter here and nowhere else.

`Gateway` is what a process runs: fleet, admission, wires, HTTP face. What one room tells another goes through the
few methods at its end, so that the whole traffic between rooms can be read on one page.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import time
import traceback
from collections.abc import Collection
from dataclasses import replace
from itertools import count
from random import Random

from backends.closing import Closing
from backends.engines.engine import Reading
from backends.fleet import Fleet, PodState
from backends.health import Health
from backends.inquiry import Inquiry, Unanswered
from backends.offspring import Launch
from backends.routing.choice import Choice
from backends.supervisor import Readiness, Running, Supervisor
from backends.wire.pool import Pool, connector
from backends.wire.transfer import Timeouts
from gateway.admit import Admit
from gateway.attempts import Attempts
from gateway.exchange import Exchange
from gateway.http.listener import Listener
from gateway.observe.logs import AccessLog, Log, Stream
from gateway.observe.metrics import Metrics
from gateway.record import Record
from gateway.routes.app import admin_app, public_app
from gateway.routes.endpoints import Front
from gateway.stream.pulse import Pulse
from tenancy.accounts import Lease
from tenancy.admission import Admission
from tenancy.directory import Directory
from tenancy.policy import Pod, Policy

# What a pod does not inherit: our own admin token, other pods' API keys. What it needs stands in its `env`.
_CREDENTIAL = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL")

_CUT_SECONDS = 1.0  # for the last words to open streams
_CHECK_SECONDS = 2.0  # for a pod of ours to say whether it is ready
_AS_IT_SHOULD = frozenset({PodState.STARTING, PodState.READY, PodState.DRAINING, PodState.STOPPED})

POD_GRACE_SECONDS = 5.0
"""What a pod that we run is given to end by itself, once no stream is open any more."""


class Gateway:
    """One gateway for one policy, in the running loop. `is_draining` makes `/readyz` say 503."""

    def __init__(self, policy: Policy, *, loop: asyncio.AbstractEventLoop, log: Log, access_to: Stream) -> None:
        random = Random(secrets.randbits(64))
        self._policy = policy
        self._loop = loop
        self._log = log
        self._access = AccessLog(access_to, call_later=loop.call_later, format=policy.logs.format)
        self.is_draining = False
        self.fleet = Fleet(
            policy, clock=loop.time, on_change=self._fleet_changed, on_doubt=self._in_doubt, on_eject=self._ejected
        )
        self.closing: Closing[Lease] = Closing()
        self.admit = Admit(Admission(policy, Choice(self.fleet, random=random), loop.time()), loop)
        self.health = Health(
            self.fleet,
            clock=loop.time,
            call_later=loop.call_later,
            random=random,
            on_reading=self._read,
            is_closing=self.closing.is_open,
        )
        self.supervisor = Supervisor(
            clock=loop.time,
            random=random,
            on_output=self._pod_said,
            on_started=lambda _pod, _url: None,
            on_ready=self._pod_ready,
            on_unready=self.fleet.failed,
            on_exit=self._pod_exited,
        )
        self.attempts = Attempts(self.fleet, self.closing, loop, connect_pool=self._pool, poke=self._left_behind)
        streams = policy.streams
        pulse = Pulse(
            min(1.0, streams.heartbeat_seconds / 3, max(policy.queue.head_after_seconds / 3, 0.01)),
            clock=loop.time,
            call_later=loop.call_later,
        )
        self.exchange = Exchange(policy, self.admit, self.attempts, pulse, loop)
        self.metrics = Metrics(policy, self.admit.admission, self.fleet)
        ours, numbers = random.getrandbits(48), count(1)
        self.front = Front(
            Directory(policy),
            self.exchange,
            loop=loop,
            epoch=time.time,
            new_id=lambda: f"req-{ours:012x}{next(numbers):012x}",
            take=self._take,
            crashed=self._crashed,
        )
        self._inquiries: dict[str, Inquiry] = {}
        self._health_task: asyncio.Task[None] | None = None
        self._closing_timer: asyncio.TimerHandle | None = None
        self._quiet: asyncio.Future[None] | None = None
        self.listeners: list[Listener] = []
        self._announced: dict[str, str] = {}
        self._last_lines: dict[str, str] = {}
        self._left_out: dict[str, str] = {}
        self._states = {name: pod.state for name, pod in self.fleet.pods.items()}

    # ---- life, as `lifecycle` leads it

    async def start(self) -> None:
        """Listen, then start pods and probes. Raises `ListenError` where an address cannot be had."""
        started_at = int(time.time())
        server, admin = self._policy.server, self._policy.admin
        public = public_app(self.front, self._is_ready, started_at)
        inner = admin_app(self.front, self.metrics.expose, self._is_ready)
        plain = replace(server, tls_cert=None, tls_key=None)
        for name, app, settings, host, port in (
            ("server", public, server, server.host, server.port),
            ("admin", inner, plain, admin.host, admin.port),
        ):
            listener = Listener(
                name, app, settings, loop=self._loop, new_id=self.front.new_id, take=self._take, log=self._log
            )
            await listener.start(host, port)
            self.listeners.append(listener)
        self._health_task = self._loop.create_task(self.health.run(), name="health")
        for pod in self._policy.pods.values():
            if pod.is_supervised:
                self._launch(pod)
        self._fleet_changed()

    def drain(self) -> None:
        """Admit nothing new; open calls go on."""
        self.admit.drain()
        for listener in self.listeners:
            listener.drain()

    async def quiet(self) -> None:
        """Wait until no call is open."""
        if self.front.open_calls:
            self._quiet = self._loop.create_future()
            self.front.on_quiet = lambda: (
                None if self._quiet is None or self._quiet.done() else self._quiet.set_result(None)
            )
            await self._quiet

    async def end(self, *, at_once: bool) -> None:
        """Close everything: listeners, probes, pods (killed where `at_once`), idle connections, logs.

        Who is still being answered is told so first.
        """
        self.exchange.cut_all()
        await asyncio.wait({self._loop.create_task(self.quiet())}, timeout=_CUT_SECONDS)
        for listener in self.listeners:
            await listener.close(at_once=at_once)
        if self._health_task is not None:
            self._health_task.cancel()
            await asyncio.gather(self._health_task, return_exceptions=True)
        if at_once:
            self.supervisor.kill_all()
        await self.supervisor.stop_all(0.0 if at_once else POD_GRACE_SECONDS)
        for inquiry in self._inquiries.values():
            inquiry.close()
        if self._closing_timer is not None:
            self._closing_timer.cancel()
        self.attempts.close()
        self._access.close()

    @property
    def open_calls(self) -> int:
        """Calls that have not ended yet."""
        return self.front.open_calls

    def _is_ready(self) -> bool:
        return not self.is_draining and any(pod.state is PodState.READY for pod in self.fleet.pods.values())

    # ---- pods

    def _launch(self, pod: Pod) -> None:
        engine = self.fleet.pods[pod.name].engine
        inherited = {name: value for name, value in os.environ.items() if not _CREDENTIAL.search(name.upper())}
        env = inherited | dict(pod.env)
        if pod.command:
            launch = Launch(pod.command, env)
        else:
            made = None if engine is None else engine.launch(pod, 0, "127.0.0.1", self._context(pod))
            if made is None:
                self.fleet.exited(pod.name, "this engine cannot be started by Penstock: give a url or a command")
                return
            launch = Launch(made.command, env | dict(made.env))
        self._inquiries[pod.name] = Inquiry(
            clock=self._loop.time, call_later=self._loop.call_later, seconds=_CHECK_SECONDS
        )
        self.supervisor.watch(
            pod.name, launch, Readiness(url=pod.url, checks=(self._answers_health,)), group="+".join(pod.devices)
        )

    def _context(self, pod: Pod) -> int | None:
        """The context that a pod of ours has to hold: the largest of its models."""
        known = [self._policy.models[served.name].context_tokens for served in pod.models]
        return max((tokens for tokens in known if tokens is not None), default=None)

    async def _answers_health(self, running: Running) -> str | None:
        engine = self.fleet.pods[running.name].engine
        path = "/health" if engine is None else engine.health_path
        api_key = self._policy.pods[running.name].api_key
        try:
            status, _ = await self._inquiries[running.name].get(running.url, path, api_key=api_key)
        except Unanswered as error:
            return str(error)
        return None if 200 <= status < 300 else f"{path} answers {status}"

    def _pool(self, url: str) -> Pool:
        streams = self._policy.streams
        timeouts = Timeouts(
            streams.connect_timeout_seconds, streams.first_byte_timeout_seconds, streams.stall_timeout_seconds
        )
        return Pool(
            url, connect=connector(url), clock=self._loop.time, call_later=self._loop.call_later, timeouts=timeouts
        )

    # ---- what one room tells another

    def _pod_said(self, name: str, line: str) -> None:
        self._last_lines[name] = line
        self._log.info("pod_output", pod=name, line=line)

    def _pod_ready(self, name: str, url: str) -> None:
        if self._announced.get(name) == url:
            self.health.poke(name)
            return
        self._announced[name] = url
        self._log.info("pod_started", pod=name, url=url)
        self.fleet.started(name, url)

    def _pod_exited(self, name: str, reason: str, restart_in: float | None) -> None:
        say = self._log.info if restart_in is None else self._log.warning
        say("pod_exited", pod=name, reason=reason, said=self._last_lines.pop(name, ""), restart_in_seconds=restart_in)
        self._announced.pop(name, None)
        self.fleet.exited(name, reason)
        self.admit.let_go(self.closing.gone(name))

    def _fleet_changed(self) -> None:
        self.admit.pods_changed(self.fleet.capacities())
        for name, pod in self.fleet.pods.items():
            if pod.state is not self._states.get(name):
                self._states[name] = pod.state
                say = self._log.info if pod.state in _AS_IT_SHOULD else self._log.warning
                say("pod_state", pod=name, state=str(pod.state.value), reason=pod.last_error)
        left_out = dict(self.admit.admission.left_out())
        for name, reason in left_out.items():
            if self._left_out.get(name) != reason:
                self._log.warning("pod_left_out", pod=name, reason=reason)
        self._left_out = left_out

    def _in_doubt(self, name: str) -> None:
        self.health.check(name)

    def _ejected(self, names: Collection[str], reason: str) -> None:
        for name in names:
            self.attempts.cut(name, reason)

    def _left_behind(self, name: str) -> None:
        self.health.poke(name)
        self._watch_closing()

    def _read(self, name: str, reading: Reading) -> None:
        self.admit.let_go(self.closing.read(name, reading, self._loop.time()))
        self._watch_closing()

    def _watch_closing(self) -> None:
        due = self.closing.next_expiry()
        if due is not None and self._closing_timer is None:
            self._closing_timer = self._loop.call_at(due, self._expire_closing)

    def _expire_closing(self) -> None:
        self._closing_timer = None
        self.admit.let_go(self.closing.expire(self._loop.time()))
        self._watch_closing()

    def _crashed(self, error: Exception, request_id: str) -> None:
        trace = "".join(traceback.format_exception(error))
        self._log.error("crashed", request_id=request_id, error=repr(error), trace=trace)

    def _take(self, record: Record) -> None:
        self.metrics.take(record)
        self._access.take(record)
