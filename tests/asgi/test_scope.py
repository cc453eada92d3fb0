"""The scope of a request or WebSocket connection holds what the client sent, as the ASGI text says."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.helpers import PEER, asgi, serving
from tests.tls_ends import SERVER_CONTEXT, End, client_context, shake_hands
from trio_ws_server.asgi.scope import http_scope
from trio_ws_server.asgi.tls import tls_extension
from trio_ws_server.headers import RequestHead
from trio_ws_server.peer import AgreedTLS, Peer
from trio_ws_server.tls import ServerTLS

HANDSHAKE = (
    b"Upgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n"
)


def request(
    target: bytes = b"/", *, method: bytes = b"GET", version: bytes = b"1.1", headers: bytes = b""
) -> bytes:
    line = method + b" " + target + b" HTTP/" + version
    return line + b"\r\nHost: example.org\r\n" + headers + b"\r\n"


async def scopes_of(
    *requests: bytes, peer: Peer = PEER, root_path: str = "", state: dict[str, Any] | None = None
) -> list[Any]:
    """Return the scopes with which an application is called for requests that follow each other."""
    scopes: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        else:
            await send({"type": "http.response.start", "status": 204})
            await send({"type": "http.response.body"})

    async with serving(asgi(app, root_path=root_path, state=state), peer=peer) as client:
        await client.send(b"".join(requests))
        await client.send_eof()
        await client.receive_all()
    assert len(scopes) == len(requests)
    return scopes


async def scope_of(
    target: bytes = b"/",
    *,
    method: bytes = b"GET",
    version: bytes = b"1.1",
    headers: bytes = b"",
    peer: Peer = PEER,
    root_path: str = "",
    state: dict[str, Any] | None = None,
) -> Any:
    """Return the scope with which an application is called for one request."""
    sent = request(target, method=method, version=version, headers=headers)
    [scope] = await scopes_of(sent, peer=peer, root_path=root_path, state=state)
    return scope


def path_of(target: bytes) -> tuple[str, bytes, bytes]:
    """Return how a target is told: ``path``, ``raw_path`` and ``query_string``."""
    received = RequestHead(b"GET", target, b"1.1", [(b"host", b"example.org")])
    scope = http_scope(received, PEER, root_path="", state=None)
    raw_path = scope["raw_path"]
    assert raw_path is not None
    return scope["path"], raw_path, scope["query_string"]


async def test_a_request_is_told_whole() -> None:
    scope = await scope_of(b"/caf%C3%A9?a=b%20c", headers=b"X-One: 1\r\n")
    assert scope == {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.5"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/café",
        "raw_path": b"/caf%C3%A9",
        "query_string": b"a=b%20c",
        "root_path": "",
        "headers": [(b"host", b"example.org"), (b"x-one", b"1")],
        "client": ("192.0.2.1", 4000),
        "server": ("192.0.2.2", 80),
        "extensions": {},
    }


async def test_a_websocket_handshake_is_told_whole() -> None:
    scope = await scope_of(b"/chat?room=1", headers=HANDSHAKE + b"Sec-WebSocket-Protocol: b, a\r\n")
    assert scope == {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.5"},
        "http_version": "1.1",
        "scheme": "ws",
        "path": "/chat",
        "raw_path": b"/chat",
        "query_string": b"room=1",
        "root_path": "",
        "headers": [
            (b"host", b"example.org"),
            (b"upgrade", b"websocket"),
            (b"connection", b"Upgrade"),
            (b"sec-websocket-version", b"13"),
            (b"sec-websocket-key", b"MDEyMzQ1Njc4OWFiY2RlZg=="),
            (b"sec-websocket-protocol", b"b, a"),
        ],
        "client": ("192.0.2.1", 4000),
        "server": ("192.0.2.2", 80),
        "subprotocols": ["b", "a"],
        "extensions": {"websocket.http.response": {}},
    }


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/", "/"),
        (b"/a%20b", "/a b"),
        (b"/%E2%82%AC", "/€"),
        (b"/a%2Fb", "/a/b"),
        (b"/a%2fb/", "/a/b/"),
        (b"/a+b", "/a+b"),
        (b"/100%", "/100%"),
        (b"/%zz", "/%zz"),
        (b"/%2525", "/%25"),
        (b"/%FF", "/\ufffd"),
        (b"//a/../b", "//a/../b"),
        (b"/a;b=c", "/a;b=c"),
    ],
)
def test_path_is_decoded_once_and_raw_path_is_as_sent(target: bytes, path: str) -> None:
    assert path_of(target) == (path, target, b"")


@pytest.mark.parametrize(
    ("target", "query_string"),
    [
        (b"/p?a=1&b=%26", b"a=1&b=%26"),
        (b"/p?", b""),
        (b"/p?a?b/c", b"a?b/c"),
        (b"/p?http://x/?y", b"http://x/?y"),
    ],
)
def test_the_query_is_as_sent(target: bytes, query_string: bytes) -> None:
    assert path_of(target) == ("/p", b"/p", query_string)


async def test_a_target_in_absolute_form_is_told_as_path_query_and_host() -> None:
    scope = await scope_of(b"http://example.com:8080/a?b=c", headers=b"X: y\r\n")
    assert (scope["path"], scope["raw_path"], scope["query_string"]) == ("/a", b"/a", b"b=c")
    assert scope["headers"][:2] == [(b"host", b"example.com:8080"), (b"x", b"y")]


VISIBLE = st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="#")


@given(st.text(VISIBLE).map(lambda rest: b"/" + rest.encode("ascii")))
@example(b"/http://a/b")
@example(b"/*?*")
def test_of_any_target_raw_path_and_query_are_the_bytes_sent(target: bytes) -> None:
    path, raw_path, query_string = path_of(target)
    assert type(path) is str
    assert raw_path == target.partition(b"?")[0]
    assert target in (raw_path + b"?" + query_string, raw_path)


async def test_the_asterisk_of_options_is_told_as_it_is() -> None:
    scope = await scope_of(b"*", method=b"OPTIONS", root_path="/api")
    assert (scope["path"], scope["raw_path"], scope["root_path"]) == ("*", b"*", "/api")


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/users", "/api/users"),
        (b"/", "/api/"),
        (b"/api", "/api"),
        (b"/api/users", "/api/users"),
        (b"/apiary", "/api/apiary"),
        (b"/%61pi/users", "/api/users"),
    ],
)
@pytest.mark.parametrize("headers", [b"", HANDSHAKE])
async def test_path_begins_with_root_path_whether_a_proxy_stripped_it_or_not(
    target: bytes, path: str, headers: bytes
) -> None:
    scope = await scope_of(target, headers=headers, root_path="/api")
    assert (scope["root_path"], scope["path"], scope["raw_path"]) == ("/api", path, target)


@pytest.mark.parametrize(("sent", "told"), [(b"1.0", "1.0"), (b"1.1", "1.1"), (b"1.2", "1.1")])
async def test_the_http_version_is_one_of_those_that_the_asgi_text_knows(sent: bytes, told: str) -> None:
    assert (await scope_of(version=sent))["http_version"] == told


async def test_the_method_is_upper_case() -> None:
    assert (await scope_of(method=b"pAtCh"))["method"] == "PATCH"


@pytest.mark.parametrize("handshake", [b"", HANDSHAKE])
async def test_headers_keep_order_and_duplicates_with_names_in_lower_case(handshake: bytes) -> None:
    scope = await scope_of(headers=b"X-B: 2\r\nCookie: a\r\nX-A: \xff\r\nCOOKIE: B\r\nX-B:1\r\n" + handshake)
    sent = [(name, value) for name, value in scope["headers"] if name in (b"x-a", b"x-b", b"cookie")]
    assert sent == [
        (b"x-b", b"2"),
        (b"cookie", b"a"),
        (b"x-a", b"\xff"),
        (b"cookie", b"B"),
        (b"x-b", b"1"),
    ]
    assert {type(part) for field in scope["headers"] for part in field} == {bytes}


async def test_subprotocols_are_those_of_all_header_lines_in_order() -> None:
    lines = b"Sec-WebSocket-Protocol: v2.chat,v1.chat\r\nsec-websocket-protocol:  other\r\n"
    assert (await scope_of(headers=HANDSHAKE + lines))["subprotocols"] == ["v2.chat", "v1.chat", "other"]


@pytest.mark.parametrize("headers", [b"", HANDSHAKE])
@pytest.mark.parametrize(
    "peer",
    [
        Peer(("192.0.2.1", 4000), ("192.0.2.2", 8000)),
        Peer(("2001:db8::1", 4000), ("2001:db8::2", 8000)),
        Peer(None, ("/run/chat.sock", None)),
        Peer(None, None),
    ],
)
async def test_both_ends_are_told_of_tcp_and_of_unix_sockets(peer: Peer, headers: bytes) -> None:
    scope = await scope_of(headers=headers, peer=peer)
    assert (scope["client"], scope["server"]) == (peer.client, peer.server)


@pytest.mark.parametrize("headers", [b"", HANDSHAKE])
async def test_each_scope_has_a_shallow_copy_of_the_lifespans_state(headers: bytes) -> None:
    pool: list[str] = []
    state = {"pool": pool}
    first, second = await scopes_of(request(), request(headers=headers), state=state)
    assert first["state"] == second["state"] == {"pool": pool}
    assert first["state"]["pool"] is second["state"]["pool"] is pool
    first["state"]["mine"] = 1
    assert "mine" not in state
    assert "mine" not in second["state"]


async def test_without_a_lifespan_there_is_no_state() -> None:
    assert "state" not in await scope_of(state=None)
    assert (await scope_of(state={}))["state"] == {}


async def test_what_an_application_does_to_its_scope_is_not_seen_by_others() -> None:
    first, second = await scopes_of(request(), request())
    untouched = second.copy()
    first["asgi"]["version"] = "2.0"
    first["extensions"]["mine"] = {}
    first["headers"].clear()
    assert second == untouched
    assert second["asgi"]["version"] == "3.0"


def tls_peer() -> Peer:
    """Return what is known of a client that came with TLS."""
    server = End.of_server(SERVER_CONTEXT)
    shake_hands(End.of_client(client_context()), server)
    return PEER._replace(tls=(AgreedTLS.of(server.ssl_object), ServerTLS.of(SERVER_CONTEXT)))


@pytest.mark.parametrize(
    ("headers", "scheme", "extensions"),
    [(b"", "https", {"tls"}), (HANDSHAKE, "wss", {"tls", "websocket.http.response"})],
)
async def test_over_tls_the_scheme_says_so_and_the_tls_extension_is_there(
    headers: bytes, scheme: str, extensions: set[str]
) -> None:
    peer = tls_peer()
    scope = await scope_of(headers=headers, peer=peer)
    assert scope["scheme"] == scheme
    assert scope["extensions"].keys() == extensions
    assert peer.tls is not None
    assert scope["extensions"]["tls"] == tls_extension(*peer.tls)
