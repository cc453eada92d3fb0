"""
A chat on FastAPI: a page at ``/`` and a WebSocket at ``/ws/{room}?name=...``.

Run it from the repository with ``trio-ws-server examples.chat:app``, and open http://127.0.0.1:8000 twice.

A member sends plain text, and is sent JSON: who joined, left or said what, and with a join or a leave, the
names of all who are there. Nobody waits for anybody: a member who cannot keep up with the room is put out
of it, and the page that is served here comes back by itself.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import trio
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from fastapi.responses import HTMLResponse

LONGEST_NAME = 32  # characters
LONGEST_TEXT = 2000
OUTBOX_SIZE = 64  # messages that may wait for one member
PAUSE = 0.02  # seconds after each message: slows down who floods the room, not who listens

PAGE = Path(__file__).with_name("chat.html").read_text(encoding="utf-8")

app = FastAPI(openapi_url=None)


@dataclass(eq=False)
class Member:
    """One connection, as the others in its room see it: a name, and an outbox that never makes them wait."""

    name: str
    outbox: trio.MemorySendChannel[str]
    stay: trio.CancelScope

    def tell(self, text: str) -> None:
        """Put `text` into the outbox. A member whose outbox is full has to leave."""
        try:
            self.outbox.send_nowait(text)
        except trio.WouldBlock:
            self.stay.cancel()


rooms: dict[str, set[Member]] = {}


def tell_all(room: str, **event: str) -> None:
    """Send `event` to everyone in `room`, in the same order to each. Never waits."""
    members = rooms.get(room, set())
    people = [] if event["kind"] == "said" else sorted(member.name for member in members)
    text = json.dumps({**event, "people": people})
    for member in members:
        member.tell(text)


async def hear(websocket: WebSocket, room: str, member: Member) -> None:
    """Pass on what this member says, until it disconnects."""
    try:
        while True:
            text = await websocket.receive_text()
            tell_all(room, kind="said", name=member.name, text=text[:LONGEST_TEXT])
            await trio.sleep(PAUSE)
    except WebSocketDisconnect:
        member.stay.cancel()


async def deliver(websocket: WebSocket, member: Member, outbox: trio.MemoryReceiveChannel[str]) -> None:
    """Send this member what its outbox holds, at the pace at which it takes it."""
    try:
        async for text in outbox:
            await websocket.send_text(text)
    except WebSocketDisconnect:
        member.stay.cancel()


@app.get("/")
async def page() -> HTMLResponse:
    return HTMLResponse(PAGE)


@app.websocket("/ws/{room}")
async def chat(websocket: WebSocket, room: str, name: str = "") -> None:
    name = name.strip()[:LONGEST_NAME] or "Somebody"
    await websocket.accept()
    sender, receiver = trio.open_memory_channel[str](OUTBOX_SIZE)
    async with trio.open_nursery() as nursery:
        member = Member(name, sender, nursery.cancel_scope)
        rooms.setdefault(room, set()).add(member)
        tell_all(room, kind="joined", name=name)
        nursery.start_soon(deliver, websocket, member, receiver)
        try:
            await hear(websocket, room, member)
        finally:
            rooms[room].remove(member)
            if not rooms[room]:
                del rooms[room]
            tell_all(room, kind="left", name=name)
