"""`penstock check`: whether a file is right, and what its figures add up to.

Faults are printed as such; a file without faults gets its capacity plan, as tables and findings. The sums and findings
are `tenancy.plan`'s; here they are laid out for 100 columns.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence

from gateway.commands.file import add_file_option, is_file, print_faults, print_unreadable, read_configuration
from tenancy.config.faults import ConfigError, listed
from tenancy.config.load import Loaded
from tenancy.plan.contradictions import Severity
from tenancy.plan.plan import Plan, plan
from tenancy.plan.sums import DevicePlan, PodPlan, TenantPlan
from tenancy.policy import Budget
from tenancy.units import format_bytes

DESCRIPTION = """\
Read a configuration and say everything that is wrong with it, each fault with its line and what would be right.
If nothing is, print the capacity plan: what pods take of each device, whose guarantees stand against each pod's
KV memory, and whatever in the file contradicts itself.
"""
EPILOG = """\
findings:
  error     what the file says can never hold: an over-full device, a tenant that no pod can serve, a file not there
  warning   it will not always hold, or nobody can tell: guarantees beyond what a pod holds
  note      nothing is wrong, but it is good to know

examples:
  penstock check -f penstock.yaml
  envsubst < template.yaml | penstock check -f -

exit codes: 0 good (warnings and notes included), 1 faults or errors found, 2 no such file, or misused
"""

_WIDTH = 100
_MOST_ROWS = 60
_MOST_NAMES = 4
_LATER = "told when it runs"


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "check",
        help="say what is wrong with a file, and what it adds up to",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_file_option(parser)


def run(args: argparse.Namespace) -> int:
    """Print faults or the plan; 1 where the file is found wanting, 2 where there is none."""
    try:
        loaded = read_configuration(args.file)
    except ConfigError as error:
        print_faults(error)
        return 1
    except OSError as error:
        print_unreadable(args.file, error)
        return 2
    planned = plan(loaded.policy, now_epoch=time.time(), exists=is_file)
    for line in report(loaded, planned):
        sys.stdout.write(line + "\n")
    return 0 if planned.is_sound else 1


def report(loaded: Loaded, planned: Plan) -> Iterator[str]:
    """The plan, line by line."""
    listed_devices = [device for device in planned.devices if device.is_listed]
    if listed_devices:
        yield from _section(
            "Devices", ("device", "memory", "left", "pods (limit + overhead)"), _devices(listed_devices)
        )
    yield from _section("Pods", ("pod", "on", "KV memory", "tokens", "at once", "guaranteed to"), _pods(planned.pods))
    header = ("tenant", "keys", "memory", "lent to", "at once", "req/min", "tok/min", "served by")
    yield from _section("Tenants", header, _tenants(planned.tenants))
    yield from _not_yet(loaded)
    yield from _findings(loaded, planned)


def _devices(devices: Sequence[DevicePlan]) -> list[tuple[str, ...]]:
    return [
        (
            device.device.name,
            "not known" if device.memory_bytes is None else format_bytes(device.memory_bytes),
            "" if device.left_bytes is None else format_bytes(device.left_bytes),
            ", ".join(
                f"{charge.pod} {'?' if charge.limit_bytes is None else _short(charge.limit_bytes)}"
                f" + {_short(charge.overhead_bytes)}"
                for charge in device.charges
            )
            or "none",
        )
        for device in devices
    ]


def _pods(pods: Sequence[PodPlan]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for planned in pods:
        later = _LATER if planned.tells_kv is not False else "not known"
        promised = [f"{guarantee.tenant} {_short(guarantee.guarantee_bytes)}" for guarantee in planned.guarantees]
        total = _short(sum(guarantee.guarantee_bytes for guarantee in planned.guarantees))
        guaranteed = (f"{total}: " if len(promised) > 1 else "") + listed(promised, _MOST_NAMES)
        owner = f"{planned.pod.owner} alone" if planned.pod.owner is not None else "nobody"
        rows.append(
            (
                planned.pod.name,
                "itself" if planned.pod.devices == (planned.pod.name,) else ", ".join(planned.pod.devices),
                later if planned.kv_bytes is None else format_bytes(planned.kv_bytes),
                "" if planned.kv_tokens is None else f"{planned.kv_tokens:,}",
                _count(planned.slots, _LATER if planned.pod.engine == "llama.cpp" else "no limit"),
                guaranteed if promised else owner,
            )
        )
    return rows


def _tenants(tenants: Sequence[TenantPlan]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for planned in tenants:
        budget: Budget = planned.tenant.budget
        by_device = budget.memory_by_device
        memory = "no limit" if planned.guarantee_bytes is None else format_bytes(planned.guarantee_bytes)
        if by_device is not None:
            memory = " + ".join(f"{device} {format_bytes(size)}" for device, size in by_device.items())
        is_lent = planned.limit_bytes is not None and planned.limit_bytes != planned.guarantee_bytes
        rows.append(
            (
                planned.tenant.name,
                str(len(planned.tenant.keys)),
                memory,
                format_bytes(planned.limit_bytes or 0) if is_lent else "",
                _count(budget.concurrency),
                _count(budget.requests_per_minute),
                _count(budget.tokens_per_minute),
                listed(planned.pods, _MOST_NAMES) or "none",
            )
        )
    return rows


def _section(title: str, header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """A table with its title; the last column is wrapped where it would pass the right edge."""
    shown = [header, *rows[:_MOST_ROWS]]
    filled = [number for number in range(len(header)) if any(row[number] for row in shown[1:])]
    widths = {number: max(len(row[number]) for row in shown) for number in filled}
    yield title
    for row in shown:
        lead = "  ".join(_aligned(row[n], widths[n], shown[1][n]) for n in filled[:-1])
        indent = f"  {lead}  "
        room = max(24, _WIDTH - len(indent))
        first, *others = textwrap.wrap(row[filled[-1]], room, break_on_hyphens=False) or [""]
        yield f"{indent}{first}".rstrip()
        for other in others:
            yield " " * len(indent) + other
    if len(rows) > _MOST_ROWS:
        yield f"  and {len(rows) - _MOST_ROWS} more"
    yield ""


def _not_yet(loaded: Loaded) -> Iterator[str]:
    if not loaded.not_yet:
        return
    yield "Set, and without effect in this release"
    width = max(len(key.key) for key in loaded.not_yet)
    for key in loaded.not_yet:
        where = f"line {key.line}" + (f" and {key.times - 1} more" if key.times > 1 else "")
        yield f"  {key.key:<{width}}  {key.holds} ({where})"
    yield ""


def _findings(loaded: Loaded, planned: Plan) -> Iterator[str]:
    if planned.findings:
        yield "Findings"
    for finding in planned.findings[:_MOST_ROWS]:
        source, line = loaded.locate(finding.path)
        where = f"{source}:{line}" if line is not None else source
        yield f"  {finding.severity.value:<8} {where}: {finding.place}"
        yield from textwrap.wrap(
            finding.text, _WIDTH, initial_indent=" " * 11, subsequent_indent=" " * 11, break_on_hyphens=False
        )
    if len(planned.findings) > _MOST_ROWS:
        yield f"  and {len(planned.findings) - _MOST_ROWS} more"
    counts = [sum(f.severity is severity for f in planned.findings) for severity in Severity]
    totals = ", ".join(_plural(n, severity.value) for n, severity in zip(counts, Severity, strict=True) if n)
    if planned.findings:
        yield ""
    yield f"{loaded.source}: {totals or 'everything adds up'}"


def _aligned(cell: str, width: int, sample: str) -> str:
    """A cell in its column: figures to the right, as the column's first one tells."""
    is_figure = sample.lstrip("-")[:1].isdigit() or sample in {"no limit", "not known", _LATER}
    return cell.rjust(width) if is_figure else cell.ljust(width)


def _count(value: int | None, none: str = "no limit") -> str:
    return none if value is None else f"{value:,}"


def _short(size: int) -> str:
    """A size in a row of sizes: without decimals where they are zero."""
    return format_bytes(size).replace(".00 ", " ")


def _plural(count: int, word: str) -> str:
    return f"{count} {word}{'s' if count != 1 else ''}"
