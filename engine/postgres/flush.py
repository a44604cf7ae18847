"""One flush as one message: BEGIN, COPY, guard and COMMIT in a single simple query, awaited by trio.

Owns the flush connections (libpq through `psycopg.pq`: asyncpg can't put COPY and other statements in one
message) and the certainty of each outcome. Knows nothing of Redis, actors, or what is done with a refusal.

A connection serves one flush at a time. After anything but a clean end it is rolled back or closed, and opened
again on its next use. Until the query is handed to libpq a failure is `NotRun`; from then on only an answer is
certain, and everything else is `Unknown`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Final

import psycopg
import trio
from psycopg.pq import ConnStatus, DiagnosticField, ExecStatus, TransactionStatus
from psycopg.pq.abc import PGconn, PGresult

from config.settings import Settings
from engine.locks import HASTY_LOCK_SECONDS, LOCK_SECONDS, Locked
from engine.model import CampaignId
from engine.opening import open_in_thread, speaks
from engine.ports import Batch, FlushReply, NotRun, Unknown
from engine.postgres.copy import COLUMNS, guard_call, pack_rows, sum_rows
from engine.postgres.outcome import Answer, Failure, read_answer, waited_for_ledger
from engine.postgres.sessions import LOOK_FOR_CLIENT, OURS, THEIRS, Signature

# A piece of COPY data: libpq holds what the socket did not take, so a flush never doubles in memory.
_PIECE_BYTES: Final = 256 * 1024

# The isolation that the guard is written for, whatever the database's default is.
_BEGIN: Final = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; "
_HASTY: Final = f"SET LOCAL lock_timeout = {int(HASTY_LOCK_SECONDS * 1_000)}; "
_COPY: Final = f"COPY events ({COLUMNS}) FROM STDIN (FORMAT binary)"
# Whose rows others hold at this moment: those that this can't have. It lets go at once.
_HELD: Final = """
    WITH free AS MATERIALIZED (
        SELECT campaign_id FROM ledger WHERE campaign_id = ANY ('{{{}}}') FOR NO KEY UPDATE SKIP LOCKED
    )
    SELECT campaign_id FROM ledger WHERE campaign_id = ANY ('{{{}}}') AND campaign_id NOT IN (TABLE free)
