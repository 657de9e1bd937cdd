"""What encryption costs, in processor time: `python -m tests.bench.encryption`.

Processor time and not the clock, so that a busy machine says the same. Must not know: the server's requests.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from cordwood.engine import Store
from cordwood.server.encryption import ENVELOPE, Keys, Wish, envelope_of
from cordwood.server.keyring import KeyFile

LARGE_BYTES = 64 << 20


def cpu_us(call: Callable[[], object], times: int) -> float:
    began_s = time.process_time()
    for _ in range(times):
        call()
    return (time.process_time() - began_s) / times * 1e6


def keys_and_chunks(keys: Keys) -> None:
    wish = Wish("AES256")
    key = keys.make(wish, 1)
    attrs = {ENVELOPE: key.finished(5)}

    def opened() -> None:
        envelope = envelope_of(attrs)
        assert envelope is not None
        keys.open(envelope, 1).check_outline(5, ())

    print("| what | µs |\n|---|---|")
    print(f"| a data key made and wrapped | {cpu_us(lambda: keys.make(wish, 1), 5000):.1f} |")
    print(f"| a data key opened, the outline checked | {cpu_us(opened, 5000):.1f} |")
    checksums = {"CRC64NVME": "AAAAAAAAAAA="}
    print(f"| a checksum encrypted | {cpu_us(lambda: key.encrypt_checksums(checksums, 5), 5000):.1f} |")
    print("\n| bytes | encrypt µs | decrypt µs |\n|---|---|---|")
    cipher, chunk_id = key.cipher, os.urandom(32)
    for size in (100, 4 << 10, 64 << 10, 1 << 20):
        data = os.urandom(size)
        encrypted = cipher.encrypt(chunk_id, 0, 0, data)
        times = 200 if size == 1 << 20 else 3000
        encrypt_us = cpu_us(partial(cipher.encrypt, chunk_id, 0, 0, data), times)
        decrypt_us = cpu_us(partial(cipher.decrypt, chunk_id, 0, 0, encrypted), times)
        print(f"| {size} | {encrypt_us:.1f} | {decrypt_us:.1f} |")


def large_objects(store: Store, keys: Keys) -> None:
    cipher = keys.make(Wish("AES256"), 1).cipher
    data = os.urandom(LARGE_BYTES)
    print("\n| 64 MiB | put ms | get ms |\n|---|---|---|")
    for name in ("plain", "encrypted"):
        is_plain = name == "plain"

        def put(name: str = name, is_plain: bool = is_plain) -> None:
            store.put("bench", name, os.urandom(1) + data, cipher=None if is_plain else cipher)

        def get(name: str = name, is_plain: bool = is_plain) -> None:
            with store.get("bench", name) as reader:
                if not is_plain:
                    reader.unlock(cipher)
                for _ in reader:
                    pass

        print(f"| {name} | {cpu_us(put, 5) / 1000:.0f} | {cpu_us(get, 5) / 1000:.0f} |")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        keys = Keys(KeyFile(Path(folder) / "keys"))
        keys.make(Wish("AES256"), 1)
        keys_and_chunks(keys)
        with Store.open(Path(folder) / "store") as store:
            store.create_bucket("bench")
            large_objects(store, keys)


if __name__ == "__main__":
    main()
