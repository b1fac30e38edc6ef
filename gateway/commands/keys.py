"""`penstock keys`: make an API key, of which Penstock keeps nothing.

The key is shown once; what goes into the configuration is its SHA-256. Nothing is written anywhere by this command.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import time
from collections.abc import Callable, Sequence

from gateway.commands.file import print_faults, print_unreadable, read_names
from tenancy.config import written
from tenancy.config.faults import ConfigError, suggest
from tenancy.directory import hash_key

PREFIX = "sk-penstock-"

DESCRIPTION = "API keys: made here, shown once, and kept as their SHA-256 alone."
NEW_DESCRIPTION = """\
Make a key for a tenant. The key is printed once and kept nowhere: hand it to whoever will use it. The line to paste
under the tenant's `keys` holds its SHA-256, which tells nobody the key. Limits given here become the key's own, below
those of its tenant.
"""
NEW_EPILOG = """\
examples:
  penstock keys new acme
  penstock keys new acme --name ci --concurrency 4 --expires 2027-01-01
  penstock keys new acme -f penstock.yaml      checks that the file has this tenant (and each --model)
  penstock keys new acme --json                {"key": ..., "entry": ...}, for scripts

exit codes: 0 made, 1 no such tenant or model in the file, 2 no such file, or misused
"""

_LIMITS = (
    ("concurrency", written.count(1), "N", "calls at once"),
    ("requestsPerMinute", written.count(1), "N", "calls in any 60 seconds"),
    ("tokensPerMinute", written.count(1), "N", "tokens in any 60 seconds"),
    ("memory", written.size(), "SIZE", "GPU memory of its calls, such as 2Gi"),
)


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    keys = subparsers.add_parser("keys", help="make API keys", description=DESCRIPTION)
    verbs = keys.add_subparsers(dest="verb", required=True, metavar="VERB")
    new = verbs.add_parser(
        "new",
        help="make a key, and print it once",
        description=NEW_DESCRIPTION,
        epilog=NEW_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    new.add_argument("tenant", metavar="TENANT", type=_reader(written.name()), help="whose key it is")
    new.add_argument(
        "-f", "--file", metavar="FILE", help="a configuration that must have this tenant, and each --model"
    )
    new.add_argument("--json", action="store_true", help="print one JSON object")
    own = new.add_argument_group("what the key alone may do")
    own.add_argument("--name", type=_reader(written.name()), help="what logs and refusals call it")
    own.add_argument("--model", action="append", type=_reader(written.model_name()), help="a model; may be repeated")
    own.add_argument("--expires", metavar="DATE", type=_to_come, help="when it ends: 2027-01-01")
    for name, kind, metavar, meaning in _LIMITS:
        own.add_argument(f"--{_dashed(name)}", dest=name, metavar=metavar, type=_reader(kind), help=meaning)


def run(args: argparse.Namespace) -> int:
    """Print a new key and its entry; 1 where the file lacks the tenant or a model, 2 where there is no file."""
    if args.file is not None:
        code = _refuse_unknown(args.tenant, args.model or (), args.file)
        if code:
            return code
    key = new_key()
    entry = _entry(args, hash_key(key))
    if args.json:
        sys.stdout.write(json.dumps({"tenant": args.tenant, "key": key, "entry": entry}) + "\n")
        return 0
    line = json.dumps(entry) if isinstance(entry, str) else _flow(entry)
    sys.stdout.write(
        f"The key, shown this once:\n\n  {key}\n\n"
        f"The line for the `keys` of tenant {args.tenant} in {args.file or 'penstock.yaml'}:\n\n  - {line}\n"
    )
    return 0


def new_key() -> str:
    """A fresh key: 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def _refuse_unknown(tenant: str, models: Sequence[str], name: str) -> int:
    """0 where the file has the tenant and the models; else the exit code, once the reason was printed."""
    try:
        names = read_names(name)
    except ConfigError as error:
        print_faults(error)
        return 1
    except OSError as error:
        print_unreadable(name, error)
        return 2
    unknown = [("tenant", tenant, names.tenants)] if tenant not in names.tenants else []
    unknown += [("model", model, names.models) for model in models if names.models and model not in names.models]
    for kind, word, known in unknown:
        print(f"penstock: {name} has no {kind} {word!r}; {suggest(word, known)}", file=sys.stderr)
    return 1 if unknown else 0


def _entry(args: argparse.Namespace, digest: str) -> str | dict[str, object]:
    """What goes into the file: the hash, or a mapping where the key has anything of its own."""
    own: dict[str, object] = {"name": args.name, "models": args.model, "expires": args.expires}
    for name, _, _, _ in _LIMITS:
        limit = getattr(args, name)
        own[name] = int(limit) if limit is not None and limit.isdigit() else limit
    own = {name: value for name, value in own.items() if value is not None}
    return {"hash": f"sha256:{digest}", **own} if own else f"sha256:{digest}"


def _flow(entry: dict[str, object]) -> str:
    """A mapping as one line of YAML; JSON's texts and lists are YAML's, too."""
    return "{" + ", ".join(f"{name}: {json.dumps(value)}" for name, value in entry.items()) + "}"


def _reader(kind: written.Written) -> Callable[[str], str]:
    """Checks an option's text as the file's schema would, and keeps it as it was written."""

    def check(text: str) -> str:
        try:
            kind.read(text)
        except (written.Wrong, ValueError) as wrong:
            remedy = getattr(wrong, "remedy", "")
            raise argparse.ArgumentTypeError(f"{wrong}{'; ' + remedy if remedy else ''}") from None
        return text

    return check


def _to_come(text: str) -> str:
    """A moment, as it was written, that is not past."""
    kind = written.moment()
    _reader(kind)(text)
    if kind.read(text) <= time.time():
        raise argparse.ArgumentTypeError(f"{text} is past: the key would open nothing; write a date to come")
    return text


def _dashed(name: str) -> str:
    """`requestsPerMinute` as an option: `requests-per-minute`."""
    return "".join(f"-{letter.lower()}" if letter.isupper() else letter for letter in name)
