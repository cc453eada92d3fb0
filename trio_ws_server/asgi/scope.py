"""Connection scopes (ASGI HTTP and WebSocket specification 2.5)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote

from trio_ws_server.asgi.tls import tls_extension

if TYPE_CHECKING:
    from asgiref.typing import ASGIVersions, HTTPScope, WebSocketScope

    from trio_ws_server.headers import RequestHead
    from trio_ws_server.peer import Peer

VERSIONS: ASGIVersions = {"version": "3.0", "spec_version": "2.5"}


def http_scope(
    request: RequestHead, peer: Peer, *, root_path: str, state: dict[str, Any] | None
) -> HTTPScope:
    """Return the scope of an HTTP request; ``state`` is the lifespan's, None where there is none."""
    scope = _common(request, peer, "http", root_path, state) | {
        "type": "http",
        "method": request.method.decode("ascii").upper(),
        "extensions": _extensions(peer),
    }
    return cast("HTTPScope", scope)


def websocket_scope(
    request: RequestHead,
    peer: Peer,
    subprotocols: list[str],
    *,
    root_path: str,
    state: dict[str, Any] | None,
) -> WebSocketScope:
    """Return the scope of a WebSocket connection; ``state`` as in `http_scope`."""
    scope = _common(request, peer, "ws", root_path, state) | {
        "type": "websocket",
        "subprotocols": list(subprotocols),
        "extensions": {"websocket.http.response": {}, **_extensions(peer)},
    }
    return cast("WebSocketScope", scope)


def _common(
    request: RequestHead, peer: Peer, scheme: str, root_path: str, state: dict[str, Any] | None
) -> dict[str, Any]:
    raw_path, _, query_string = request.target.partition(b"?")
    common: dict[str, Any] = {
        "asgi": dict(VERSIONS),
        # RFC 9110 section 2.5: what calls itself HTTP/1.2 is to be taken as the HTTP/1.1 that is known.
        "http_version": "1.0" if request.http_version == b"1.0" else "1.1",
        "scheme": scheme + "s" * (peer.tls is not None),
        "path": _under(root_path, unquote(raw_path.decode("ascii"))),
        "raw_path": raw_path,
        "query_string": query_string,
        "root_path": root_path,
        "headers": list(request.headers),
        "client": peer.client,
        "server": peer.server,
    }
    if state is not None:
        common["state"] = state.copy()
    return common


def _under(root_path: str, path: str) -> str:
    """
    Return the path as applications want it, with ``root_path`` in front.

    The specification derives WSGI's ``PATH_INFO`` by stripping ``root_path`` from ``path``, so ``path`` holds
    it. Whether the request's target does depends on the proxy in front: some strip the prefix, some don't.
    The ``*`` of OPTIONS is no path.
    """
    if path in (root_path, "*") or path.startswith(f"{root_path}/"):
        return path
    return root_path + path


def _extensions(peer: Peer) -> dict[str, dict[object, object]]:
    return {} if peer.tls is None else {"tls": tls_extension(*peer.tls)}
