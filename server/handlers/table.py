"""Prints the tables of docs/protocol.md from the code: `python -m cordwood.server.handlers.table`.

Must not know: what any operation does.
Invariant: every operation of the model has exactly one row, and its state is read from the registry, not written here.
"""

from __future__ import annotations

import sys
from typing import Final

from cordwood.server.handlers import HANDLERS
from cordwood.server.handlers.reasons import NOT_IMPLEMENTED, STORED_ONLY
from cordwood.server.wire.operations import MODEL_VERSION
from cordwood.server.wire.route import OPERATION, Operation

# What the modules do that do less than the operation; all others implement it.
_STATES: Final = {"unset": "nothing configured", "stored": "stored only", "configurations": "stored only"}


def states() -> dict[str, str]:
    """operation -> its state, for all of the model."""
    return {name: _state(operation) for name, operation in OPERATION.items()}


def operations() -> str:
    lines = ["| Operation | Request | State |", "|---|---|---|"]
    for name in sorted(OPERATION):
        lines.append(f"| {name} | `{_request_line(OPERATION[name])}` | {_with_reason(OPERATION[name])} |")
    counts: dict[str, int] = {}
    for operation in OPERATION.values():
        state = _state(operation)
        counts[state] = counts.get(state, 0) + 1
    summary = ", ".join(
        f"{count} {state}" for state, count in sorted(counts.items(), key=lambda item: -item[1])
    )
    return "\n".join(
        (*lines, "", f"{len(OPERATION)} operations of botocore {MODEL_VERSION}'s model: {summary}.")
    )


def refused_headers() -> str:
    refusing: dict[str, list[str]] = {}
    for name, entry in sorted(HANDLERS.items()):
        for member in entry.refused:
            refusing.setdefault(entry.operation.inputs[member][2], []).append(name)
    lines = ["| Header or parameter | Operations |", "|---|---|"]
    lines += [f"| `{wire_name}` | {', '.join(names)} |" for wire_name, names in sorted(refusing.items())]
    return "\n".join(lines)


def _state(operation: Operation) -> str:
    if not operation.routed:
        return "replaced by a newer operation"
    entry = HANDLERS.get(operation.name)
    if entry is None:
        return "NotImplemented"
    module = entry.handler.__module__.rpartition(".")[2]
    return _STATES.get(module, "implemented")


def _with_reason(operation: Operation) -> str:
    state = _state(operation)
    reason = {"NotImplemented": NOT_IMPLEMENTED, "stored only": STORED_ONLY}.get(state, {}).get(
        operation.name
    )
    return f"{state}: {reason}" if reason is not None else state


def _request_line(operation: Operation) -> str:
    path = {"service": "/", "bucket": "/BUCKET", "object": "/BUCKET/KEY"}.get(
        operation.depth, operation.depth
    )
    query = [f"{key}={value}" if value else key for key, value in operation.literals]
    query += [f"{key}=…" for key in operation.required_query]
    headers = "".join(f" +{header}" for header in operation.required_headers)
    return f"{operation.method} {path}{'?' if query else ''}{'&'.join(query)}{headers}"


if __name__ == "__main__":
    sys.stdout.write(f"{operations()}\n\n{refused_headers()}\n")
