"""The audit of a run: what the rows say of the answers. Judges every system by the same queries.

Owns the queries. Shares nothing with the engine but the tables that others may read (`events`, `ledger`, `campaigns`).
What was sent is expanded inside Postgres, from requests and templates: a million events take seconds.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterator, Sequence
from typing import Any, Final

import psycopg

from bench.bodies import Template, stem
from bench.results import Audit
from bench.sender import ACCEPTED, ALL, BLOCK, DUPLICATE, NONE, REJECTED, RETRY, Sent

EXAMPLES_MAX: Final = 5

_TABLES: Final = f"""
CREATE SCHEMA audit;
CREATE UNLOGGED TABLE audit.requests (n bigint, stem text, old_stem text, template int, outcome smallint);
CREATE UNLOGGED TABLE audit.lines
    (template int, at int, tail text, campaign_id bigint, user_id text, event_type smallint, old bool, bad bool);
CREATE UNLOGGED TABLE audit.verdicts (n bigint, at int, verdict "char");
CREATE FUNCTION audit.verdict_of(outcome smallint) RETURNS "char" IMMUTABLE LANGUAGE sql AS
$$ SELECT (CASE outcome WHEN {ALL} THEN '{ACCEPTED}' WHEN {NONE} THEN '{REJECTED}' ELSE '{RETRY}' END)::"char" $$;
"""

# One row an event and answer. A bad event has no row of its own, whatever its id. Rows under a negative tag stood there
# before the run began (bench/filling.py): they count for the books, and were sent by nobody.
_EXPAND: Final = """
CREATE UNLOGGED TABLE audit.answers AS
SELECT r.n, l.campaign_id, l.event_type, l.bad,
       ((CASE WHEN l.old THEN r.old_stem ELSE r.stem END) || '-' || l.tail)::uuid AS event_id,
       replace(l.user_id, '#', CASE WHEN l.old THEN r.old_stem ELSE r.stem END) AS user_id,
       coalesce(v.verdict, audit.verdict_of(r.outcome)) AS verdict
  FROM audit.requests r
  JOIN audit.lines l USING (template)
  LEFT JOIN audit.verdicts v ON v.n = r.n AND v.at = l.at;
CREATE UNLOGGED TABLE audit.told AS
SELECT event_id, min(campaign_id) AS campaign_id, min(user_id) AS user_id, min(event_type) AS event_type,
       count(*) FILTER (WHERE verdict = 'a') AS accepted,
       count(*) FILTER (WHERE verdict = 'd') AS duplicate,
       count(*) FILTER (WHERE verdict = 'r') AS rejected,
       min(n) FILTER (WHERE verdict IN ('a', 'd')) AS first_acknowledged,
       max(n) FILTER (WHERE verdict = 'r') AS last_rejected
  FROM audit.answers WHERE NOT bad GROUP BY event_id;
CREATE UNLOGGED TABLE audit.rows AS
SELECT event_id, count(*) AS rows, min(campaign_id) AS campaign_id, min(user_id) AS user_id,
       min(event_type) AS event_type
  FROM events WHERE batch >= 0 GROUP BY event_id;
