"""The ways to the pod: straight, through Penstock with everything on, and through the peers, one worker each.

A peer that cannot be had is left out, with one line that says how to get it. The routers come from PyPI, pinned with
hashes in `benchmarks/peers.lock`, into an environment of their own inside `.venv`; Penstock depends on none of
them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import venv
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.calls import Target
from benchmarks.programs import free_port, key_hash, process, serving, started_pod, wait_for
from benchmarks.side_by_side.processes import cpu_seconds, resident_bytes

RESULTS = Path(__file__).parent.parent / "results"
ENVIRONMENTS = RESULTS.parent.parent / ".venv" / "peers"  # where no tool of ours looks
LOCK = Path(__file__).parent.parent / "peers.lock"
LITELLM = "litellm[proxy]==1.106.0"
KEY = "sk-penstock-benchmark"
SPENT_KEY = "sk-penstock-spent"
DIRECT, PENSTOCK, NGINX, VLLM, SGLANG, LITE = "direct", "penstock", "nginx", "vllm-router", "sglang-router", "litellm"
PEERS = (NGINX, VLLM, SGLANG)

PENSTOCK_FILE = """
pods:
  - {{name: sim, url: "http://127.0.0.1:{pod}", engine: simulator, models: [tiny], kvMemory: 256Gi, concurrency: 8192}}
models: [{{name: tiny, context: 65536, kvBytesPerToken: 4096}}]
tenants:
  - name: bench
    keys: ["sha256:{key}"]
    budget: {{memory: 128Gi, concurrency: 8000, requestsPerMinute: 10000000, tokensPerMinute: 10000000000}}
  - name: spent
    keys: ["sha256:{spent_key}"]
    budget: {{memory: 1Gi, concurrency: 8, requestsPerMinute: 1, tokensPerMinute: 100000}}
