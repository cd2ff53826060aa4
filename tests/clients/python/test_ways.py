"""The other ways in: TLS and a Unix socket, with the synchronous and the asyncio client."""

import asyncio
import os

import pytest
import redis
import redis.asyncio

SECURED, CA, SOCKET = (os.environ.get(name) for name in ("REDIS_TLS_URL", "REDIS_CA", "REDIS_SOCKET"))
pytestmark = pytest.mark.skipif(
    not (SECURED and CA and SOCKET), reason="REDIS_TLS_URL, REDIS_CA and REDIS_SOCKET are not set"
)
WAYS = {"tls": (SECURED, {"ssl_ca_certs": CA}), "unix": (f"unix://{SOCKET}", {})}
BIG = b"x" * (1 << 20)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("protocol", [2, 3])
def test_every_kind_of_traffic(prefix, way, protocol):
    url, options = WAYS[way]
    with redis.Redis.from_url(url, protocol=protocol, **options) as client:
        client.set(prefix, BIG)
        assert client.get(prefix) == BIG
        pipeline = client.pipeline(transaction=False)
        for number in range(500):
            pipeline.echo(str(number))
        assert [int(reply) for reply in pipeline.execute()] == list(range(500))
        client.rpush(f"{prefix}:list", "element")
        assert list(client.blpop(f"{prefix}:list", 5)) == [f"{prefix}:list".encode(), b"element"]
        assert client.transaction(lambda pipe: pipe.multi() or pipe.strlen(prefix), prefix) == [len(BIG)]
        with client.pubsub() as listener:
            listener.subscribe(prefix)
            assert listener.get_message(timeout=5)["type"] == "subscribe"
            client.publish(prefix, "hello")
            assert listener.get_message(timeout=5)["data"] == b"hello"


@pytest.mark.parametrize("way", WAYS)
def test_many_connections_of_asyncio(prefix, way):
    url, options = WAYS[way]

    async def count():
        async with redis.asyncio.from_url(url, max_connections=20, socket_connect_timeout=30, **options) as client:
            await asyncio.gather(*(client.incr(prefix) for _ in range(20)))
            return int(await client.get(prefix))

    assert asyncio.run(count()) == 20


def test_a_certificate_of_an_unknown_authority_is_refused():
    with pytest.raises(redis.ConnectionError, match="(?i)certificate verify failed"):
        redis.Redis.from_url(SECURED).ping()


def test_a_plain_client_on_the_tls_port_is_told():
    with pytest.raises(redis.ResponseError, match="this port speaks TLS"):
        redis.Redis.from_url(SECURED.replace("rediss://", "redis://")).ping()
