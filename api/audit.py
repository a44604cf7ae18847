"""`headrace audit`: recompute everything from the events, show what differs, halt the campaigns whose books do.

Owns the table, the closing line and the exit status: 0 for no difference, 1 for one or more, 2 when there was nothing
to audit or a store could not be asked. What is checked, and what halts, stands in engine/audit.py.
"""

from __future__ import annotations

from functools import partial

import trio
from rich.console import Console
from rich.table import Table
from rich.text import Text

from config.settings import Settings
from engine.audit import AuditResult, Finding
from engine.auditor import audit
from engine.embedded import open_stores
from engine.errors import EngineError


def run(settings: Settings, *, halt: bool = True) -> int:
    """Audit the stores of the settings: those of the URLs, or the embedded ones, started for the time if need be."""
    if not (settings.db_url and settings.redis_url) and not (settings.data_path / "stores").exists():
        _complain(f"there is nothing to audit: no embedded stores in HEADRACE_DATA ({settings.data}), and no DB_URL")
        return 2
    try:
        with open_stores(settings) as stores:
            result = trio.run(partial(audit, stores.db_url, stores.redis_url, settings, halt=halt))
    except EngineError as error:
        _complain(str(error))
        return 2
    _show(result)
    return 1 if result.differences else 0


def closing_line(result: AuditResult) -> str:
    """What was audited and what came of it, in one line."""
    differences = len(result.differences)
    verdict = _count(differences, "difference") if differences else "no difference"
    return f"audited {_count(result.campaigns, 'campaign')}, {_count(result.events, 'event')}: {verdict}"


def _show(result: AuditResult) -> None:
    console = Console(highlight=False)
    if result.findings:
        console.print(_table(result.findings))
    if any(finding.note for finding in result.findings):
        console.print("A note is no difference: the plan was changed since, and may have allowed it.", style="dim")
    if result.rebuilt_later:
        where = _count(result.rebuilt_later, "campaign")
        console.print(f"Redis doesn't hold {where}: rebuilt from Postgres at next use, not compared.", style="dim")
    for campaign, reason in sorted(result.halted.items()):
        said = f"campaign {campaign} is halted; to rebuild its books: headrace recover {campaign} ({reason})"
        console.print(Text(said), style="bold red", soft_wrap=True)
    console.print(closing_line(result), style="bold red" if result.differences else "bold green", soft_wrap=True)


def _table(findings: list[Finding]) -> Table:
    table = Table("campaign", "check", "expected", "found")
    for finding in findings:
        check = f"{finding.check} (note)" if finding.note else finding.check
        cells = (str(finding.campaign_id), check, finding.expected, finding.found)
        table.add_row(*(Text(cell) for cell in cells), style="dim" if finding.note else "")
    return table


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _complain(sentence: str) -> None:
    Console(stderr=True, highlight=False).print(Text(sentence), soft_wrap=True)
