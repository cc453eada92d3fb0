"""
What the kernel keeps of what was sent on a socket, until the peer has taken it.

The more it may keep, the fewer calls a large message takes, and the less of what the peer takes shows in what the
socket has room for: one that reads slowly would look as one that does not read at all. So where the kernel can be
asked how much it still keeps, it may keep more than Trio allows it.
"""

from __future__ import annotations

import socket
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import trio

NOT_SENT_AT_MOST = 256 * 1024
"""Bytes that it keeps without having sent them yet; Trio's streams have it take no more above 16 KiB."""

if sys.platform == "linux":
    from fcntl import ioctl
    from termios import TIOCOUTQ

    def keep_more(sock: trio.socket.SocketType) -> bool:
        """Have it keep more, if it tells how much of that is left; return whether it does."""
        if sock.family not in (socket.AF_INET, socket.AF_INET6):
            return False
        try:
            kept(sock.fileno())
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOT_SENT_AT_MOST)
        except OSError:
            # Multipath TCP in older kernels, and what only looks like Linux to a container, do not know of both.
            return False
        return True

    def kept(fd: int) -> int:
        """Return how many bytes it keeps."""
        return int.from_bytes(ioctl(fd, TIOCOUTQ, bytes(4)), sys.byteorder)

else:

    def keep_more(sock: trio.socket.SocketType) -> bool:
        """Leave it as it is: it does not tell."""
        return False

    def kept(fd: int) -> int:
        """Return how many bytes it keeps, which it does not tell."""
        raise NotImplementedError
