"""Requests to a real HTTP server: slow, failing, refusing, redirecting, trickling."""

from __future__ import annotations

import signal
import socket
import threading
import time

import pytest

from pgstash.errors import Interrupted
from pgstash.monitoring import http_delivery
from pgstash.monitoring.http_delivery import Courier, Request, finished
from support.hooks import Receiver, receiving

SECRET_PATH = "/services/T000/planted-webhook-token?key=planted"


def deliver(*requests: Request, answer_seconds: float = 5.0) -> list[str]:
    """Send the requests and return the warnings."""
    warnings: list[str] = []
    courier = Courier(
        "The webhook", warnings.append, answer_seconds=answer_seconds, backoff_seconds=0.02
    )
    with finished([courier]):
        for request in requests:
            courier.send(request)
    assert not any("planted" in text or "127.0.0.1" in text for text in warnings)
    return warnings


def post(url: str, body: bytes = b"{}") -> Request:
    return Request("POST", url, lambda: body, {"Content-Type": "application/json"})


def test_a_request_arrives() -> None:
    with receiving() as receiver:
        assert deliver(post(receiver.url(SECRET_PATH), b'{"a": 1}')) == []
    [request] = receiver.received
    assert (request.method, request.target) == ("POST", SECRET_PATH)
    assert request.json == {"a": 1}
    assert request.headers["Content-Type"] == "application/json"
    assert request.headers["User-Agent"].startswith("pgstash/")


@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_any_success_will_do(status: int) -> None:
    with receiving(Receiver([status])) as receiver:
        assert deliver(post(receiver.url())) == []
    assert len(receiver.received) == 1


def test_the_login_of_a_url_is_used() -> None:
    with receiving() as receiver:
        url = receiver.url().replace("127", "user:p%40ss@127", 1)
        assert deliver(post(url)) == []
    assert receiver.received[0].headers["Authorization"] == "Basic dXNlcjpwQHNz"
    assert receiver.received[0].target == "/hook"


def test_order_is_kept() -> None:
    with receiving(Receiver(silence=0.05)) as receiver:
        requests = [Request("GET", receiver.url(f"/{number}")) for number in range(5)]
        assert deliver(*requests) == []
    assert receiver.targets == ["/0", "/1", "/2", "/3", "/4"]


@pytest.mark.parametrize("statuses", [[500, 200], [503, 429, 200]])
def test_a_failure_is_tried_again(statuses: list[int]) -> None:
    with receiving(Receiver(statuses)) as receiver:
        assert deliver(post(receiver.url(), b"x")) == []
    assert [each.body for each in receiver.received] == [b"x"] * len(statuses)


def test_waits_grow() -> None:
    with receiving(Receiver([500])) as receiver:
        courier = Courier("It", lambda _text: None, backoff_seconds=0.2)
        with finished([courier]):
            courier.send(post(receiver.url()))
    first, second, third = (each.at for each in receiver.received)
    assert second - first >= 0.2
    assert third - second >= 0.4


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 422])
def test_who_refuses_is_not_asked_again(status: int) -> None:
    words = b"<b>no such\n  channel\x1b[31m</b> \xff" + b"x" * 5000
    with receiving(Receiver([status], words=words)) as receiver:
        [warning] = deliver(post(receiver.url(SECRET_PATH)))
    assert len(receiver.received) == 1
    start = f"The webhook was refused: HTTP {status}: <b>no such channel[31m</b> \ufffdxxx"
    assert warning.startswith(start)
    assert warning.endswith("x…")
    assert len(warning) < 400


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502])
def test_three_tries_and_a_warning(status: int) -> None:
    with receiving(Receiver([status])) as receiver:
        warnings = deliver(post(receiver.url(SECRET_PATH)))
    assert len(receiver.received) == 3
    assert warnings == [f"The webhook could not be delivered in 3 tries: HTTP {status}"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_does_not_take_the_body_elsewhere(status: int) -> None:
    with receiving() as elsewhere, receiving(Receiver([status])) as receiver:
        receiver.location = elsewhere.url("/planted")
        warnings = deliver(post(receiver.url()))
    assert elsewhere.received == []
    assert "redirects are not followed" in warnings[0]


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    warnings = deliver(post(f"http://127.0.0.1:{port}{SECRET_PATH}"))
    assert warnings == [
        "The webhook could not be delivered in 3 tries: no connection (Connection refused)"
    ]


def test_a_name_that_nobody_has() -> None:
    [warning] = deliver(post(f"http://planted.invalid{SECRET_PATH}"), answer_seconds=8)
    assert "cannot be resolved" in warning or "no answer" in warning


@pytest.mark.parametrize("trickle", [False, True], ids=["silent", "trickling"])
def test_a_try_takes_so_long_and_no_longer(trickle: bool) -> None:  # noqa: FBT001 - parameter
    with receiving(Receiver(silence=0 if trickle else 30, trickle=trickle)) as receiver:
        began = time.monotonic()
        warnings = deliver(post(receiver.url(SECRET_PATH)), answer_seconds=0.3)
        took = time.monotonic() - began
    assert warnings == ["The webhook could not be delivered in 3 tries: no answer within 0.3s"]
    assert took >= 3 * 0.3 + 0.02 + 0.04
    assert took < 20


def test_a_server_that_hangs_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            for _ in range(3):
                server.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        warnings = deliver(post(f"http://127.0.0.1:{server.getsockname()[1]}{SECRET_PATH}"))
        thread.join()
    assert warnings == ["The webhook could not be delivered in 3 tries: the connection broke"]


def test_a_server_that_does_not_speak_tls() -> None:
    with receiving() as receiver:
        [warning] = deliver(post(receiver.url(SECRET_PATH).replace("http:", "https:")))
    assert "TLS failed" in warning


def test_a_start_ping_is_sent_once() -> None:
    with receiving(Receiver([500])) as receiver:
        warnings = deliver(Request("GET", receiver.url("/start"), tries=1))
    assert len(receiver.received) == 1
    assert warnings == ["The webhook could not be delivered in 1 try: HTTP 500"]


def test_what_nobody_foresaw_is_a_warning_and_the_next_goes_out() -> None:
    def broken() -> bytes:
        raise RuntimeError("planted")

    with receiving() as receiver:
        warnings = deliver(Request("POST", receiver.url(), broken), post(receiver.url("/next")))
    assert warnings == ["The webhook could not be delivered: RuntimeError"]
    assert receiver.targets == ["/next"]


def test_after_a_signal_nobody_waits_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_delivery, "SIGNAL_SECONDS", 0.2)
    warnings: list[str] = []
    with receiving(Receiver(silence=60)) as receiver:
        couriers = [Courier(name, warnings.append) for name in ("One", "Two")]
        began = time.monotonic()
        with pytest.raises(Interrupted), finished(couriers):  # noqa: PT012
            for courier in couriers:
                courier.send(post(receiver.url()))
            receiver.wait_for(2)
            raise Interrupted(signal.SIGTERM)
        assert time.monotonic() - began < 10
    assert warnings == [
        "One was not delivered before the command ended",
        "Two was not delivered before the command ended",
    ]


def test_what_can_be_delivered_after_a_signal_is() -> None:
    warnings: list[str] = []
    with receiving() as receiver:
        courier = Courier("It", warnings.append)
        with pytest.raises(Interrupted), finished([courier]):  # noqa: PT012
            courier.send(post(receiver.url()))
            raise Interrupted(signal.SIGTERM)
        assert receiver.targets == ["/hook"]
    assert warnings == []
