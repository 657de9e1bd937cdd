"""The command line: thin commands over cordwood.server, cordwood.engine and any S3 endpoint.

Must not know: anything that a server or an engine could do for it.
Invariants: importable only as cordwood.cli; imports of commands are lazy, so that `cordwood --version` is quick.
"""

if __name__ != "cordwood.cli":
    raise ImportError("this package is cordwood.cli; the bare name 'cli' is not importable")
