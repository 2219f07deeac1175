"""A lock for object stores without conditional writes: PostgreSQL's advisory lock, held by a session.

    lock = PostgresLock("postgresql://onerec@db/onerec")
    with lock.held("bucket/channels/production.json") as still_held:
        ...
        still_held()

The server frees the lock when the session ends, so a holder that dies blocks nobody. A holder that is cut off from the
server finds out by `still_held`, which is called right before and after the write: what is left is a writer that stalls
for longer than its session lives between check and write. A store with conditional writes has no such gap.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from releases.object_store import ConflictError, StoreError


class PostgresLock:
    """Advisory locks of one database. `wait_s`: how long to wait for another holder, and for the server to answer."""

    def __init__(self, url: str, *, wait_s: float = 15.0) -> None:
        if not url.startswith(("postgresql://", "postgres://")):
            raise ValueError("the lock service is named by a postgresql:// address (ONEREC_LOCK)")
        if wait_s < 1:
            raise ValueError(f"wait_s is {wait_s}; wait at least a second")
        self._url, self.wait_s = url, wait_s

    @contextlib.contextmanager
    def held(self, name: str) -> Iterator[Callable[[], None]]:
        """Hold the lock `name`; yields a function that raises ConflictError once the lock is lost.

        Raises ConflictError when another holder keeps it for longer than `wait_s`, StoreError without a server.
        """
        import psycopg

        try:  # the address may hold a password, so no message repeats it
            session = psycopg.connect(self._url, autocommit=True, connect_timeout=round(self.wait_s))
        except psycopg.Error:
            raise StoreError("the lock service (ONEREC_LOCK) does not answer; start it, then repeat") from None

        def still_held() -> None:
            try:
                session.execute("SELECT 1")
            except psycopg.Error:
                raise ConflictError(f"the lock on {name} was lost; look at the object before moving it again") from None

        with contextlib.closing(session):
            try:
                session.execute(f"SET lock_timeout = {round(self.wait_s * 1000)}")
                session.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", (name,))
            except psycopg.errors.LockNotAvailable:
                raise ConflictError(f"another writer has held {name} for {self.wait_s:g} s; try again") from None
            except psycopg.Error:
                raise StoreError("the lock service (ONEREC_LOCK) went away; look at it, then repeat") from None
            yield still_held
