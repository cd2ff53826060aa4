"""redis-py: threads with replies, transactions, blocking calls and messages that tell whose they are."""

import json
import os
import sys
import threading
import time
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

ADDRESS = urlsplit(os.environ["REDIS_URL"])
NAME = f"redis-py:{os.getpid()}"
totals = {"ok": 0, "errors": 0, "mismatches": 0}
lock, stopped, texts = threading.Lock(), threading.Event(), set()


def connect(database=0, protocol=2):
    # Without retries: what was lost is seen, and the next call connects again.
    return redis.Redis(ADDRESS.hostname, ADDRESS.port, database, protocol=protocol, retry=Retry(NoBackoff(), 0),
                       decode_responses=True, single_connection_client=False)


def count(what):
    with lock:
        totals[what] += 1


def expect(what, got, right):
    if right:
        count("ok")
    else:
        count("mismatches")
        print(f"MISMATCH {what}: {got!r}", file=sys.stderr)


def repeat(pause, step):
    """A thread that calls `step(number)` until it is over; what fails is counted, and each text shown once."""
    def run():
        number = 0
        while not stopped.is_set():
            number += 1
            try:
                step(number)
            except redis.RedisError as error:
                count("errors")
                text = f"{type(error).__name__}: {error}"[:200]
                if text not in texts and len(texts) < 100:
                    print(text, file=sys.stderr)
                texts.add(text)
                time.sleep(0.1)
            time.sleep(pause)

    return threading.Thread(target=run, daemon=True)


plain, third, popper, listener = connect(), connect(database=7, protocol=3), connect(), connect()


def pipeline(number):
    tags = [f"{NAME} {number}.{index}" for index in range(8)]
    with plain.pipeline(transaction=False) as batch:
        for tag in tags:
            batch.echo(tag)
        replies = batch.execute()
    for tag, reply in zip(tags, replies):
        expect("ECHO", reply, reply == tag)


def transaction(number):
    """With WATCH: on a connection that redbouncer lends for it."""
    tag = f"{NAME} {number}"
    with third.pipeline() as batch:
        batch.watch(f"{NAME}:key")
        batch.multi()
        batch.set(f"{NAME}:key", tag, ex=300)
        batch.get(f"{NAME}:key")
        reply = batch.execute()
    expect("GET in a transaction", reply, reply == [True, tag])


def push(number):
    plain.rpush(f"{NAME}:list", f"{NAME} {number}")
    plain.publish(NAME, f"{NAME} {number}")


def pop(_):
    popped = popper.blpop([f"{NAME}:list"], 1)
    expect("BLPOP", popped, popped is None or popped[1].startswith(f"{NAME} "))


subscriber = listener.pubsub(ignore_subscribe_messages=True)


def listen(_):
    # After an error the object subscribes again by itself, on a connection of its own.
    if not subscriber.subscribed:
        subscriber.subscribe(NAME)
    message = subscriber.get_message(timeout=0.5)
    if message:
        expect("a message", message, message["channel"] == NAME and message["data"].startswith(f"{NAME} "))


plain.ping()
print("ready", flush=True)
for pause, step in ((0.01, pipeline), (0.05, transaction), (0.02, push), (0, pop), (0, listen)):
    repeat(pause, step).start()


def tell():
    while True:
        with lock:
            print(json.dumps(totals), flush=True)
        if stopped.wait(0.2):
            break


threading.Thread(target=tell, daemon=True).start()
sys.stdin.readline()
stopped.set()
time.sleep(0.7)
print(json.dumps(totals), flush=True)
os._exit(0)
