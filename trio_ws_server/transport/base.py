"""The two sides of a transport: what a connection calls, and what it is called with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol


class Receiver(Protocol):
    """
    What a transport tells a connection. Called from the transport's own tasks: must not block or raise.

    After `eof_received` or `connection_lost` comes no more data; after `connection_lost` comes nothing.
    """

    def data_received(self, data: bytes) -> None:
        """Take bytes from the peer."""

    def eof_received(self) -> None:
        """Take note that the peer ended its side; ours can still be written to."""

    def writable_again(self) -> None:
        """Take note that the write buffer, having been above its high-water mark, fell to its low-water mark."""

    def connection_lost(self) -> None:
        """Take note that the connection is gone in both directions."""


class Transport(ABC):
    """
    Bytes to and from one peer.

    `write` never waits and takes all it is given; who writes much calls `drain`, which waits while the buffer is
    too full. So cancelling a sender can never cut what it has written.
    """

    receiver: Receiver
    """Who is told of what arrives; a connection sets itself here, and hands over by setting another."""

    @property
    @abstractmethod
    def lost(self) -> bool:
        """Whether the connection is gone: nothing written now has an effect."""

    @property
    @abstractmethod
    def congested(self) -> bool:
        """Whether the write buffer went above its high-water mark and has not yet come down to its low one."""

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Send ``data``, or keep it until the network takes it; without effect once the connection is lost."""

    @abstractmethod
    async def drain(self) -> None:
        """
        Wait while the transport is `congested`; return at once, without a checkpoint, where it is not.

        Returns as well when the connection is lost. Cancelling it leaves what was written to be sent.
        """

    @abstractmethod
    async def flush(self, patience: float) -> bool:
        """
        Wait until the network has taken all that has been written by now; return whether it has.

        It has not if the connection is lost, or if nothing was taken for ``patience`` seconds. Cancelling it leaves
        what was written to be sent.
        """

    @abstractmethod
    def pause_reading(self) -> None:
        """Take no more bytes from the network. A piece that is on its way in may still arrive."""

    @abstractmethod
    def resume_reading(self) -> None:
        """Go on after `pause_reading`."""

    @abstractmethod
    async def shutdown(self, linger: float) -> None:
        """
        Send what is buffered, end our side, drop what still arrives until the peer ends its side, and close.

        Closing a socket that holds unread data resets the connection, and the reset can destroy our last bytes
        before the peer has read them (RFC 9112 section 9.6); so the peer's end is waited for, at most ``linger``
        seconds. Cancelling it closes the connection at once.
        """

    @abstractmethod
    def abort(self) -> None:
        """Drop the connection now, with whatever is in its buffers."""
