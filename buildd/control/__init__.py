"""The control plane: a ZeroMQ socket, JSON-RPC 2.0, and one function per method."""
