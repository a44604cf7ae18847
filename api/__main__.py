"""The command line: `headrace serve | send FILE | audit | recover CAMPAIGN`.

Owns the arguments and what a wrong one costs: one clear line on standard error, and exit status 2. What a command
does stands in its own module, which is imported only when it runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from config.settings import Settings, SettingsError, load_settings

USAGE_STATUS = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status. A wrong usage ends in `SystemExit` with status 2, as argparse does it."""
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except SettingsError as error:
        print(f"headrace: {error}", file=sys.stderr)
        return USAGE_STATUS
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headrace",
        description="Ingestion engine for ad events: a 200 is never wrong. Settings come from the environment.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser(
        "serve",
        help="run the engine and both listeners until SIGTERM",
        epilog="SIGTERM drains and ends it; SIGHUP starts the processes of HEADRACE_WORKERS anew, one by one.",
    )
    serve.set_defaults(run=_serve)
    send = commands.add_parser(
        "send",
        help="send events from a file or standard input until each has a final verdict",
        description="Send events, one JSON object a line, until each has a final verdict.",
        epilog="Exit status: 0 every event has a final verdict and none was invalid; 1 some were invalid or "
        "unreadable, or were given up; 2 wrong usage; 130 interrupted.",
    )
    _add_send_arguments(send)
    audit = commands.add_parser(
        "audit",
        help="recompute ledger, rollups and Redis from the events, show what differs, halt those campaigns",
        description="Recompute ledger, rollups and Redis from the events, and show what differs. A campaign whose "
        "books differ is halted: it answers 503 until `headrace recover` has rebuilt them.",
        epilog="Exit status: 0 no difference; 1 one or more; 2 a store can't be reached.",
    )
    audit.add_argument("--no-halt", action="store_true", help="only look: change nothing")
    audit.set_defaults(run=_audit)
    recover = commands.add_parser(
        "recover",
        help="rebuild a campaign's ledger, rollups and Redis from its events, and put it back in service",
        description="Rebuild a campaign's ledger row, rollups and Redis from its events, and put it back in service. "
        "Engines may run; the campaign answers 503 meanwhile.",
        epilog="Exit status: 0 every campaign is back; 1 one is unknown or could not be brought back; 2 a store can't "
        "be reached.",
    )
    recover.add_argument("campaigns", metavar="CAMPAIGN", nargs="+", type=_campaign, help="number of a campaign")
    recover.set_defaults(run=_recover)
    return parser


def _add_send_arguments(send: argparse.ArgumentParser) -> None:
    send.add_argument("file", metavar="FILE", help="file of JSON lines, or - for standard input")
    send.add_argument("--url", help="base URL of a listener (default: http://HEADRACE_INTAKE)")
    send.add_argument("--batch", type=_count, default=1_000, metavar="N", help="events a request at most (1000)")
    send.add_argument("--concurrency", type=_count, default=4, metavar="N", help="requests at once (4)")
    send.add_argument(
        "--rebase-time",
        action="store_true",
        help="move the first occurred_at to now and all others by as much, but none past now; sent again on another "
        "day (UTC), the same file counts once more",
    )
    send.add_argument(
        "--campaign",
        action="append",
        default=[],
        type=_rename,
        metavar="OLD=NEW",
        help="send campaign OLD's events to campaign NEW; may be repeated",
    )
    send.add_argument("--gzip", action=argparse.BooleanOptionalAction, default=True, help="compress requests (yes)")
    send.add_argument("--quiet", action="store_true", help="print nothing but complaints")
    send.add_argument("--deadline", type=_seconds, metavar="SECONDS", help="give up after this time (default: never)")
    send.set_defaults(run=_send)


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 100_000:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 1 to 100000")
    return int(text)


def _campaign(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) < 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} must be the number of a campaign")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of seconds above 0")
    return seconds


def _rename(text: str) -> tuple[str, int]:
    old, equals, new = text.rpartition("=")
    if not equals or not old or not new.isascii() or not new.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} must be OLD=NEW, and NEW a campaign's number")
    return old, int(new)


def _serve(_: argparse.Namespace) -> int:
    from api.serve import run

    return run(load_settings())


def _send(arguments: argparse.Namespace) -> int:
    from api.send import Command, run

    command = Command(
        file=arguments.file,
        url=arguments.url or _intake_url(load_settings()),
        batch_events_max=arguments.batch,
        concurrency=arguments.concurrency,
        rebase_time=arguments.rebase_time,
        renames=dict(arguments.campaign),
        gzip=arguments.gzip,
        quiet=arguments.quiet,
        deadline_seconds=arguments.deadline,
    )
    return run(command)


def _intake_url(settings: Settings) -> str:
    return f"http://{settings.intake}"


def _audit(arguments: argparse.Namespace) -> int:
    from api.audit import run

    return run(load_settings(), halt=not arguments.no_halt)


def _recover(arguments: argparse.Namespace) -> int:
    from api.recover import run

    return run(load_settings(), arguments.campaigns)


if __name__ == "__main__":
    sys.exit(main())
