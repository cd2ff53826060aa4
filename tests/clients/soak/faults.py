"""What goes wrong in the soak. Each fault is brought about and ended by one function, which says what it did. It fails if the
fault had no effect: then the run would show nothing."""

import signal
import socket
import struct
import threading
import time

from stage import CAP, CLIENT_MAX, Resp, Violation, answers, ask, until

STORM = CLIENT_MAX + 100  # connections at once
LARGE = 4 << 20  # bytes of one reply


def effect(what, seconds, condition):
    return until(what, seconds, condition, kind="no effect")


def clients_killed(stage):
    """Two client programs die (SIGKILL) and are started again, one of them at once."""
    names = [name for name in stage.programs if not stage.programs[name].remote and name != "jobs"]
    chosen = stage.random.sample(names, min(2, len(names)))
    for name in chosen:
        stage.programs[name].kill()
    for name in chosen:
        stage.programs[name].start()
        time.sleep(stage.random.random())
    for name in chosen:
        stage.programs[name].until_ready()
    return " and ".join(chosen)


def host_lost(stage):
    """The network of a host drops all packets, nobody is told; its programs are killed unheard."""
    remote = [program for program in stage.programs.values() if program.remote]
    connections = lambda: ask(stage.port, "CLIENT", "LIST").count(f" addr={stage.network.far}:")
    before = connections()
    stage.network.vanish()
    began = time.monotonic()
    effect("redbouncer notices that a host is lost", 20, lambda: not connections())
    noticed = time.monotonic() - began
    for program in remote:
        program.kill()
    stage.network.come_back()
    for program in remote:
        program.start()
    for program in remote:
        program.until_ready()
    return f"{before} connections, closed after {noticed:.1f} s"


def server_killed(stage):
    """The server is killed (SIGKILL) and started again."""
    stage.server.kill()
    stage.server.wait()
    away = stage.random.uniform(0.2, 2)
    time.sleep(away)
    stage.start_server()
    until("the server answers again", 60, lambda: answers(stage.server_port))
    return f"away for {away:.1f} s"


def server_stopped(stage):
    """The server stands still (SIGSTOP)."""
    still = stage.random.uniform(1, 4)
    stage.server.send_signal(signal.SIGSTOP)
    try:
        time.sleep(still)
    finally:
        stage.server.send_signal(signal.SIGCONT)
    return f"for {still:.1f} s"


def connections_killed(stage):
    """CLIENT KILL on the server, of all connections there are."""
    admin = Resp(stage.server_port)
    killed = sum(int(admin.ask("CLIENT", "KILL", "TYPE", kind)[1:]) for kind in ("normal", "pubsub"))
    admin.close()
    if not killed:
        raise Violation("no effect", "no connection was there to be killed")
    return f"{killed} connections"


def log_disk_full(stage):
    """The log's disk is full, while there is something to log."""
    before = stage.counted("redbouncer_log_lines_dropped_total")
    stage.disk.fill()
    try:
        connections_killed(stage)
        effect("lines are lost", 10, lambda: stage.counted("redbouncer_log_lines_dropped_total") > before)
        time.sleep(1)
    finally:
        stage.disk.free()
    lost = stage.counted("redbouncer_log_lines_dropped_total") - before
    return f"{lost:.0f} lines lost"


def reset(client):
    """Closed without a farewell: RST instead of FIN."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def too_many_clients(stage):
    """More connections at once than client.max: some silent, some in half a command, some asking."""
    clients = [socket.create_connection(("127.0.0.1", stage.port), 5) for _ in range(STORM)]
    served = refused = 0
    try:
        for number, client in enumerate(clients):
            try:
                client.sendall((b"*2\r\n$4\r\nECHO\r\n$6\r\n%06d\r\n" % number, b"*2\r\n$4\r\nEC", b"")[number % 3])
            except OSError:
                pass  # refused already
        for number, client in enumerate(clients):
            if number % 3:
                continue
            try:
                reply = client.recv(100)
            except OSError:
                reply = b""
            if reply == b"$6\r\n%06d\r\n" % number:
                served += 1
            elif not reply or reply.startswith((b"-ERR max number of clients", b"-ERR redbouncer")):
                refused += 1
            else:
                raise Violation("mismatch", f"ECHO {number:06} was answered {reply!r}")
    finally:
        for number, client in enumerate(clients):
            client.close() if number % 2 else reset(client)
    if not served or not refused:
        raise Violation("no effect", f"of {STORM} connections {served} were served and {refused} refused")
    return f"{STORM} connections, of every third: {served} served, {refused} refused"


def too_much_memory(stage):
    """Clients that ask for much and read nothing, more than client.memory_max."""
    ask(stage.server_port, "SET", "soak:large", b"v" * LARGE)
    closed = lambda: stage.counted("redbouncer_clients_closed_total", '"memory"')
    before = closed()
    clients = []
    try:
        for _ in range(12):
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
            client.settimeout(5)
            client.connect(("127.0.0.1", stage.port))
            client.sendall(b"*2\r\n$3\r\nGET\r\n$10\r\nsoak:large\r\n" * 8)
            clients.append(client)
        effect("somebody is closed for the memory", 15, lambda: closed() > before)
        time.sleep(1)
    finally:
        for client in clients:
            client.close()
    return f"{closed() - before:.0f} of {len(clients)} closed"


def pool_exhausted(stage):
    """More MONITORs than upstream connections."""
    before = stage.counted("redbouncer_pool_full_total")
    clients = [socket.create_connection(("127.0.0.1", stage.port), 5) for _ in range(CAP)]
    ended = threading.Event()

    def listen(client):
        try:
            while not ended.is_set() and client.recv(1 << 16):
                pass
        except OSError:
            pass

    threads = [threading.Thread(target=listen, args=(client,), daemon=True) for client in clients]
    try:
        for client, thread in zip(clients, threads):
            client.sendall(b"MONITOR\r\n")
            thread.start()
        effect("the pool is full", 15, lambda: stage.counted("redbouncer_pool_full_total") > before)
    finally:
        ended.set()
        for client, thread in zip(clients, threads):
            try:
                client.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it was closed already
            thread.join(6)
            client.close()
    return f"{stage.counted('redbouncer_pool_full_total') - before:.0f} refused"


FAULTS = {
    "clients killed": clients_killed,
    "host lost": host_lost,
    "server killed": server_killed,
    "server stopped": server_stopped,
    "connections killed": connections_killed,
    "log disk full": log_disk_full,
    "client.max": too_many_clients,
    "client.memory_max": too_much_memory,
    "pool exhausted": pool_exhausted,
}
