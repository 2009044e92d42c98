"""The least that a Python server can do: a ROUTER that answers every request with the same result.

`python echo.py SOCKET < RESULT` reads the result to give as JSON, prints a line when it listens, and serves until
it is killed.
"""

import sys

import msgspec
import zmq

result = msgspec.Raw(sys.stdin.buffer.read())
socket = zmq.Context().socket(zmq.ROUTER)
socket.linger = 0
socket.bind(f"ipc://{sys.argv[1]}")
sys.stdout.write("ready\n")
sys.stdout.flush()
while True:
    *envelope, body = socket.recv_multipart()
    request = msgspec.json.decode(body)
    answer = {"jsonrpc": "2.0", "id": request["id"], "result": result}
    socket.send_multipart([*envelope, msgspec.json.encode(answer)])
