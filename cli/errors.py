"""How a command fails: one line for a person, one exit code for a script.

Must not know: commands. Invariant: importing this costs nothing.
"""

from __future__ import annotations

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


class CliError(Exception):
    """Shown as `cordwood: TEXT` on stderr, without a traceback. The text names the thing and the way out."""

    def __init__(self, message: str, exit_code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class UsageError(CliError):
    """The command line itself cannot be carried out."""

    def __init__(self, message: str) -> None:
        super().__init__(message, EXIT_USAGE)