ANALYZE audit.told; ANALYZE audit.rows;
"""

# Name of a figure -> what it counts, as (number, example).
# What was refused for its budget may be accepted when it is sent again, and is not denied then; what was accepted must
# not be refused afterwards. Requests are numbered in order, and nothing is sent again before it was answered.
_CHECKS: Final = {
    "lost": "SELECT count(*), min(event_id::text) FROM audit.told t WHERE accepted + duplicate > 0"
            " AND NOT EXISTS (SELECT FROM audit.rows r WHERE r.event_id = t.event_id)",
    "double": "SELECT count(*), min(event_id::text) FROM (SELECT event_id FROM audit.rows WHERE rows > 1"
              " UNION ALL SELECT event_id FROM audit.told WHERE accepted > 1)",
    "phantom": "SELECT count(*), min(r.event_id::text) FROM audit.rows r LEFT JOIN audit.told t USING (event_id)"
               " WHERE (r.campaign_id, r.user_id, r.event_type) IS DISTINCT FROM"
               " (t.campaign_id, t.user_id, t.event_type)",
    "denied": "SELECT count(*), min(r.event_id::text) FROM audit.rows r JOIN audit.told t USING (event_id)"
              " WHERE rejected > 0 AND last_rejected > coalesce(first_acknowledged, -1)",
    "overspend_micros": "SELECT coalesce(sum(above), 0), min(campaign_id::text) FROM ("
              "SELECT c.id AS campaign_id, sum(e.cost_micros) - c.total_budget_micros AS above"
              " FROM campaigns c JOIN events e ON e.campaign_id = c.id GROUP BY c.id UNION ALL"
              " SELECT c.id, sum(e.cost_micros) - c.daily_budget_micros"
              " FROM campaigns c JOIN events e ON e.campaign_id = c.id GROUP BY c.id, e.spend_day) WHERE above > 0",
    "over_cap": "SELECT coalesce(sum(above), 0), min(user_id) FROM ("
              "SELECT e.user_id, count(*) - c.freq_cap_impressions_per_day AS above"
              " FROM campaigns c JOIN events e ON e.campaign_id = c.id AND e.event_type = 0"
              " GROUP BY c.id, e.user_id, e.spend_day) WHERE above > 0",
    "unbalanced": "SELECT count(*), min(l.campaign_id::text) FROM ledger l LEFT JOIN (SELECT campaign_id,"
              " sum(cost_micros) AS spent FROM events GROUP BY campaign_id) s USING (campaign_id)"
              " WHERE l.spent <> coalesce(s.spent, 0)",
    "acknowledged": "SELECT count(*), NULL FROM audit.told WHERE accepted + duplicate > 0",
    "unknown": "SELECT count(*), NULL FROM audit.told WHERE accepted + duplicate + rejected = 0",
    "unknown_committed": "SELECT count(*), NULL FROM audit.told t JOIN audit.rows USING (event_id)"
              " WHERE accepted + duplicate + rejected = 0",
}  # fmt: skip
_PROMISES: Final = ("lost", "double", "phantom", "denied", "overspend_micros", "over_cap", "unbalanced")


def audit_run(db_url: str, templates: Sequence[Template], steps: Sequence[Sent]) -> Audit:
    """Judge all steps of a run, the warm-up included. They must be over: nothing may be written meanwhile."""
    started = time.monotonic()
    counts: dict[str, int] = {}
    examples: list[str] = []
    with psycopg.connect(db_url, autocommit=True) as connection:
        connection.execute(_TABLES)
        _load(connection, "lines", _lines(templates))
        _load(connection, "requests", _requests(steps))
        _load(connection, "verdicts", _verdicts(steps))
        connection.execute("SET work_mem = '256MB'")
        connection.execute("ANALYZE audit.requests; ANALYZE audit.lines; ANALYZE audit.verdicts")
        connection.execute(_EXPAND)
        for name, query in _CHECKS.items():
            count, example = connection.execute(query).fetchone() or (0, None)
            counts[name] = int(count)
            if count and name in _PROMISES and len(examples) < EXAMPLES_MAX:
                examples.append(f"{name}: {example}")
        connection.execute("DROP SCHEMA audit CASCADE")
    return Audit(**counts, examples=examples, seconds=round(time.monotonic() - started, 2))


def _load(connection: psycopg.Connection[Any], table: str, rows: Iterator[str]) -> None:
    with connection.cursor().copy(f"COPY audit.{table} FROM STDIN") as copy:
        for row in rows:
            copy.write(row)


def _lines(templates: Sequence[Template]) -> Iterator[str]:
    for number, template in enumerate(templates):
        for at, line in enumerate(template.lines):
            yield (
                f"{number}\t{at}\t{line.tail}\t{line.campaign_id}\t{line.user}\t{line.event_type}\t"
                f"{'ft'[line.old]}\t{'ft'[line.bad]}\n"
            )


def _requests(steps: Sequence[Sent]) -> Iterator[str]:
    for number, sent in enumerate(steps):
        templates, olds = array("i", sent.templates), array("q", sent.olds)
        for n, (template, old, outcome) in enumerate(zip(templates, olds, sent.outcomes, strict=True)):
            own = stem(sent.bases[n // BLOCK], n).decode()
            before = stem(sent.bases[old // BLOCK], old).decode() if old >= 0 else own
            yield f"{_unique(number, n)}\t{own}\t{before}\t{template}\t{outcome}\n"


def _verdicts(steps: Sequence[Sent]) -> Iterator[str]:
    for number, sent in enumerate(steps):
        for n, at, verdict in sent.verdicts:
            yield f"{_unique(number, n)}\t{at}\t{verdict}\n"


def _unique(step: int, n: int) -> int:
    return step << 40 | n


assert DUPLICATE == "d", "the queries spell it"
assert (ACCEPTED, REJECTED) == ("a", "r"), "the queries spell them"
