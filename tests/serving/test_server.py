"""A server's life: it says where it is, finishes what it took, and refuses what is new."""

from __future__ import annotations

import json
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from aptp.core.errors import RequestError
from aptp.serving.access import bind, is_loopback
from aptp.serving.app import create_app
from aptp.serving.limits import Limits
from aptp.serving.server import Server
from aptp.serving.service import Service

IMAGES = "/v1/images/generations"


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_first_signal_ends_a_server_once_it_answered_what_it_took(service: Service, pen) -> None:
    said: list[str] = []
    server = Server(create_app(service), service, said.append)
    life = threading.Thread(target=server.run, args=([bind("127.0.0.1", 0)],))
    life.start()
    until(lambda: bool(said))
    name, revision, url = re.fullmatch(r"serving (\w+), revision (\w+), at (http://127.0.0.1:\d+)", said[0]).groups()
    assert (name, revision) == ("demo", "abc123")
    pen.held = True
    with ThreadPoolExecutor(3) as threads, httpx2.Client(base_url=url, timeout=20) as client:
        taken = [threads.submit(client.post, IMAGES, json={"prompt": "a star"}) for _ in range(3)]
        until(lambda: service.taken == 3)
        server.handle_exit(signal.SIGTERM, None)
        assert client.get("/health/ready").status_code == 503
        assert client.post(IMAGES, json={"prompt": "late"}).json()["error"]["code"] == "stopping"
        pen.held = False
        assert [answer.result().status_code for answer in taken] == [200] * 3
        life.join(10)
        assert not life.is_alive()
        with pytest.raises(httpx2.ConnectError):
            client.get("/health/live")
    assert pen.closed


def test_the_second_signal_does_not_wait(service: Service, pen) -> None:
    said: list[str] = []
    server = Server(create_app(service), service, said.append)
    life = threading.Thread(target=server.run, args=([bind("127.0.0.1", 0)],))
    life.start()
    until(lambda: bool(said))
    pen.held = True
    url = said[0].split()[-1]
    with ThreadPoolExecutor(1) as threads:
        taken = threads.submit(httpx2.post, url + IMAGES, json={"prompt": "a star"}, timeout=20)
        until(lambda: service.taken == 1)
        server.handle_exit(signal.SIGINT, None)
        server.handle_exit(signal.SIGINT, None)
        life.join(10)
        assert not life.is_alive()
        assert isinstance(taken.exception(), httpx2.RemoteProtocolError) or taken.result().status_code == 500


@pytest.fixture
def impatient(pen, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    """Where a server listens that gives clients half a second, three at a time."""
    monkeypatch.setattr(Limits, "connections", 3)
    service, said = Service(pen, Limits(wait=0, reading=0.5, timeout=2)), []
    server = Server(create_app(service), service, said.append)
    life = threading.Thread(target=server.run, args=([bind("127.0.0.1", 0)],))
    life.start()
    until(lambda: bool(said))
    host, port = re.search(r"http://(.+):(\d+)", said[0]).groups()
    yield host, int(port)
    server.handle_exit(signal.SIGTERM, None)
    life.join(10)
    assert not life.is_alive()


HEAD = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
LATER = HEAD.replace(b"live", b"ready")
"""Another request on the connection of a first one."""


def closed(client: socket.socket, drip: bytes = b"") -> bytes:
    """What a server says until it closes a connection on which bytes come one at a time; it closes soon."""
    said, end = b"", time.monotonic() + 5
    client.settimeout(0.1)
    drops = iter(drip)
    while time.monotonic() < end:
        try:
            if (drop := next(drops, None)) is not None:
                client.send(bytes([drop]))
            said += (got := client.recv(65536))
            if not got:
                return said
        except TimeoutError:
            continue
        except OSError:
            return said
    pytest.fail("the connection is still open")


@pytest.mark.parametrize(
    ("sent", "drip", "answers"),
    [
        (b"", b"", 0),
        (b"", HEAD, 0),
        (HEAD, b"", 1),
        (HEAD, LATER, 1),
        (HEAD + HEAD, LATER, 2),
        (f"POST {IMAGES} HTTP/1.1\r\nHost: elsewhere\r\nContent-Length: 99\r\n\r\n".encode(), b"x" * 99, 1),
        (
            f"POST {IMAGES} HTTP/1.1\r\nHost: localhost\r\n".encode()
            + b"Content-Type: application/json\r\nContent-Length: 99\r\n\r\n",
            b"x" * 99,
            1,
        ),
    ],
    ids=["silent", "slow", "idle", "slow later", "pipelined", "slow body, refused", "slow body"],
)
def test_a_slow_connection_is_closed(impatient: tuple[str, int], sent: bytes, drip: bytes, answers: int) -> None:
    with socket.create_connection(impatient) as client:
        client.sendall(sent)
        assert closed(client, drip).count(b"HTTP/1.1 ") == answers


def test_more_connections_than_may_be_are_turned_away(impatient: tuple[str, int], pen) -> None:
    url = "http://{}:{}".format(*impatient)
    open_ones = [socket.create_connection(impatient) for _ in range(3)]
    try:
        until = time.monotonic() + 5  # the server may not have taken them yet
        while (answer := httpx2.get(f"{url}/health/live")).status_code == 200 and time.monotonic() < until:
            time.sleep(0.05)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
        assert answer.json()["error"]["code"] == "too_many_connections"
        for client in open_ones:
            closed(client)
        assert httpx2.get(f"{url}/health/live").status_code == 200
    finally:
        for client in open_ones:
            client.close()


def test_a_client_that_waits_for_its_picture_is_not_cut_off(impatient: tuple[str, int], pen) -> None:
    pen.held = True
    url = "http://{}:{}".format(*impatient)
    with ThreadPoolExecutor(1) as threads:
        taken = threads.submit(httpx2.post, url + IMAGES, json={"prompt": "a star"}, timeout=20)
        time.sleep(0.8)
        pen.held = False
        assert taken.result().status_code == 200


def test_an_answer_that_is_not_fetched_is_dropped(impatient: tuple[str, int], pen) -> None:
    pen.size_of_answer = 2**24
    body = json.dumps({"prompt": "a star"}).encode()
    fields = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(impatient)
        client.sendall(f"POST {IMAGES} HTTP/1.1\r\n{fields}\r\n\r\n".encode() + body)
        time.sleep(2.5)
        assert len(closed(client)) < 2**24


def test_an_address_is_refused_in_one_sentence() -> None:
    with bind("127.0.0.1", 0) as first:
        assert is_loopback(first)
        first.listen()
        with pytest.raises(RequestError, match=f"port {first.getsockname()[1]}: "):
            bind("127.0.0.1", first.getsockname()[1])
    with pytest.raises(RequestError, match="cannot serve at "):
        bind("no.such.host.invalid", 1)


@pytest.mark.parametrize(("host", "alone"), [("localhost", True), ("127.0.0.2", True), ("0.0.0.0", False)])
def test_who_can_reach_an_address(host: str, alone: bool) -> None:
    with bind(host, 0) as bound:
        assert is_loopback(bound) == alone


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
def test_six_is_as_good_as_four() -> None:
    try:
        bound = bind("::1", 0)
    except RequestError:
        pytest.skip("no IPv6 address here")
    with bound:
        assert is_loopback(bound)
