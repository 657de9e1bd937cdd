"""The storage engine: blocking, without network, usable alone inside any Python program.

Must not know: HTTP, S3, trio, anything of cordwood.server or cordwood.cli.
Invariant: importable only as cordwood.engine, so that no module is ever loaded twice under two names.
"""

if __name__ != "cordwood.engine":
    raise ImportError("this package is cordwood.engine; the bare name 'engine' is not importable")
