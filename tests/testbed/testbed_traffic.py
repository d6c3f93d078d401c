"""Messages over plain TCP between hosts of a testbed, and how long they take. Also the program that runs inside."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

PORT = 4711
Message = tuple[int, int, int]
"""Source host, destination host, bytes."""


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def receive(address: str, port: int, nbytes: int) -> None:
    with socket.create_server((address, port)) as server:
        say("ready")
        connection, _ = server.accept()
        with connection:
            left, buffer = nbytes, bytearray(1 << 18)
            while left > 0 and (got := connection.recv_into(buffer)):
                left -= got
            say(json.dumps([left, time.monotonic()]))


def send(address: str, port: int, nbytes: int) -> None:
    with socket.create_connection((address, port)) as connection:
        say("ready")
        start_s, data = float(sys.stdin.readline()), bytes(nbytes)
        time.sleep(max(0.0, start_s - time.monotonic()))
        connection.sendall(data)
        connection.recv(1)


def transfer(bed, messages: Sequence[Message]) -> list[float]:
    """Send all messages at once, each over a connection of its own; return the seconds that each took."""
    started: list[subprocess.Popen] = []

    def start(action: str, host: int, to: int, port: int, nbytes: int) -> subprocess.Popen:
        program = [sys.executable, "-S", __file__, action, bed.address_of(to), str(port), str(nbytes)]
        started.append(
            subprocess.Popen(
                [*bed.exec_prefix(host), *program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        )
        return started[-1]

    def ready(processes: list[subprocess.Popen]) -> list[subprocess.Popen]:
        assert [process.stdout.readline() for process in processes] == ["ready\n"] * len(processes)
        return processes

    try:
        numbered = list(enumerate(messages, PORT))
        receivers = ready([start("receive", dst, dst, port, nbytes) for port, (_, dst, nbytes) in numbered])
        senders = ready([start("send", src, dst, port, nbytes) for port, (src, dst, nbytes) in numbered])
        start_s = time.monotonic() + 0.05
        for process in senders:
            process.stdin.write(f"{start_s}\n")
            process.stdin.flush()
        ends = [json.loads(process.stdout.readline()) for process in receivers]
        assert [left for left, _ in ends] == [0] * len(messages)
        return [end_s - start_s for _, end_s in ends]
    finally:
        for process in started:
            process.kill()
            process.communicate()


if __name__ == "__main__":
    {"receive": receive, "send": send}[sys.argv[1]](sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
