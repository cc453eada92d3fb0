"""The order of the house: imports point downwards only, and the protocols know neither Trio nor asgiref."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import trio_ws_server

PACKAGE = "trio_ws_server"
ROOT = Path(trio_ws_server.__file__).parent

# Top to bottom. What is on one line does not know its neighbours.
ORDER = """
    __main__
    cli
    (package)
    serving
    signals client
    server
    connection admission
    native asgi.application
    asgi.websocket
    asgi.http asgi.lifespan asgi.scope
    asgi.events asgi.tls
    application
    upgrade app_errors
    logs
    websocket http1
    inbox
    body_pace closing keepalive rate_limit
    transport
    transport.tls_socket
    transport.socket transport.stream transport.tls
    transport.base transport.kernel
    transport.engine
    transport.poller transport.timers
    peer memory traffic
    listeners tls
    scheduling
    protocol.handshake protocol.websocket
    protocol.http1 protocol.payload protocol.wsproto_frames
    protocol.deflate protocol.frames
    protocol.deflate_streams
    protocol.violation protocol.text protocol.binary protocol.allowed
    config
    checks importer
    headers errors
    close_codes
"""
LEVELS = {name: level for level, line in enumerate(ORDER.strip().splitlines()) for name in line.split()}


def modules() -> dict[str, Path]:
    """Return the files of the package by their modules' names, as `ORDER` has them."""
    names = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        names[".".join(part for part in parts if part != "__init__") or "(package)"] = path
    return names


MODULES = modules()
NAMESPACES = {"asgi", "protocol"}
"""Packages that hold nothing but a docstring."""


def imported_by(path: Path) -> set[str]:
    """
    Return the modules of ours that a module imports anywhere in it, those for type checkers alone included.

    A module that names a class from above in its annotations knows what is above it.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import(names=names):
                full = [alias.name for alias in names]
            case ast.ImportFrom(module=str(module), names=names, level=0):
                # from package import module, or from module import name
                full = [f"{module}.{alias.name}" for alias in names]
                full = [name if is_module(name) else module for name in full]
            case _:
                continue
        found.update(name.removeprefix(f"{PACKAGE}.") for name in full if name.split(".")[0] == PACKAGE)
    return {"(package)" if name == PACKAGE else name for name in found}


def is_module(name: str) -> bool:
    return name.removeprefix(f"{PACKAGE}.") in MODULES


def test_every_module_has_its_place_in_the_order() -> None:
    assert MODULES.keys() - NAMESPACES == LEVELS.keys()


@pytest.mark.parametrize("name", sorted(NAMESPACES))
def test_a_package_without_a_place_holds_nothing_but_its_docstring(name: str) -> None:
    [only] = ast.parse(MODULES[name].read_text()).body
    assert isinstance(only, ast.Expr)


@pytest.mark.parametrize("name", LEVELS)
def test_a_module_imports_only_what_is_below_it(name: str) -> None:
    not_below = {other for other in imported_by(MODULES[name]) if LEVELS[other] <= LEVELS[name]}
    assert not not_below


# A stand-in for the package, whose __init__ imports all public names and Trio with them.
IN_A_FRESH_INTERPRETER = """
import importlib, sys, types
name, root, missing, modules = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]
if missing:
    sys.modules[missing] = None
package = types.ModuleType(name)
package.__path__ = [root]
sys.modules[name] = package
for module in modules:
    importlib.import_module(f"{name}.{module}")
print(*sorted({module.partition(".")[0] for module in sys.modules}))
"""


def loaded_with(*names: str, missing: str = "") -> set[str]:
    """Return the top-level modules that a fresh interpreter has loaded once it has imported these, without one."""
    command = [sys.executable, "-I", "-W", "error", "-c", IN_A_FRESH_INTERPRETER, PACKAGE, str(ROOT), missing]
    return set(subprocess.run([*command, *names], check=True, capture_output=True, text=True).stdout.split())


PROTOCOLS = [name for name in MODULES if name.startswith("protocol.")]


def test_the_protocols_are_loaded_without_trio_and_asgiref() -> None:
    loaded = loaded_with(*PROTOCOLS)
    assert {"h11", "wsproto"} <= loaded
    assert not loaded & {"trio", "asgiref", "asyncio", "ssl"}


def test_the_protocols_ask_for_no_socket() -> None:
    # websockets has one loaded: it looks for its own version, with a standard module that can read emails.
    assert "socket" not in loaded_with(*PROTOCOLS, missing="websockets")


def test_what_is_loaded_with_a_module_is_seen() -> None:
    assert {"trio"} <= loaded_with("websocket")
    assert {"trio", "asgiref"} <= loaded_with("native")


def test_the_package_has_the_public_names_and_nothing_else() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text())
    imported = [alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert sorted(imported) == sorted(trio_ws_server.__all__) == sorted(set(trio_ws_server.__all__))
    assert all(getattr(trio_ws_server, name) is not None for name in imported)
    assert {type(node) for node in tree.body} == {ast.Expr, ast.ImportFrom, ast.Assign}
