"""`penstock serve`: run the gateway that a file describes."""

from __future__ import annotations

import argparse
import dataclasses
import sys

from backends.pods.options import port
from gateway.commands.file import add_file_option, is_file, read_policy

HELP = "run the gateway that a file describes"

DESCRIPTION = """\
Run the gateway: an OpenAI-compatible API in front of the file's pods, which admits each tenant's calls within its
budget.
"""

EPILOG = """\
examples:
  penstock serve -f penstock.yaml
  penstock serve -f penstock.yaml --host 0.0.0.0 --port 8000

The file's `server` and `admin` sections say where it listens (127.0.0.1:8080, and 127.0.0.1:8081 for /metrics). Pods
of the file that have no `url` are started, restarted and ended by the gateway. The access log goes to standard output,
one JSON object a request; what the gateway itself has to say goes to standard error.

The first Ctrl-C or SIGTERM drains: nothing new is admitted, open streams finish, exit 0. A second one ends it at once.

exit codes: 0 ended in order; 1 ended before its streams were, or could not listen; 2 the file or the command line is
wrong
"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "serve", help=HELP, description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_file_option(parser)
    parser.add_argument("--host", help="listen here instead of `server.host`")
    parser.add_argument(
        "--port", type=port, metavar="PORT", help="listen on this port instead of `server.port`; 0: any free one"
    )
    parser.add_argument("--admin-port", type=port, metavar="PORT", help="the same for `admin.port`")


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal ends it."""
    # Imported here: `--help` must not wait for FastAPI.
    from gateway.assembly import Gateway
    from gateway.http.listener import ListenError
    from gateway.lifecycle import serve
    from gateway.observe.logs import Log
    from tenancy.plan.contradictions import missing_files

    policy = read_policy(arguments.file)
    if policy is None:
        return 2
    server, admin = policy.server, policy.admin
    if arguments.host is not None:
        server = dataclasses.replace(server, host=arguments.host)
    if arguments.port is not None:
        server = dataclasses.replace(server, port=arguments.port)
    if arguments.admin_port is not None:
        admin = dataclasses.replace(admin, port=arguments.admin_port)
    policy = dataclasses.replace(policy, server=server, admin=admin)
    log = Log(sys.stderr, level=policy.logs.level, format=policy.logs.format)
    for finding in missing_files(policy, is_file):
        log.warning("file_missing", place=finding.place, detail=finding.text)

    def on_listening(gateway: Gateway) -> None:
        public, inner = gateway.listeners
        log.info("listening", url=public.url, admin=inner.url, pods=len(policy.pods), tenants=len(policy.tenants))

    try:
        return serve(policy, log, sys.stdout, on_listening)
    except ListenError as error:
        print(f"penstock: {error}", file=sys.stderr)
        return 1
