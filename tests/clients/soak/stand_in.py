#!/usr/bin/env python3
"""Stands in for redbouncer where the soak is tested itself: each client gets a connection to the server of its own.

STAND_IN=crossing  now and then two clients get each other's bytes
STAND_IN=leak      a file stays open for each client that has come
STAND_IN=none      no fault: the soak must find none
"""

import argparse
import asyncio
import os
import sys
from urllib.parse import urlsplit

FAULT = os.environ["STAND_IN"]
CROSSED_EVERY = 50  # pieces of replies
leaked, held, pieces = [], [], 0
clients = 0


async def pass_on(reader, writer, crosses):
    global pieces
    try:
        while data := await reader.read(1 << 16):
            pieces += crosses
            if crosses and pieces % CROSSED_EVERY == 0:
                if held and held[0][0] is not writer:
                    other, there = held.pop()
                    other.write(data)
                    data = there
                elif not held:
                    held.append((writer, data))
                    continue
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


async def serve(reader, writer):
    global clients
    clients += 1
    try:
        server = urlsplit(options.upstream)
        upstream_reader, upstream_writer = await asyncio.open_connection(server.hostname, server.port)
        if FAULT == "leak":
            leaked.append(os.dup(0))
        await asyncio.gather(pass_on(reader, upstream_writer, False),
                             pass_on(upstream_reader, writer, FAULT == "crossing"))
    except OSError:
        writer.close()
    finally:
        clients -= 1


async def answer(reader, writer):
    await reader.readuntil(b"\r\n\r\n")
    body = (f"redbouncer_clients {clients}\nredbouncer_tasks {2 * clients}\nredbouncer_client_memory_bytes 0\n")
    writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode())
    await writer.drain()
    writer.close()


async def main():
    for address, what in ((options.listen, serve), (options.admin, answer)):
        host, port = address.rsplit(":", 1)
        await asyncio.start_server(what, host, int(port))
    await asyncio.Event().wait()


parser = argparse.ArgumentParser()
for name in ("--listen", "--upstream", "--admin", "--max-connections"):
    parser.add_argument(name)
parser.add_argument("--set", action="append")
options = parser.parse_args()
sys.exit(asyncio.run(main()))
