"""Many awscli commands in one process: `python -m tests.e2e.aws_shell`, one JSON list of arguments a line.

awscli needs a second to start and a fifth of one to set itself up, so a test that types a hundred commands keeps it
running. Each answer is one line: a JSON object with the exit code, standard output and standard error.
Must not know: any server. Invariant: a command sees nothing of the one before: a driver that would remember something
serves one command alone.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys

from awscli.clidriver import create_clidriver

# Options and commands that leave something behind in their driver.
_STICKY = {"s3", "get-object", "--no-sign-request", "--region", "--profile", "--endpoint-url"}
_shared = create_clidriver()


def run(arguments: list[str]) -> dict[str, object]:
    driver = _shared if _STICKY.isdisjoint(arguments) else create_clidriver()
    raw, said = io.BytesIO(), io.StringIO()
    out = io.TextIOWrapper(raw, "utf-8", write_through=True)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
        try:
            code = driver.main(arguments)
        except SystemExit as end:
            code = end.code
    return {"code": code, "out": raw.getvalue().decode("utf-8", "replace"), "err": said.getvalue()}


def main() -> None:
    answers = sys.stdout
    for line in sys.stdin:
        answers.write(json.dumps(run(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
