"""Users with a name and a password, with the synchronous client and the asyncio one."""

import asyncio
import os
from contextlib import closing
from threading import Timer

import pytest
import redis
import redis.asyncio

from conftest import unique

URL, LOGINS = os.environ.get("REDIS_LOGIN_URL"), os.environ.get("REDIS_LOGINS", "")
pytestmark = pytest.mark.skipif(not (URL and LOGINS), reason="REDIS_LOGIN_URL and REDIS_LOGINS are not set")
USERS = [login.split(":") for login in LOGINS.split()]
PROTOCOLS = pytest.mark.parametrize("protocol", [2, 3])


def client(protocol, name=None, password=None):
    options = {} if name is None else {"username": name, "password": password}
    return redis.Redis.from_url(URL, protocol=protocol, decode_responses=True, **options)


@PROTOCOLS
@pytest.mark.parametrize("user", range(2))
def test_each_user_is_who_it_is_in_every_kind_of_traffic(protocol, user):
    name, password, who = USERS[user]
    key = unique(f"logins:{name}")
    with client(protocol, name, password) as mine, client(protocol, name, password) as other:
        assert [mine.acl_whoami() for _ in range(5)] == [who] * 5
        later = Timer(0.05, lambda: other.rpush(f"{key}:list", "element"))
        later.start()
        assert list(mine.blpop(f"{key}:list", 5)) == [f"{key}:list", "element"]
        later.join()
        assert mine.pipeline().set(key, "1").acl_whoami().delete(key).execute() == [True, who, 1]
        assert mine.transaction(lambda pipe: pipe.multi() or pipe.acl_whoami(), key) == [who]
        with closing(mine.pubsub()) as listener:
            listener.subscribe(key)
            assert listener.get_message(timeout=5)["type"] == "subscribe"
            other.publish(key, "hello")
            assert listener.get_message(timeout=5)["data"] == "hello"


def test_two_users_of_asyncio_at_the_same_time():
    async def named(name, password, protocol):
        options = {"username": name, "password": password, "protocol": protocol, "decode_responses": True}
        async with redis.asyncio.from_url(URL, **options) as mine:
            return set(await asyncio.gather(*(mine.acl_whoami() for _ in range(10))))

    async def everybody():
        asked = [(name, password, protocol) for name, password, _ in USERS for protocol in (2, 3)]
        return await asyncio.gather(*(named(*each) for each in asked))

    assert asyncio.run(everybody()) == [{who} for _, _, who in USERS for _ in (2, 3)]


@PROTOCOLS
def test_a_wrong_password_an_unknown_name_and_no_password(protocol):
    name, password, _ = USERS[0]
    for wrong in [(name, password + "!"), ("nobody", password)]:
        with pytest.raises(redis.AuthenticationError, match="invalid username-password pair or user is disabled"):
            client(protocol, *wrong).ping()
    # The library drops the code NOAUTH; the words are those of the first command, which with RESP3 is HELLO.
    words = "(?i)authentication required" if protocol == 2 else "already authenticated"
    with pytest.raises(redis.AuthenticationError, match=words):
        client(protocol).get("k")
