"""The cluster profile's online store: packed rows in Redis, a hash a user (see feature_repo/online_rows.py).

The key of a hash is Feast's own: the serialized entity key, then the project. Its fields: `<view>` (the packed row) and
`ts:<view>` (its time stamp in ms). A script compares and sets on the server, so that two writers cannot interleave.
All views of many users are one round trip.
"""

from __future__ import annotations

import contextlib
import functools
import zlib
from collections.abc import Iterator, Sequence

from feast import Entity, FeatureView, RepoConfig
from feast.infra.key_encoding_utils import serialize_entity_key_prefix
from feast.infra.online_stores.redis import RedisOnlineStore, RedisType
from feast.repo_config import FeastConfigBaseModel
from pydantic import StrictStr
from redis.backoff import ExponentialBackoff
from redis.exceptions import AuthenticationError
from redis.retry import Retry

from feature_repo.online_rows import Row, RowOnlineStore, entered

LOCKS = 256  # a user's lock is one of so many: a push of many users takes few of them
LOCK_S = 10
WRITE_RETRIES = 8  # half a second, doubled, up to 5: half a minute in all
PIPELINE = 512  # rows a round trip when writing: bounds what Redis buffers
_PUT = """local stored = redis.call('HGET', KEYS[1], ARGV[1])
if stored and tonumber(stored) > tonumber(ARGV[2]) then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4])
return 1"""


class RedisRowOnlineStoreConfig(FeastConfigBaseModel):
    """`connection_string`: Feast's, host:port[,option=value]; `redis_type`: redis, redis_cluster or redis_sentinel."""

    type: StrictStr = "feature_repo.online_redis.RedisRowOnlineStore"
    connection_string: StrictStr
    redis_type: RedisType = RedisType.redis
    sentinel_master: StrictStr = "mymaster"


class RedisRowOnlineStore(RowOnlineStore):
    """One hash an entity: a field a view, and `ts:<view>` with its time stamp in ms; the rule is Lua in the server.

    Writes wait for a master that fails over; reads do not.
    """

    def __init__(self) -> None:
        self._feast = RedisOnlineStore()  # it knows every way to connect

    def put_rows(self, config: RepoConfig, view: str, rows: Sequence[Row]) -> None:
        client = self._client(config)
        script = client.register_script(_PUT)

        def put(some: Sequence[Row]) -> None:
            with client.pipeline(transaction=False) as pipe:
                for key, stamp_ms, row in some:
                    script([key + _project(config)], [f"ts:{view}", stamp_ms, view, row], client=pipe)
                pipe.execute()

        # A row written twice is the same row, and a failing-over master is away for seconds: wait for it.
        retry = Retry(ExponentialBackoff(cap=5, base=0.25), WRITE_RETRIES)
        for at in range(0, len(rows), PIPELINE):
            some = rows[at : at + PIPELINE]
            retry.call_with_retry(functools.partial(put, some), lambda _: None, is_retryable=_may_pass)

    def get_rows(self, config: RepoConfig, views: Sequence[str], keys: Sequence[bytes]) -> list[list[bytes | None]]:
        with self._client(config).pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.hmget(key + _project(config), views)
            return pipe.execute()

    def forget(self, config: RepoConfig, key: bytes, *, dry_run: bool) -> int:
        client, name = self._client(config), key + _project(config)
        found = sum(not field.startswith(b"ts:") for field in client.hkeys(name))
        if not dry_run:
            client.delete(name)
        return found

    @contextlib.contextmanager
    def lock(self, config: RepoConfig, keys: Sequence[bytes]) -> Iterator[None]:
        """The locks of the keys, in one order everywhere, so that two holders cannot wait for each other."""
        client, project = self._client(config), config.project
        numbers = sorted({zlib.crc32(key) % LOCKS for key in keys})
        names = [f"{project}:push:{number}" for number in numbers]
        with entered([client.lock(name, timeout=LOCK_S, blocking_timeout=LOCK_S) for name in names]):
            yield

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[FeatureView],
        tables_to_keep: Sequence[FeatureView],
        entities_to_delete: Sequence[Entity],
        entities_to_keep: Sequence[Entity],
        partial: bool,
    ) -> None:
        """Hashes need no declaration; fields of views that are gone are deleted."""
        fields = [field for view in tables_to_delete for field in (view.name, f"ts:{view.name}")]
        if fields:
            for key in self._keys(config):
                self._client(config).hdel(key, *fields)

    def teardown(self, config: RepoConfig, tables: Sequence[FeatureView], entities: Sequence[Entity]) -> None:
        for key in self._keys(config):
            self._client(config).delete(key)

    def _keys(self, config: RepoConfig) -> Iterator[bytes]:
        return self._client(config).scan_iter(serialize_entity_key_prefix(["user_id"], 3) + b"*" + _project(config))

    def _client(self, config: RepoConfig):
        return self._feast._get_client(config.online_store)


def _may_pass(error: Exception) -> bool:
    return not isinstance(error, AuthenticationError)  # redis counts a wrong password among the connection's errors


def _project(config: RepoConfig) -> bytes:
    return config.project.encode()
