"""`buildctl mcp`: the daemon as tools for AI clients, by the Model Context Protocol over standard input and output.

An adapter over the same socket as every other verb. A tool is a coroutine that takes a struct and returns one
(`tool.py`); the schemas that a client sees are made from these structs. `tools.py` has them all. `server.py` is the one
door to the SDK, and it is imported when the verb runs.

Invariants: nothing but the protocol goes to standard output; a tool answers at once unless it is told to wait, and
never waits longer than it is told; every failure is an answer that says which tool to call next; what a tool has
started goes on whatever becomes of the call.
"""
