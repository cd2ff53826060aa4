"""A Celery application that loses no task which it can keep: tasks acknowledged when they are done, given out again after
5 s, results stored until that succeeds. Its worker notes which tasks came from the server, and which were run."""

import os

from celery import Celery
from kombu.transport import redis as transport

app = Celery("outage", broker=os.environ["REDIS_URL"], backend=os.environ["REDIS_URL"])
app.conf.update(
    broker_connection_retry_on_startup=True,
    task_acks_late=True,
    worker_prefetch_multiplier=1,
    result_backend_always_retry=True,
    result_backend_max_retries=100,
    broker_transport_options={
        "visibility_timeout": 5,
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
        "unacked_mutex_expire": 2,
    },
    beat_schedule={"tick": {"task": "celery_tasks.tick", "schedule": 0.5}},
)
journal = os.open(os.environ["OUTAGE_JOURNAL"], os.O_CREAT | os.O_APPEND | os.O_WRONLY)


def note(what, which):
    os.write(journal, f"{what} {which}\n".encode())


@app.task
def add(number, zero):
    note("done", number)
    return number + zero


@app.task(bind=True, ignore_result=True, expires=3)
def tick(self):
    note("tick", self.request.id)


# Between BRPOP and the HSET that notes a task as unacknowledged, it is in the worker's memory alone: Kombu cannot keep it
# when the server is killed then (kombu.transport.redis.QoS.append).
deliver = transport.Transport._deliver


def noted(self, message, queue):
    note("came", (message.get("headers") or {}).get("id"))
    return deliver(self, message, queue)


transport.Transport._deliver = noted
