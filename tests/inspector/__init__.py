"""The official MCP inspector's command line lists and calls every tool of `buildctl mcp`; see `__main__.py`."""
