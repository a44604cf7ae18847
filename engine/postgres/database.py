"""Everything but the flush goes through here: an asyncpg pool, asyncpg's loop being a guest of trio.

Owns the loop, the pool, the forms in which values cross (instants as `_us` integers, days as integers, ids as
16 bytes), how long a session may wait or be left alone, and the mapping of asyncpg's errors. Knows no table.

Any task may call, whatever nursery it lives in: each call names the loop itself. Errors come out as
`StoreUnavailable`, with `certain` true when the statement certainly had no effect, and as `StoreBusy` for a lock not
got in time; what is wrong with the statement's values comes out as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final, TypeAlias, TypeVar

import asyncpg
import trio
import trio_asyncio  # type: ignore[import-untyped]
from asyncpg.pool import PoolConnectionProxy

from engine.errors import StoreBusy, StoreUnavailable
from engine.opening import keep_alive
from engine.postgres.copy import DAYS_TO_2000, TO_2000_US
from engine.postgres.sessions import LOOK_FOR_CLIENT, THEIRS, Signature

log = logging.getLogger(__name__)

T = TypeVar("T")
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]"

# A transaction that its engine left open (frozen, or cut off) is ended after so long, and its locks with it. Between
# the statements of a short one lies a round trip; on a machine that has no time for us, a few of them.
_ABANDONED_MS: Final = 2_000
# What reads for minutes and holds nothing that others wait for says this. It may read whole tables, too.
LONG_READER: Final = "SET LOCAL idle_in_transaction_session_timeout = 60000; SET LOCAL enable_seqscan = on"
# A statement waits so long for a lock. A flush holds its locks for a few tens of ms, or for half a second while it
# waits itself. A statement that waits holds one of few connections, and a caller that hears 503 can try again.
LOCK_WAIT_SECONDS: Final = 1.0

# Answers that say nothing of what happened to the statement: the session ended.
_UNCERTAIN: Final = ("08", "57P", "40003")
# Mistakes in a statement's values: trying again won't help. (Not class 42: our statements are right, so it is what an
# administrator changed while we run: a right that was taken away, a table or a function that is gone. It is put right
# without us.)
_AS_THEY_ARE: Final = ("22", "23")

_CONNECTION_ERRORS: Final = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # a session that ended at an odd moment
    OSError,  # TimeoutError is one
)


class Database:
    """A pool of connections. Get one with `open_database`."""

    def __init__(self, loop: trio_asyncio.TrioEventLoop, pool: asyncpg.Pool[asyncpg.Record], timeout: float) -> None:
        self._loop = loop
        self._pool = pool
        self._timeout_seconds = timeout

    async def sign(self) -> None:
        """Connections have another name from now on: those that are open are opened again at their next use."""
        await on_loop(self._loop, self._pool.expire_connections)

    async def fetch(self, query: str, *args: object) -> list[asyncpg.Record]:
        """All rows of one statement, which is a transaction of its own."""
        return await self.run(lambda connection: connection.fetch(query, *args))

    async def execute(self, query: str, *args: object) -> None:
        """One statement whose rows don't matter."""
        await self.run(lambda connection: connection.execute(query, *args))

    async def transaction(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Run asyncio code on one connection inside one transaction."""

        async def within(connection: Connection) -> T:
            async with connection.transaction():
                return await work(connection)

        return await self.run(within)

    async def run(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Run asyncio code on one connection of the pool. Raises `StoreUnavailable`."""

        async def borrow() -> T:
            connection = await self._acquire()
            try:
                with mapped_errors(certain=False):
                    result = await work(connection)
            except BaseException as error:
                _discard(connection)
                if isinstance(error, StoreUnavailable) and not error.certain:
                    # Those beside it are as old: each would else be found dead by a query that waits for its timeout.
                    await self._pool.expire_connections()
                raise
            finally:
                await self._pool.release(connection)
            return result

        return await on_loop(self._loop, borrow)

    @asynccontextmanager
    async def cursor(
        self, query: str, *args: object, timeout_seconds: float, planner: str = ""
    ) -> AsyncIterator[Callable[[int], Awaitable[list[asyncpg.Record]]]]:
        """One statement's rows, fetched n at a time by calling what this yields; one snapshot for all of them.

        `planner`: what is set for this statement only.
        """
        connection = await on_loop(self._loop, self._acquire)
        transaction = connection.transaction(readonly=True)

        async def start() -> Any:
            await transaction.start()
            patience = f"SET LOCAL statement_timeout = {int(timeout_seconds * 1_000)}"
            await connection.execute(f"{patience}; {LONG_READER}; {planner}")
            return await connection.cursor(query, *args, timeout=timeout_seconds)

        async def finish() -> None:
            try:
                if not connection.is_closed():
                    await transaction.rollback()
            except BaseException:
                _discard(connection)
                raise
            finally:
                await self._pool.release(connection)

        try:
            with mapped_errors(certain=True):
                rows = await on_loop(self._loop, start)

                async def fetch(n: int) -> list[asyncpg.Record]:
                    with mapped_errors(certain=True):
                        return list(await on_loop(self._loop, lambda: rows.fetch(n, timeout=timeout_seconds)))

            yield fetch
        finally:
            # Shielded, or a cancelled reader would leave the connection lent for ever; asyncpg's own timeouts bound it.
            with trio.CancelScope(shield=True), contextlib.suppress(*_CONNECTION_ERRORS):
                await on_loop(self._loop, finish)

    async def _acquire(self) -> PoolConnectionProxy[asyncpg.Record]:
        with mapped_errors(certain=True):
            return await self._pool.acquire(timeout=self._timeout_seconds)


@asynccontextmanager
async def open_database(
    loop: trio_asyncio.TrioEventLoop,
    db_url: str,
    connections: int,
    timeout_seconds: float,
    signature: Signature | None = None,
    *,
    lock_seconds: float = LOCK_WAIT_SECONDS,
) -> AsyncIterator[Database]:
    """A database on a running loop, whose connections are opened as they are needed."""
    signature = signature or Signature()

    async def made(connection: Any) -> None:
        _keep_alive(connection)
        await connection.execute(f"SET application_name = '{signature.name('query')}'; {LOOK_FOR_CLIENT}")
        await teach_forms(connection)

    pool = asyncpg.create_pool(
        db_url,
        min_size=0,
        max_size=connections,
        command_timeout=timeout_seconds,
        timeout=timeout_seconds,
        init=made,
        reset=_keep,
        server_settings=session_settings(timeout_seconds, lock_seconds),
    )

    async def close() -> None:
        pool.terminate()  # nothing is under way that would be worth waiting for: the callers are gone

    loop.set_exception_handler(_left_over)
    await on_loop(loop, lambda: _started(pool))
    try:
        yield Database(loop, pool, timeout_seconds)
    finally:
        await on_loop(loop, close)


def _left_over(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """The failure of a connection that nobody waits for any more: whoever did was told, or has gone (asyncio side).

    A process that slept meets such. trio-asyncio would end the engine for it; for anything else it does.
    """
    error = context.get("exception")
    if isinstance(error, _CONNECTION_ERRORS):
        log.warning("a connection to Postgres failed that nobody waits for: %r", error)
    else:
        loop.default_exception_handler(context)


def _discard(connection: PoolConnectionProxy[asyncpg.Record]) -> None:
    """Close it: nobody may go on from the middle of an exchange, or on a session whose end is still to come."""
    with contextlib.suppress(asyncpg.InterfaceError):  # the pool may have found out before us
        connection.terminate()


async def _keep(_: object) -> None:
    """Leave a connection that comes back as it is: a session is never changed, and after trouble it is closed."""


async def _started(pool: asyncpg.Pool[asyncpg.Record]) -> None:
    await pool


@asynccontextmanager
async def open_connection(db_url: str, timeout_seconds: float, **settings: str) -> AsyncIterator[Connection]:
    """One connection of its own (asyncio side: use it inside `on_loop`)."""
    with mapped_errors(certain=True):
        connection = await asyncpg.connect(db_url, timeout=timeout_seconds, server_settings={**THEIRS, **settings})
    try:
        _keep_alive(connection)
        await teach_forms(connection)
        yield connection
    finally:
        connection.terminate()


def _keep_alive(connection: Any) -> None:
    sock = connection._transport.get_extra_info("socket")  # asyncpg has no other way to hand it over
    if sock is not None:
        keep_alive(sock)


async def on_loop(loop: trio_asyncio.TrioEventLoop, work: Callable[[], Awaitable[T]]) -> T:
    """Run asyncio code from any trio task, cancellation included."""
    token = trio_asyncio.current_loop.set(loop)
    try:
        result: T = await trio_asyncio.aio_as_trio(work, loop=loop)()
        return result
    finally:
        trio_asyncio.current_loop.reset(token)


@contextlib.contextmanager
def mapped_errors(*, certain: bool) -> Iterator[None]:
    """Turn asyncpg's errors into `StoreUnavailable`. `certain`: what a connection's own failure means here."""
    try:
        yield
    except asyncpg.PostgresError as error:
        sqlstate = error.sqlstate or ""
        if sqlstate.startswith(_AS_THEY_ARE):
            raise
        if isinstance(error, asyncpg.LockNotAvailableError):
            raise StoreBusy(f"Postgres: somebody else holds it: {sqlstate} {error}", certain=True) from error
        told = certain or not sqlstate.startswith(_UNCERTAIN)
        raise StoreUnavailable(f"Postgres: {sqlstate} {error}", certain=told) from error
    except _CONNECTION_ERRORS as error:
        raise StoreUnavailable(f"Postgres: {str(error) or type(error).__name__}", certain=certain) from error


def session_settings(timeout_seconds: float, lock_seconds: float) -> dict[str, str]:
    """What every session relies on, whatever the database's defaults are."""
    return {
        "application_name": "headrace query",
        **THEIRS,
        "synchronous_commit": "on",
        "default_transaction_isolation": "read committed",
        "jit": "off",  # compiling a plan over many partitions costs more than running it
        # Postgres gives up a little before we do: its refusal is certain, our timeout is not.
        "statement_timeout": str(max(1, int(timeout_seconds * 900))),
        "lock_timeout": str(max(1, int(min(lock_seconds * 1_000, timeout_seconds * 900)))),
        "idle_in_transaction_session_timeout": str(_ABANDONED_MS),
        "plan_cache_mode": "force_generic_plan",
        # By a key, always: a plan that was made while the partition of today had a page would read all of it, for each
        # id, when it has a million.
        "enable_seqscan": "off",
    }


def normal_url(db_url: str) -> str:
    """The URL in the form that libpq and asyncpg both read."""
    scheme, separator, rest = db_url.partition("://")
    return f"postgresql{separator}{rest}" if scheme in ("postgres", "postgresql+psycopg") else db_url


async def teach_forms(connection: Any) -> None:
    """Let instants cross as microseconds since 1970, days as days since 1970, ids as 16 bytes: exact and cheap."""
    await connection.set_type_codec(
        "timestamptz",
        schema="pg_catalog",
        format="tuple",
        encoder=lambda instant_us: (instant_us - TO_2000_US,),
        decoder=lambda value: value[0] + TO_2000_US,
    )
    await connection.set_type_codec(
        "date",
        schema="pg_catalog",
        format="tuple",
        encoder=lambda day: (day - DAYS_TO_2000,),
        decoder=lambda value: value[0] + DAYS_TO_2000,
    )
    await connection.set_type_codec("uuid", schema="pg_catalog", format="binary", encoder=bytes, decoder=bytes)
