"""redis-py, blocking, in both protocols."""

import threading
import time

import pytest
import redis

from conftest import OTHER_DATABASE, URL, eventually, listed, unique


@pytest.fixture(params=[2, 3], ids=["RESP2", "RESP3"])
def connect(request):
    """Makes clients; all are closed at the end."""
    made = []

    def make(**options):
        options = {"protocol": request.param, "decode_responses": True, **options}
        made.append(redis.Redis.from_url(URL, **options))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture
def r(connect):
    return connect()


def test_connects_and_answers_ping(r):
    assert r.ping() is True
    assert r.info("server")["redis_version"]


def test_a_pipeline_is_answered_in_order(r, prefix):
    pipe = r.pipeline(transaction=False)
    for index in range(250):
        pipe.set(f"{prefix}:p{index}", index)
        pipe.get(f"{prefix}:p{index}")
    replies = pipe.execute()
    assert replies[0::2] == [True] * 250
    assert replies[1::2] == [str(index) for index in range(250)]


def test_a_transaction_runs_as_one(r, prefix):
    with r.pipeline(transaction=True) as pipe:
        pipe.set(f"{prefix}:t", 1).incr(f"{prefix}:t").get(f"{prefix}:t")
        assert pipe.execute() == [True, 2, "2"]
    with r.pipeline(transaction=True) as pipe:
        pipe.incr(f"{prefix}:t").execute_command("SET", f"{prefix}:t")
        with pytest.raises(redis.exceptions.ResponseError):
            pipe.execute()
    assert r.get(f"{prefix}:t") == "2"


def test_watch_lets_a_transaction_through_when_nobody_wrote(r, prefix):
    def add_one(pipe):
        value = int(pipe.get(f"{prefix}:w") or 0)
        pipe.multi()
        pipe.set(f"{prefix}:w", value + 1)

    assert r.transaction(add_one, f"{prefix}:w") == [True]
    assert r.get(f"{prefix}:w") == "1"


def test_watch_fails_a_transaction_when_another_client_wrote(r, connect, prefix):
    key = f"{prefix}:w2"
    with r.pipeline() as pipe:
        pipe.watch(key)
        connect().set(key, 10)
        pipe.multi()
        pipe.incr(key)
        with pytest.raises(redis.WatchError):
            pipe.execute()
    assert r.get(key) == "10"


def test_a_script_unknown_to_the_server_is_noscript_then_loaded(r, prefix):
    with pytest.raises(redis.exceptions.NoScriptError):
        r.evalsha("f" * 40, 0)
    script = r.register_script(f"-- {prefix}\nreturn redis.call('INCRBY', KEYS[1], ARGV[1])")
    assert script(keys=[f"{prefix}:lua"], args=[2]) == 2
    assert script(keys=[f"{prefix}:lua"], args=[3]) == 5
    pipe = r.pipeline()
    script(keys=[f"{prefix}:lua"], args=[5], client=pipe)
    assert pipe.execute() == [10]


def test_a_blocking_pop_ends_with_none_when_its_time_is_up(r, prefix):
    began = time.monotonic()
    assert r.blpop(f"{prefix}:empty", timeout=1) is None
    assert 0.95 <= time.monotonic() - began < 2.5
    assert r.brpop([f"{prefix}:a", f"{prefix}:b"], timeout=0.2) is None
    assert not r.xread({f"{prefix}:stream": "$"}, block=200)


def test_a_blocking_pop_gets_what_another_client_pushes(r, connect, prefix):
    name = unique("name")
    blocked = connect(client_name=name)
    got = []
    pop = threading.Thread(target=lambda: got.append(blocked.brpop([f"{prefix}:a", f"{prefix}:b"], timeout=10)))
    pop.start()
    eventually("blocked", lambda: listed(r, name, "brpop"))
    r.lpush(f"{prefix}:b", "hello")
    pop.join(10)
    assert [tuple(element) for element in got] == [(f"{prefix}:b", "hello")]
    assert r.llen(f"{prefix}:b") == 0


def test_what_is_pushed_after_a_blocked_client_was_closed_is_not_lost(r, prefix):
    name = unique("name")
    blocked = redis.Redis.from_url(URL, client_name=name)
    connection = blocked.connection_pool.get_connection()
    connection.send_command("BLPOP", f"{prefix}:kept", 0)
    eventually("blocked", lambda: listed(r, name, "blpop"))
    connection.disconnect()
    eventually("gone", lambda: not listed(r, name))
    r.rpush(f"{prefix}:kept", "element")
    assert r.lrange(f"{prefix}:kept", 0, -1) == ["element"]
    blocked.close()