streams: {{connectTimeout: 10s}}  # on a busy machine 2 s may pass; nginx waits 60
"""

NGINX_FILE = """
worker_processes 1; worker_rlimit_nofile 16384; daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 8192; }}
http {{
  access_log {folder}/nginx-access.log; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  client_max_body_size 32m; client_body_buffer_size 256k;
  limit_conn_zone $http_authorization zone=tenant:1m; limit_conn tenant 8000;
  map $http_authorization $spent {{ default ""; "Bearer {spent_key}" spent; }}
  limit_req_zone $spent zone=rate:1m rate=1r/m; limit_req zone=rate; limit_req_status 429; limit_req_log_level info;
  upstream pod {{ server 127.0.0.1:{pod}; keepalive 512; }}
  server {{ listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://pod; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }} }}
}}
"""

LITELLM_FILE = """
model_list:
  - {{model_name: tiny, litellm_params: {{model: openai/tiny, api_base: "http://127.0.0.1:{pod}/v1", api_key: none}}}}
general_settings: {{master_key: "{key}"}}
"""

_ROUTER = (
    *("--policy", "round_robin", "--host", "127.0.0.1", "--disable-retries", "--disable-circuit-breaker"),
    *("--health-check-interval-secs", "3600", "--worker-startup-check-interval", "1"),
    *("--max-concurrent-requests", "100000", "--prometheus-host", "127.0.0.1"),
)
ROUTERS = {
    VLLM: ("vllm_router.launch_router", *_ROUTER, "--log-level", "error"),
    SGLANG: ("sglang_router.launch_router", *_ROUTER, "--disable-health-check", "--log-level", "error"),
}
ROUTER_ENV = {"TOKIO_WORKER_THREADS": "1"}

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Gate:
    """One way to the pod, and the process whose tree is charged for it (`None`: straight to the pod).

    `spent` is the same way with the key of a tenant whose rate is used up, where the gate knows of tenants. `calls`
    counts what went through it, refusals and warm-up included.
    """

    name: str
    target: Target
    pid: int | None = None
    spent: Target | None = None
    admin_port: int | None = None
    access_log: Path | None = None

    def cpu_seconds(self) -> float:
        """CPU time of its process tree so far; 0 straight to the pod."""
        return 0.0 if self.pid is None else cpu_seconds(self.pid)

    def resident_bytes(self) -> int:
        """Resident memory of its process tree now; 0 straight to the pod."""
        return 0 if self.pid is None else resident_bytes(self.pid)


@dataclass(frozen=True, slots=True)
class Programs:
    """What was found on this machine, by the name of the gate: the words that start it, its version, its settings."""

    commands: dict[str, list[str]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def find_programs(wanted: Collection[str], tell: Tell) -> Programs:
    """Look for the wanted peers, and install routers that are not there yet. `tell` is told what is left out."""
    found = Programs()
    if NGINX in wanted:
        nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/opt/homebrew/bin")
        if nginx is None:
            found.left_out[NGINX] = "not installed: apt-get install nginx-light, or what your system calls it"
        else:
            found.commands[NGINX] = [nginx]
            told = subprocess.run([nginx, "-v"], capture_output=True, text=True, check=False).stderr
            found.versions[NGINX] = told.strip().rpartition("/")[2]
    routers = [name for name in ROUTERS if name in wanted]
    if routers:
        _find_installed(found, routers, "peers", ["--require-hashes", "-r", str(LOCK)], tell)
    if LITE in wanted:
        _find_installed(found, [LITE], "litellm", [LITELLM], tell)
    for name, why in found.left_out.items():
        tell(f"{name} is left out: {why}")
    return found


def _find_installed(found: Programs, names: list[str], place: str, words: list[str], tell: Tell) -> None:
    """Programs of a Python environment of their own, made where it is not there, or of another lock."""
    folder = ENVIRONMENTS / place
    python = folder / "bin" / "python"
    stamp = folder / ".installed"
    asked = LOCK.read_text() if place == "peers" else " ".join(words)
    if not stamp.exists() or stamp.read_text() != asked:
        tell(f"installing {', '.join(names)} into {os.path.relpath(folder)} (once) ...")
        venv.EnvBuilder(with_pip=True, clear=True).create(folder)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *words]
        done = subprocess.run(pip, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            found.left_out.update(dict.fromkeys(names, f"pip install {' '.join(words)}: {last}"))
            return
        stamp.write_text(asked)
    for name in names:
        package = "litellm" if name == LITE else name
        ask = f"import importlib.metadata as m; print(m.version('{package}'))"
        found.versions[name] = subprocess.check_output([python, "-c", ask], text=True).strip()
        found.commands[name] = (
            [str(folder / "bin" / "litellm")] if name == LITE else [str(python), "-m", *ROUTERS[name]]
        )


@contextlib.contextmanager
def opened(programs: Programs, pod_words: list[str], twin_words: list[str], folder: Path) -> Iterator[list[Gate]]:
    """A pod with these options, and all gates before it: straight, Penstock, and the programs that were found.

    With `twin_words` the straight way leads to a pod of its own that has these, and says the same.
    """
    simulator = ["backends.pods.simulator", "--model", "tiny"]
    with contextlib.ExitStack() as stack:
        twin = stack.enter_context(started_pod([*simulator, *twin_words], folder)) if twin_words else None
        pod = stack.enter_context(started_pod([*simulator, *pod_words], folder))
        made = [Gate(DIRECT, Target(f"http://127.0.0.1:{twin or pod}/v1"))]
        file = PENSTOCK_FILE.format(pod=pod, key=key_hash(KEY), spent_key=key_hash(SPENT_KEY))
        pid, port, admin = stack.enter_context(serving(file, folder))
        url = f"http://127.0.0.1:{port}/v1"
        never = Target(url, SPENT_KEY, "x-penstock-queue: never\r\n")
        made.append(Gate(PENSTOCK, Target(url, KEY), pid, never, admin, folder / "access.log"))
        for name, command in programs.commands.items():
            made.append(stack.enter_context(_peer(name, command, pod, folder)))
        for gate in made:
            path = "/readyz" if gate.name == PENSTOCK else "/health/liveliness" if gate.name == LITE else "/health"
            wait_for(int(gate.target.url.rsplit(":", 1)[1].removesuffix("/v1")), path)
        yield made


@contextlib.contextmanager
def _peer(name: str, command: list[str], pod: int, folder: Path) -> Iterator[Gate]:
    port = free_port()
    target = Target(f"http://127.0.0.1:{port}/v1", KEY)
    env: dict[str, str] = {}
    spent = None
    if name == NGINX:
        file = folder / "nginx.conf"
        file.write_text(NGINX_FILE.format(folder=folder, pod=pod, port=port, spent_key=SPENT_KEY))
        words = [*command, "-c", str(file), "-e", str(folder / "error.log")]
        spent = Target(target.url, SPENT_KEY)
    elif name == LITE:
        file = folder / "litellm.yaml"
        file.write_text(LITELLM_FILE.format(pod=pod, key=KEY))
        words = [*command, "--config", str(file), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    else:
        words = [*command, "--worker-urls", f"http://127.0.0.1:{pod}", "--port", str(port)]
        words += ["--prometheus-port", str(free_port())]
        env = ROUTER_ENV
    with process(words, folder / f"{name}.log", output=folder / f"{name}.out", env=env) as child:
        yield Gate(name, target, child.pid, spent)


def settings(name: str) -> str:
    """How a gate is set, in words that another can repeat."""
    if name == PENSTOCK:
        return "`penstock serve` with the file below; access log, accounts, rates and metrics are always on"
    if name == NGINX:
        return (
            "1 worker, `proxy_buffering off`, `limit_conn` and `limit_req` by the `authorization` header, "
            "`upstream keepalive 512`, access log on"
        )
    if name in ROUTERS:
        return f"`TOKIO_WORKER_THREADS=1 python -m {' '.join(ROUTERS[name])} --worker-urls POD`"
    return "1 worker, master key" if name == LITE else "no gate: the client calls the pod"
