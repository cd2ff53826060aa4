"""redis-py with three retries: a writer, and a subscriber in a thread that asks again after a ConnectionError."""

import threading
import time

import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from common import URL, Tally, ready, stopped

KEY = "outage:redis-py"
writer = redis.Redis.from_url(URL, retry=Retry(ExponentialBackoff(), 3), decode_responses=True)
heard = [-1]


def listen():
    pubsub = redis.Redis.from_url(URL, decode_responses=True).pubsub()
    pubsub.subscribe(KEY)
    while True:
        try:
            message = pubsub.get_message(timeout=1)
        except (redis.ConnectionError, redis.TimeoutError):
            time.sleep(0.1)
            continue
        if message and message["type"] == "message":
            heard[0] = int(message["data"])


threading.Thread(target=listen, daemon=True).start()
writer.ping()
ready()
tally = Tally()
while not stopped.is_set():
    number, tally.sent = tally.sent, tally.sent + 1
    try:
        writer.rpush(KEY, number)
        tally.acknowledged.append(number)
        writer.publish(KEY, number)
    except (redis.ConnectionError, redis.TimeoutError) as error:
        tally.failed(error)
    time.sleep(0.02)
time.sleep(0.5)
tally.report([int(number) for number in writer.lrange(KEY, 0, -1)], heard[0] < tally.sent - 5)