def test_channels_and_patterns_deliver_and_end_with_unsubscribe(r, prefix):
    pubsub = r.pubsub(ignore_subscribe_messages=True)
    got = []

    def read(count):
        def one_more():
            message = pubsub.get_message(timeout=0.05)
            if message:
                got.append((message["type"], message["channel"], message["data"]))
            return len(got) >= count

        eventually(f"{count} messages", one_more)

    pubsub.subscribe(f"{prefix}:a")
    pubsub.psubscribe(f"{prefix}:c*")
    eventually("two subscriptions", lambda: not pubsub.get_message(timeout=0.05) and r.pubsub_numsub(f"{prefix}:a")[0][1] == 1)
    # Several listen to one name: each of them counts.
    others = [r.pubsub(ignore_subscribe_messages=True) for _ in range(2)]
    for other in others:
        other.subscribe(f"{prefix}:several")
    eventually("both are counted", lambda: r.pubsub_numsub(f"{prefix}:several") == [(f"{prefix}:several", 2)])
    assert r.pubsub_channels(f"{prefix}:s*") == [f"{prefix}:several"]
    for other in others:
        other.close()
    eventually("none is counted any more", lambda: r.pubsub_numsub(f"{prefix}:several") == [(f"{prefix}:several", 0)])
    assert r.publish(f"{prefix}:a", "one") == 1
    assert r.publish(f"{prefix}:cat", "two") == 1
    read(2)
    assert got == [("message", f"{prefix}:a", "one"), ("pmessage", f"{prefix}:cat", "two")]
    pubsub.unsubscribe(f"{prefix}:a")
    pubsub.punsubscribe(f"{prefix}:c*")
    eventually("unsubscribed", lambda: not pubsub.get_message(timeout=0.05) and r.publish(f"{prefix}:a", "x") == 0)
    pubsub.close()


def test_values_are_bytes_up_to_a_mebibyte(connect, prefix):
    raw = connect(decode_responses=False)
    every = bytes(range(256))
    raw.set(f"{prefix}:bytes", every)
    assert raw.get(f"{prefix}:bytes") == every
    big = every * 4096
    raw.set(f"{prefix}:big", big)
    assert raw.get(f"{prefix}:big") == big


def test_select_changes_the_database_of_this_client_alone(r, connect, prefix):
    other = connect(db=OTHER_DATABASE)
    other.set(f"{prefix}:db", "other")
    assert r.get(f"{prefix}:db") is None
    with pytest.raises(redis.exceptions.ResponseError, match="out of range"):
        connect(db=100_000).ping()


def test_a_client_has_a_name_and_an_id_and_is_listed_with_them(r, connect):
    name = unique("name")
    client = connect(client_name=name, single_connection_client=True)
    assert client.client_getname() == name
    own = [row["id"] for row in r.client_list() if row["name"] == name]
    assert own == [str(client.client_id())]
    assert client.client_info()["name"] == name


def test_errors_are_those_of_the_server(r, prefix):
    r.set(f"{prefix}:string", "x")
    with pytest.raises(redis.exceptions.ResponseError, match="WRONGTYPE"):
        r.lpush(f"{prefix}:string", "y")
    with pytest.raises(redis.exceptions.ResponseError, match="unknown command 'NOSUCHCOMMAND'"):
        r.execute_command("NOSUCHCOMMAND")
    replies = r.pipeline(transaction=False).get(f"{prefix}:string").lpush(f"{prefix}:string", 1).execute(raise_on_error=False)
    assert replies[0] == "x"
    assert "WRONGTYPE" in str(replies[1])


def test_scan_finds_every_key(r, prefix):
    r.mset({f"{prefix}:scan:{index}": index for index in range(1000)})
    assert len(set(r.scan_iter(f"{prefix}:scan:*", count=100))) == 1000


def test_a_lock_of_the_library_excludes_others(r, connect, prefix):
    lock = r.lock(f"{prefix}:lock", timeout=5)
    assert lock.acquire(blocking=False)
    assert not connect().lock(f"{prefix}:lock", timeout=5).acquire(blocking=False)
    lock.release()
    assert connect().lock(f"{prefix}:lock", timeout=5).acquire(blocking=False)
