"""redis-py's asyncio client as it comes: a writer, and a consumer of a list that it fills."""

import asyncio

import redis.asyncio as redis
from redis.exceptions import ConnectionError, TimeoutError

from common import URL, Tally, ready, stopped

KEY, JOBS = "outage:asyncio", "outage:asyncio:jobs"
tally = Tally()
taken = [-1]


async def consume(client):
    while True:
        try:
            job = await client.blpop(JOBS, timeout=2)
        except (ConnectionError, TimeoutError):
            await asyncio.sleep(0.1)
            continue
        if job:
            taken[0] = int(job[1])


async def main():
    client = redis.from_url(URL, decode_responses=True)
    consumer = asyncio.create_task(consume(redis.from_url(URL, decode_responses=True)))
    await client.ping()
    ready()
    while not stopped.is_set() and not consumer.done():
        number, tally.sent = tally.sent, tally.sent + 1
        try:
            await client.rpush(KEY, number)
            tally.acknowledged.append(number)
            await client.rpush(JOBS, number)
        except (ConnectionError, TimeoutError) as error:
            tally.failed(error)
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.5)
    if consumer.done():
        await consumer  # raises what ended it
    tally.report([int(number) for number in await client.lrange(KEY, 0, -1)], taken[0] < tally.sent - 5)


asyncio.run(main())
