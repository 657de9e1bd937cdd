"""The sans-io part of the server: bytes and values only, no trio, no await on sockets, no engine."""