"""


class FlushPool:
    """`settings.flush_connections` connections, each used by one flush at a time."""

    def __init__(self, db_url: str, settings: Settings, signature: Signature) -> None:
        self._idle = [FlushConnection(db_url, settings, signature) for _ in range(settings.flush_connections)]
        self._free = trio.Semaphore(settings.flush_connections)
        self._timeout_seconds = settings.flush_timeout_seconds

    async def flush(self, batches: Sequence[Batch], *, hasty: bool = False) -> FlushReply:
        """One transaction for all batches. Raises nothing but `Cancelled`, which closes the connection."""
        try:
            sums = sum_rows(batches)
        except ValueError as error:
            return NotRun(str(error), data=True)
        query = f"{_BEGIN}{_HASTY if hasty else ''}{_COPY}; {guard_call(sums)}; COMMIT".encode()
        async with self._free:
            connection = self._idle.pop()
            try:
                reply = await connection.flush(query, batches, self._timeout_seconds)
            finally:
                self._idle.append(connection)
            if isinstance(reply, Unknown):  # those beside it are as old: none of them waits for its timeout as well
                self.close()
            return reply

    def close(self) -> None:
        """Close every connection that no flush uses."""
        for connection in self._idle:
            connection.close()


@asynccontextmanager
async def open_flush_pool(
    db_url: str, settings: Settings, signature: Signature | None = None
) -> AsyncIterator[FlushPool]:
    """A pool whose connections are opened on first use."""
    pool = FlushPool(db_url, settings, signature or Signature())
    try:
        yield pool
    finally:
        pool.close()


class FlushConnection:
    """One libpq connection, opened on use."""

    def __init__(self, db_url: str, settings: Settings, signature: Signature) -> None:
        self._db_url = db_url
        self._settings = settings
        self._signature = signature
        self._session: psycopg.Connection | None = None
        self._warnings: list[str] = []

    async def flush(self, query: bytes, batches: Sequence[Batch], timeout_seconds: float) -> FlushReply:
        """Send one flush and tell what came of it."""
        rows = pack_rows(batches)
        begun = False
        reply: FlushReply | None = None
        try:
            with trio.fail_after(timeout_seconds):
                pgconn = await self._ready()
                begun = True
                answer = await self._run(pgconn, query, rows)
                reply = read_answer(answer, batches)
                if pgconn.transaction_status == TransactionStatus.INERROR:
                    await _roll_back(pgconn)
                if isinstance(reply, NotRun) and waited_for_ledger(answer):
                    held = await _held(pgconn, {batch.campaign_id for batch in batches})
                    reply = Locked(held, reply.detail) if held else reply
        except (trio.TooSlowError, psycopg.Error, OSError) as error:  # (OSError: no descriptor is left, say)
            detail = str(error) or f"no answer within {timeout_seconds} s"
            if not begun:
                reply = NotRun(f"could not connect: {detail}")
            elif reply is None:  # else the trouble was with the roll-back, which changes no outcome
                reply = Unknown(detail)
        finally:
            if self._session is not None and self._session.pgconn.transaction_status != TransactionStatus.IDLE:
                self.close()
        return reply

    def close(self) -> None:
        """Close the connection; the next flush opens another."""
        if self._session is not None:
            session, self._session = self._session, None
            if session.pgconn.status == ConnStatus.OK:
                trio.lowlevel.notify_closing(session.pgconn.socket)
            session.close()

    async def _ready(self) -> PGconn:
        """The connection, opened again if Postgres has left it meanwhile."""
        if self._session is not None and speaks(self._session.pgconn.socket):
            self.close()
        if self._session is None:
            self._session = await open_in_thread(self._open, psycopg.Connection.close)
        self._warnings.clear()
        return self._session.pgconn

    def _open(self) -> psycopg.Connection:
        seconds = self._settings.flush_timeout_seconds
        session = psycopg.connect(
            self._db_url,
            autocommit=True,
            connect_timeout=max(2, round(seconds)),
            application_name=self._signature.name("flush"),
            client_encoding="UTF8",
            **OURS,
        )
        # Postgres gives up before we do, where it can: its refusal is certain, our timeout is not.
        limit_ms = max(1, int(seconds * 800))
        lock_ms = min(limit_ms, int(LOCK_SECONDS * 1_000))
        theirs = "; ".join(f"SET {name} = {value}" for name, value in THEIRS.items())
        session.execute(
            f"SET synchronous_commit = on; SET statement_timeout = {limit_ms}; SET lock_timeout = {lock_ms};"
            f"{theirs}; {LOOK_FOR_CLIENT};"
            # The guard is planned once a session, and always by the key: without statistics Postgres takes its
            # arrays for large and would read the whole ledger.
            "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off;"
            "SET enable_hashjoin = off; SET enable_mergejoin = off; SET jit = off"
        )
        session.pgconn.nonblocking = 1
        session.pgconn.notice_handler = self._note
        return session

    def _note(self, notice: PGresult) -> None:
        if _field(notice, DiagnosticField.SEVERITY_NONLOCALIZED) == "WARNING":
            self._warnings.append(_field(notice, DiagnosticField.MESSAGE_PRIMARY))

    async def _run(self, pgconn: PGconn, query: bytes, rows: bytes) -> Answer:
        """The whole exchange. Raises `psycopg.Error` when the connection breaks."""
        pgconn.send_query(query)
        await _send(pgconn)
        tag = ""
        failure = None
        while (result := await _next_result(pgconn)) is not None:
            if result.status == ExecStatus.COPY_IN:
                await _send_rows(pgconn, rows)
            elif result.status == ExecStatus.FATAL_ERROR:
                failure = _failure(result)
            else:
                tag = (result.command_status or b"").decode()
        return Answer(tag, failure, self._warnings[0] if self._warnings else None)


async def _roll_back(pgconn: PGconn) -> None:
    """Leave a failed transaction, so that the connection can serve again."""
    pgconn.send_query(b"ROLLBACK")
    await _send(pgconn)
    while await _next_result(pgconn) is not None:
        pass


async def _held(pgconn: PGconn, campaigns: Collection[CampaignId]) -> frozenset[CampaignId]:
    """Campaigns whose ledger rows other sessions hold now. None if the whole table is locked, as this is, too."""
    numbers = ",".join(map(str, campaigns))
    pgconn.send_query(_HELD.format(numbers, numbers).encode())
    await _send(pgconn)
    held: set[CampaignId] = set()
    while (result := await _next_result(pgconn)) is not None:
        if result.status == ExecStatus.TUPLES_OK:
            held |= {CampaignId(int(result.get_value(row, 0) or 0)) for row in range(result.ntuples)}
    return frozenset(held)


async def _send_rows(pgconn: PGconn, rows: bytes) -> None:
    """COPY data, piece by piece. Errors that Postgres reports meanwhile wait in the socket until it is all sent."""
    view = memoryview(rows)
    for start in range(0, len(rows), _PIECE_BYTES):
        while pgconn.put_copy_data(bytes(view[start : start + _PIECE_BYTES])) == 0:
            await trio.lowlevel.wait_writable(pgconn.socket)  # libpq's buffer can't grow: not seen, but allowed
            pgconn.flush()
        await _send(pgconn)
    while pgconn.put_copy_end() == 0:
        await trio.lowlevel.wait_writable(pgconn.socket)
        pgconn.flush()
    await _send(pgconn)


async def _send(pgconn: PGconn) -> None:
    """Hand everything that libpq holds to the socket."""
    while pgconn.flush() == 1:
        await trio.lowlevel.wait_writable(pgconn.socket)


async def _next_result(pgconn: PGconn) -> PGresult | None:
    """The next result of the message, None at its end."""
    while pgconn.is_busy():
        await trio.lowlevel.wait_readable(pgconn.socket)
        pgconn.consume_input()
    return pgconn.get_result()


def _failure(result: PGresult) -> Failure:
    return Failure(
        _field(result, DiagnosticField.SQLSTATE),
        _field(result, DiagnosticField.SEVERITY_NONLOCALIZED),
        _field(result, DiagnosticField.MESSAGE_PRIMARY) or result.error_message.decode(errors="replace").strip(),
        _field(result, DiagnosticField.MESSAGE_DETAIL),
        _field(result, DiagnosticField.CONTEXT),
    )


def _field(result: PGresult, which: DiagnosticField) -> str:
    return (result.error_field(which) or b"").decode(errors="replace")
