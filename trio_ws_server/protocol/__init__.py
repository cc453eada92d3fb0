"""The protocols without I/O: bytes in and events out, calls in and bytes out. Nothing here knows Trio."""
