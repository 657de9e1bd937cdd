"""The sans-io part of the server: bytes and values only.

Must not know: trio, sockets, threads, the engine; nothing here awaits.
"""
