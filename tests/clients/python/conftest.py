"""The server under test, and what the suites share. Nothing here knows what answers at REDIS_URL."""

import os
import time
import uuid

import pytest
import redis

URL = os.environ["REDIS_URL"]
OTHER_DATABASE = 9


def unique(label):
    return f"clients:{label}:{uuid.uuid4().hex[:8]}"


def listed(connection, name, command=None):
    """Whether the server lists a client of that name (in that command: then it blocks there)."""
    rows = connection.client_list()
    return any(row["name"] == name and command in (None, row["cmd"]) for row in rows)


def eventually(what, condition, seconds=5):
    """Polls until `condition` is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)


@pytest.fixture
def prefix():
    """A prefix of keys and channels for one test; its keys are removed afterwards."""
    mine = unique("python")
    yield mine
    for database in (0, OTHER_DATABASE):
        with redis.Redis.from_url(URL, db=database) as connection:
            for key in connection.scan_iter(f"{mine}*", count=1000):
                connection.unlink(key)
