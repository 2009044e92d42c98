"""The least that a Python client of the daemon can do: one daemon.status. `python roundtrip.py SOCKET`."""

import sys

import msgspec
import zmq

socket = zmq.Context().socket(zmq.DEALER)
socket.linger = 0
socket.connect(f"ipc://{sys.argv[1]}")
socket.send_multipart([b"", msgspec.json.encode({"jsonrpc": "2.0", "id": 1, "method": "daemon.status", "params": {}})])
answer = msgspec.json.decode(socket.recv_multipart()[-1])
sys.stdout.write(f"{answer['result']['state']}\n")
