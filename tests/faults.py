"""Faults in our own code: any function of the package, made to raise when it is called for one connection."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections import Counter
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple

import trio

import trio_ws_server
from trio_ws_server.listeners import BoundListener

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    import pytest

_connection: ContextVar[int | None] = ContextVar("_connection", default=None)
"""The number, from 1, of the connection that the running task belongs to, inherited of the task that accepts."""


class Place(NamedTuple):
    """A function or method of ours: what is where, under what name."""

    owner: Any
    name: str

    def __str__(self) -> str:
        owner: str = self.owner.__qualname__ if inspect.isclass(self.owner) else self.owner.__name__
        return f"{owner.removeprefix('trio_ws_server.')}.{self.name}"


class Faults:
    """
    Sees every call of our functions for one connection, the victim, and makes one of them fail.

    That is a matter of who calls: a method belongs to the connection that its object was made for, any other
    function to the one whose task it runs in.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, victim: int) -> None:
        """Watch all functions of the package from now on. The victim is the connection accepted so many-th."""
        self._victim = victim
        self.reset()
        self._install(monkeypatch)

    def reset(self, place: Place | None = None, failure: Exception | None = None, *, times: int = 0) -> None:
        """Begin anew, at the first connection, with a function that raises so many times before it works again."""
        self.called: Counter[Place] = Counter()
        """What was called for the victim, and how often."""
        self.raised = 0
        self._place = place
        self._failure = failure
        self._times = times
        self._accepted = 0
        self._accepting: trio.lowlevel.Task | None = None
        self._owners: dict[int, tuple[Any, int | None]] = {}

    def _install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        accept = BoundListener.accept

        async def numbered(listener: BoundListener) -> trio.SocketStream:
            stream = await accept(listener)
            self._accepted += 1
            self._accepting = trio.lowlevel.current_task()
            _connection.set(self._accepted)
            return stream

        monkeypatch.setattr(BoundListener, "accept", numbered)
        for place in places():
            member = vars(place.owner)[place.name]
            if isinstance(member, property):
                monkeypatch.setattr(place.owner, place.name, property(self._watched(member.fget, place)))
            elif isinstance(member, classmethod | staticmethod):
                bound = type(member)(self._watched(member.__func__, place))
                monkeypatch.setattr(place.owner, place.name, bound)
            elif inspect.isclass(place.owner):
                monkeypatch.setattr(place.owner, place.name, self._watched(member, place))
            else:
                watched = self._watched(member, place)
                for module in _modules():
                    for name in [name for name, value in vars(module).items() if value is member]:
                        monkeypatch.setattr(module, name, watched)

    def _watched(self, function: Any, place: Place) -> Callable[..., Any]:
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def watched(*args: Any, **kwargs: Any) -> Any:
                self._call(place, args, kwargs)
                return await function(*args, **kwargs)

        else:

            @functools.wraps(function)
            def watched(*args: Any, **kwargs: Any) -> Any:
                self._call(place, args, kwargs)
                return function(*args, **kwargs)

        return watched

    def _call(self, place: Place, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        connection = _connection.get()
        if inspect.isclass(place.owner) and args:
            if place.name == "__init__":
                # A task that serves all connections makes it of what is this one's.
                made_of = [*args[1:], *kwargs.values()]
                owned = (self._owners[id(arg)][1] for arg in made_of if id(arg) in self._owners)
                self._owners[id(args[0])] = (args[0], connection or next(owned, None))
            _, connection = self._owners.get(id(args[0]), (None, connection))
        if connection != self._victim or _current_task() is self._accepting:
            return
        self.called[place] += 1
        if place == self._place and self.raised < self._times:
            assert self._failure is not None
            self.raised += 1
            raise self._failure


def _current_task() -> trio.lowlevel.Task | None:
    """Return the running task, None where it is an instrument that runs."""
    try:
        return trio.lowlevel.current_task()
    except RuntimeError:
        return None


@functools.cache
def _modules() -> list[ModuleType]:
    names = [module.name for module in pkgutil.walk_packages(trio_ws_server.__path__, "trio_ws_server.")]
    return [trio_ws_server, *(importlib.import_module(name) for name in names if "__main__" not in name)]


@functools.cache
def places() -> list[Place]:
    """Return every function and method that the package defines, but those of abstract classes."""
    return [place for module in _modules() for place in _places_in(module)]


def _places_in(module: ModuleType) -> Iterator[Place]:
    for name, value in vars(module).items():
        if getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(value):
            yield Place(module, name)
        elif inspect.isclass(value) and not inspect.isabstract(value):
            yield from (
                Place(value, attribute) for attribute, member in vars(value).items() if _is_written(member)
            )


def _is_written(member: object) -> bool:
    """Whether it is a function in our source, not one that a decorator or the class's maker has generated."""
    if isinstance(member, property):
        member = member.fget
    elif isinstance(member, classmethod | staticmethod):
        member = member.__func__
    return inspect.isfunction(member) and "trio_ws_server" in member.__code__.co_filename
