"""Many awscli commands in one process: `python -m tests.e2e.aws_shell`, one JSON list of arguments a line.

awscli needs a second to start and a tenth of one to run, so a test that types a hundred commands keeps it running. Each
answer is one line: a JSON object with the exit code, standard output and standard error.
Must not know: any server. Invariant: a command sees nothing of the one before, for each gets a driver of its own.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys

from awscli.clidriver import create_clidriver


def run(arguments: list[str]) -> dict[str, object]:
    raw, said = io.BytesIO(), io.StringIO()
    out = io.TextIOWrapper(raw, "utf-8", write_through=True)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
        try:
            code = create_clidriver().main(arguments)
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
