"""Celery: a worker process that waits in BRPOP over several keys, its control channels, results over pub/sub."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from conftest import URL, eventually, unique

PREFIX = unique("celery") + ":"
os.environ["CELERY_PREFIX"] = PREFIX

from celery import chord, group  # noqa: E402
from celery_app import add, app, flaky, total  # noqa: E402

# kombu asks for a queue and its lower priorities in one BRPOP.
PRIORITIES = [PREFIX + name for name in ("celery", *(f"celery\x06\x16{step}" for step in (3, 6, 9)))]


@pytest.fixture(scope="module")
def r():
    with redis.Redis.from_url(URL) as connection:
        yield connection
        for key in connection.scan_iter(f"{PREFIX}*", count=1000):
            connection.unlink(key)


def waiting(r):
    """The ids of the clients whose last command is BRPOP: those that wait in it, and some that have waited."""
    return {row["id"] for row in r.client_list() if row["cmd"] == "brpop"}


@pytest.fixture
def start_worker(r, tmp_path):
    """Starts workers, returns once they wait in BRPOP, with the ids of those clients; kills them at the end."""
    workers = []

    def start():
        before = waiting(r)
        log = (tmp_path / f"worker{len(workers)}.log").open("w+")
        command = [sys.executable, "-m", "celery", "-A", "celery_app", "worker", "--concurrency", "1", "--loglevel", "INFO"]
        here = Path(__file__).parent
        environment = {**os.environ, "C_FORCE_ROOT": "1"}
        process = subprocess.Popen(command, cwd=here, env=environment, stdout=log, stderr=log, start_new_session=True)
        workers.append(process)

        def blocked():
            log.seek(0)
            assert process.poll() is None, log.read()
            return waiting(r) - before

        eventually("a worker in BRPOP", blocked, 20)
        return process, waiting(r) - before

    yield start
    for process in workers:
        kill(process)


def kill(process):
    """Kills a worker and the children it has forked: they share its process group."""
    if process.poll() is None:
        os.killpg(process.pid, 9)
        process.wait()


def test_tasks_groups_and_chords_return_their_results(start_worker):
    start_worker()
    assert add.delay(2, 3).get(timeout=10) == 5
    assert group(add.s(n, n) for n in range(20))().get(timeout=20) == [2 * n for n in range(20)]
    assert chord((add.s(n, 1) for n in range(5)), total.s())().get(timeout=20) == 15
    assert flaky.delay().get(timeout=10) == 2
    assert app.control.ping(timeout=2)


def test_a_task_sent_after_a_waiting_worker_was_killed_is_done_by_the_next_one(r, start_worker):
    worker, clients = start_worker()
    kill(worker)
    eventually("its BRPOP gone", lambda: not waiting(r) & clients)
    result = add.delay(20, 22)
    assert sum(r.llen(key) for key in PRIORITIES) == 1
    start_worker()
    assert result.get(timeout=15) == 42
