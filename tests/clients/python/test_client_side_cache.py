"""redis-py's client-side cache: CLIENT TRACKING in RESP3."""

import pytest
import redis
from redis.cache import CacheConfig
from redis.connection import CacheProxyConnection

from conftest import URL, eventually


@pytest.fixture(autouse=True)
def any_version(monkeypatch):
    """redis-py asks for 7.4, for the sake of products that have no tracking before; a plain server has."""
    monkeypatch.setattr(CacheProxyConnection, "MIN_ALLOWED_VERSION", "6.0.0")


def caching():
    return redis.Redis.from_url(URL, protocol=3, cache_config=CacheConfig(), decode_responses=True)


def holds(client, value):
    return any(entry.cache_value in (value, value.encode()) for entry in client.get_cache().collection.values())


def test_no_cache_keeps_an_old_value(prefix):
    key = f"{prefix}:cached"
    # More clients than the server would admit connections.
    readers = [caching() for _ in range(30)]
    with redis.Redis.from_url(URL) as writer:
        for number in range(20):
            value = f"value {number}"
            writer.set(key, value)
            for reader in readers:
                eventually("the new value is read", lambda reader=reader, value=value: reader.get(key) == value)
                assert reader.get(key) == value
                assert holds(reader, value)
        writer.delete(key)
        for reader in readers:
            eventually("the key is gone", lambda reader=reader: reader.get(key) is None)
    for reader in readers:
        reader.close()


def test_transactions_and_pipelines_agree_with_the_cache(prefix):
    key = f"{prefix}:both"
    reader, writer = caching(), redis.Redis.from_url(URL)
    for number in range(20):
        writer.set(key, number)
        eventually("the new value is read", lambda number=number: reader.get(key) == str(number))
        with reader.pipeline(transaction=True) as pipe:
            assert pipe.get(key).incr(f"{key}:n").execute()[0] == str(number)
        with reader.pipeline(transaction=True) as pipe:
            pipe.watch(key)
            assert pipe.get(key) == str(number)
            pipe.unwatch()
    reader.close()
    writer.close()
