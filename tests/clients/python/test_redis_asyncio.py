"""redis-py under asyncio, in both protocols."""

import asyncio

import pytest
import redis.asyncio as redis
from redis.exceptions import NoScriptError, ResponseError, WatchError

from conftest import OTHER_DATABASE, URL, unique


@pytest.fixture(params=[2, 3], ids=["RESP2", "RESP3"])
def run(request):
    """Runs `test(r, connect)` in a loop of its own and closes what it has opened."""

    def start(test):
        async def whole():
            made = []

            def connect(**options):
                options = {"protocol": request.param, "decode_responses": True, **options}
                made.append(redis.Redis.from_url(URL, **options))
                return made[-1]

            try:
                await asyncio.wait_for(test(connect(), connect), 20)
            finally:
                for client in made:
                    await client.aclose()

        asyncio.run(whole())

    return start


async def listed(r, name, command=None):
    rows = await r.client_list()
    return any(row["name"] == name and command in (None, row["cmd"]) for row in rows)


async def eventually(what, condition, seconds=5):
    deadline = asyncio.get_running_loop().time() + seconds
    while not await condition():
        assert asyncio.get_running_loop().time() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.01)


def test_a_pipeline_and_a_transaction_return_all_their_replies(run, prefix):
    async def test(r, _connect):
        key = f"{prefix}:t"
        assert await r.ping()
        async with r.pipeline(transaction=False) as pipe:
            replies = await pipe.set(key, 1).incr(key).get(key).execute()
        assert replies == [True, 2, "2"]
        async with r.pipeline(transaction=True) as pipe:
            assert await pipe.incr(key).incr(key).execute() == [3, 4]

    run(test)


def test_many_tasks_at_once_get_their_own_replies(run, prefix):
    async def test(r, _connect):
        async def one(number):
            await r.set(f"{prefix}:{number}", number)
            return await r.get(f"{prefix}:{number}")

        assert await asyncio.gather(*(one(number) for number in range(40))) == [str(number) for number in range(40)]

    run(test)


def test_watch_without_and_with_a_conflict(run, prefix):
    async def test(r, connect):
        key = f"{prefix}:w"
        async with r.pipeline() as pipe:
            await pipe.watch(key)
            pipe.multi()
            assert await pipe.set(key, 1).execute() == [True]
            await pipe.watch(key)
            await connect().set(key, 10)
            pipe.multi()
            with pytest.raises(WatchError):
                await pipe.incr(key).execute()
        assert await r.get(key) == "10"

    run(test)


def test_a_script_unknown_to_the_server_is_noscript_then_loaded(run, prefix):
    async def test(r, _connect):
        with pytest.raises(NoScriptError):
            await r.evalsha("f" * 40, 0)
        script = r.register_script(f"-- {prefix}\nreturn redis.call('INCRBY', KEYS[1], ARGV[1])")
        assert await script(keys=[f"{prefix}:lua"], args=[2]) == 2

    run(test)


def test_a_blocking_pop_times_out_and_is_woken(run, prefix):
    async def test(r, connect):
        assert await r.blpop(f"{prefix}:empty", timeout=0.3) is None
        name = unique("name")
        pop = asyncio.create_task(connect(client_name=name).blpop([f"{prefix}:a", f"{prefix}:b"], timeout=10))
        await eventually("blocked", lambda: listed(r, name, "blpop"))
        await r.rpush(f"{prefix}:b", "hello")
        assert tuple(await pop) == (f"{prefix}:b", "hello")

    run(test)


def test_what_is_pushed_after_a_blocked_task_was_cancelled_is_not_lost(run, prefix):
    async def test(r, connect):
        name = unique("name")
        pop = asyncio.create_task(connect(client_name=name).blpop(f"{prefix}:kept", timeout=0))
        await eventually("blocked", lambda: listed(r, name, "blpop"))
        pop.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pop
        await eventually("gone", lambda: gone(r, name))
        await r.rpush(f"{prefix}:kept", "element")
        assert await r.lrange(f"{prefix}:kept", 0, -1) == ["element"]

    async def gone(r, name):
        return not await listed(r, name)

    run(test)


def test_channels_and_patterns_deliver(run, prefix):
    async def test(r, _connect):
        async with r.pubsub(ignore_subscribe_messages=True) as pubsub:
            await pubsub.subscribe(f"{prefix}:a")
            await pubsub.psubscribe(f"{prefix}:c*")

            async def reached():
                return await r.publish(f"{prefix}:a", "one") == 1 and await r.publish(f"{prefix}:cat", "two") == 1

            await eventually("two subscriptions", reached)
            got = set()

            async def both():
                message = await pubsub.get_message(timeout=0.05)
                if message:
                    got.add((message["channel"], message["data"]))
                return len(got) == 2

            await eventually("two messages", both)
            assert got == {(f"{prefix}:a", "one"), (f"{prefix}:cat", "two")}
            await pubsub.unsubscribe()
            await pubsub.punsubscribe()

    run(test)


def test_binary_and_big_values_another_database_and_errors(run, prefix):
    async def test(r, connect):
        raw = connect(decode_responses=False)
        big = bytes(range(256)) * 4096
        await raw.set(f"{prefix}:big", big)
        assert await raw.get(f"{prefix}:big") == big
        await connect(db=OTHER_DATABASE).set(f"{prefix}:db", "other")
        assert await r.get(f"{prefix}:db") is None
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            await r.lpush(f"{prefix}:big", "x")
        found = {key async for key in r.scan_iter(f"{prefix}:*", count=100)}
        assert found == {f"{prefix}:big"}

    run(test)
