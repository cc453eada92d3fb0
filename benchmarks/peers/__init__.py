"""The servers with an API of their own, each as `python -m benchmarks.peers.NAME APP PORT COMPRESSION`."""
