"""`headrace recover CAMPAIGN...`: rebuild campaigns from their events, and put them back in service.

Owns the table of what was and what is, the closing line and the exit status: 0 when every campaign is back, 1 when one
is unknown or could not be brought back, 2 when a store could not be reached. The steps stand in engine/recoverer.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio
from rich.console import Console
from rich.table import Table
from rich.text import Text

from config.settings import Settings
from engine.embedded import open_stores
from engine.errors import EngineError
from engine.model import day_text, decimal_text
from engine.recoverer import Recovered, recover


def run(settings: Settings, campaigns: Sequence[int]) -> int:
    """Recover campaigns in the stores of the settings: those of the URLs, or the embedded ones."""
    if not (settings.db_url and settings.redis_url) and not (settings.data_path / "stores").exists():
        _complain(f"there is nothing to recover: no embedded stores in HEADRACE_DATA ({settings.data}), and no DB_URL")
        return 2
    try:
        with open_stores(settings) as stores:
            recovered = trio.run(recover, stores.db_url, stores.redis_url, campaigns, settings)
    except EngineError as error:
        _complain(str(error))
        return 2
    console = Console(highlight=False)
    for each in recovered:
        _show(console, each)
    back = sum(not each.trouble for each in recovered)
    everything = back == len(recovered)
    line = f"recovered {back:,} of {len(recovered):,} campaign{'s' if len(recovered) > 1 else ''}"
    console.print(line, style="bold green" if everything else "bold red", soft_wrap=True)
    return 0 if everything else 1


def _show(console: Console, recovered: Recovered) -> None:
    rebuilt = recovered.rebuilt
    if rebuilt is not None:
        console.print(_table(recovered))
        if rebuilt.after.spent_micros > rebuilt.after.total_budget_micros:
            note = "More is spent than the total budget: nothing billable is accepted until the budget is raised."
            console.print(note, style="dim", soft_wrap=True)
    if recovered.trouble:
        console.print(Text(f"campaign {recovered.campaign_id}: {recovered.trouble}"), style="bold red", soft_wrap=True)


def _table(recovered: Recovered) -> Table:
    rebuilt = recovered.rebuilt
    assert rebuilt is not None
    was, now = rebuilt.before, rebuilt.after
    table = Table(f"campaign {recovered.campaign_id}", "was", "is")
    table.add_row("spent", decimal_text(was.spent_micros), decimal_text(now.spent_micros))
    table.add_row("latest spend day", day_text(was.day), day_text(now.day))
    table.add_row("spent on it", decimal_text(was.today_micros), decimal_text(now.today_micros))
    table.add_row("total budget", decimal_text(was.total_budget_micros), decimal_text(now.total_budget_micros))
    table.add_row("daily budget", decimal_text(was.daily_budget_micros), decimal_text(now.daily_budget_micros))
    table.add_row("rollup", f"{rebuilt.hours:,} wrong", "rewritten" if rebuilt.hours else "as it was")
    table.add_row("generation", str(was.generation), str(recovered.generation))
    table.add_row("halted", Text(rebuilt.reason), "no")
    return table


def _complain(sentence: str) -> None:
    Console(stderr=True, highlight=False).print(Text(sentence), soft_wrap=True)
