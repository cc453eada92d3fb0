"""
What check-docker asks of the server in the container: `container_client.py HOST PORT`.

Waits until the server listens, for DEADLINE seconds at most, then makes an HTTP request and has a text echoed over
WebSocket. Exits with 0 if both went well, else with a traceback.
"""

import http.client
import socket
import sys
import time

from websockets.sync.client import connect

DEADLINE = 30


def wait_until_listening(host: str, port: int) -> None:
    deadline = time.monotonic() + DEADLINE
    while True:
        try:
            socket.create_connection((host, port), timeout=DEADLINE).close()
        except ConnectionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


def check_http(host: str, port: int) -> None:
    connection = http.client.HTTPConnection(host, port, timeout=DEADLINE)
    connection.request("GET", "/")
    response = connection.getresponse()
    body = response.read()
    connection.close()
    if response.status != 200 or not body:
        raise RuntimeError(f"GET / was answered {response.status} {body!r}")


def check_websocket(host: str, port: int) -> None:
    with connect(f"ws://{host}:{port}/", open_timeout=DEADLINE, proxy=None) as websocket:
        websocket.send("Hello, container")
        echo = websocket.recv(timeout=DEADLINE)
    if echo != "Hello, container":
        raise RuntimeError(f"the echo was {echo!r}")


if __name__ == "__main__":
    host, port = sys.argv[1], int(sys.argv[2])
    wait_until_listening(host, port)
    check_http(host, port)
    check_websocket(host, port)
