"""A server's life: it says where it is, finishes what it took, and refuses what is new."""

from __future__ import annotations

import re
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from aptp.core.errors import RequestError
from aptp.serving.access import bind, is_loopback
from aptp.serving.app import create_app
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
