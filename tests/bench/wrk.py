"""Load by wrk, a generator in C that costs a request a few microseconds: `apt install wrk`.

It sends requests that were made and signed beforehand, in their order; so each may be another operation.

Must not know: S3, or what the requests mean. Not for HEAD: wrk waits for the body that an answer to HEAD never has.
"""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

_TIMEOUT_S = 60

# The clock is read at the first and at the last request, since wrk itself counts on when requests have run out.
_SCRIPT = """
local ffi = require("ffi")
ffi.cdef[[
typedef struct { long seconds; long nanoseconds; } moment;
int clock_gettime(int clock, moment *result);
]]
local function now()
    local result = ffi.new("moment[1]")
    ffi.C.clock_gettime(1, result)
    return tonumber(result[0].seconds) + tonumber(result[0].nanoseconds) / 1e9
end
local requests, count, at, once = {}, 0, 0, false
local threads = {}
function setup(thread) table.insert(threads, thread) end
function init(arguments)
    once = arguments[2] == "once"
    local file = assert(io.open(arguments[1], "rb"))
    local data = file:read("*a")
    file:close()
    local position = 1
    while position <= #data do
        local a, b, c, d = data:byte(position, position + 3)
        local length = a + b * 256 + c * 65536 + d * 16777216
        count = count + 1
        requests[count] = data:sub(position + 4, position + 3 + length)
        position = position + 4 + length
    end
    began, ended, sent = 0, 0, 0
end
function request()
    if at == 0 and sent == 0 then began = now() end
    if at == count then
        if once then
            if ended == 0 then ended = now() end
            wrk.thread:stop()
            return requests[count]
        end
        at = 0
    end
    at = at + 1
    sent = sent + 1
    return requests[at]
end
function done(summary, latency, _)
    local thread = threads[1]
    local seconds, ended_s = summary.duration / 1e6, thread:get("ended")
    local answered = summary.requests
    if ended_s > 0 then seconds = ended_s - thread:get("began") end
    local errors = summary.errors
    io.write(string.format(
        '{"answered": %d, "seconds": %.6f, "p50_ms": %.4f, "p99_ms": %.4f, "failed": %d, "broken": %d}',
        answered, seconds, latency:percentile(50) / 1000, latency:percentile(99) / 1000, errors.status,
        errors.connect + errors.read + errors.write + errors.timeout))
end
"""


class Figure(NamedTuple):
    """`failed`: answers that were no success, or none at all."""

    ops_per_s: float
    p50_ms: float
    p99_ms: float
    failed: int


def is_there() -> bool:
    return shutil.which("wrk") is not None


def run(port: int, requests: Sequence[bytes], *, connections: int, seconds: float, once: bool) -> Figure:
    """Sends the requests over and over for `seconds`, or, with `once`, each once and no longer than that."""
    with tempfile.TemporaryDirectory(prefix="cordwood-wrk-") as directory:
        script = Path(directory, "load.lua")
        script.write_text(_SCRIPT)
        prepared = Path(directory, "requests")
        with open(prepared, "wb") as file:
            for request in requests:
                file.write(struct.pack("<I", len(request)) + request)
        command = [
            "wrk",
            "-t1",
            f"-c{connections}",
            f"-d{max(1, round(seconds))}s",
            f"--timeout={_TIMEOUT_S}s",
        ]
        command += ["-s", str(script), f"http://127.0.0.1:{port}/", "--", str(prepared)]
        if once:
            command.append("once")
        found = subprocess.run(command, check=True, capture_output=True, text=True)
    figures = json.loads(found.stdout[found.stdout.rindex("{") :])
    failed = figures["failed"] + figures["broken"]
    return Figure(figures["answered"] / figures["seconds"], figures["p50_ms"], figures["p99_ms"], failed)
