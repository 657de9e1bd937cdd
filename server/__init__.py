"""The S3 server: wire protocol, handlers and processes over cordwood.engine.

Must not know: the on-disk format, LMDB, anything of cordwood.cli.
Invariant: importable only as cordwood.server, so that no module is ever loaded twice under two names.
"""

if __name__ != "cordwood.server":
    raise ImportError("this package is cordwood.server; the bare name 'server' is not importable")
