"""restic, whose library (minio-go) frames its bodies without saying so in Content-Encoding.

Needs restic, which pip does not bring; without it the test is skipped and says so.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.e2e.harness import Server, assert_same_tree, client_environment, run
from tests.e2e.installed import missing

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(missing("restic")), reason=missing("restic")),
]


def test_restic_backs_up_checks_forgets_prunes_and_restores(shop: Server, tree: Path, tmp_path: Path) -> None:
    environment = client_environment(shop) | {
        "RESTIC_REPOSITORY": f"s3:{shop.endpoint}/restic/repository",
        "RESTIC_PASSWORD": "of the test",
        "RESTIC_CACHE_DIR": str(tmp_path / "cache"),
    }

    def restic(*arguments: str) -> str:
        return run(["restic", *arguments], environment)

    source = tmp_path / "source"
    shutil.copytree(tree, source)
    restic("init")
    restic("backup", str(source))
    (source / "odd/one byte").write_bytes(b"changed")
    (source / "odd/empty").unlink()
    shutil.rmtree(source / "encodings")
    restic("backup", str(source))
    first, second = json.loads(restic("snapshots", "--json"))
    restic("check", "--read-data")
    restic("restore", first["id"], "--target", str(tmp_path / "first"), "--include", "/")
    assert_same_tree(tree, tmp_path / "first" / source.relative_to("/"))

    restic("tag", "--add", "kept", "latest")
    restic("forget", "--keep-last", "1", "--prune")
    restic("check", "--read-data")
    (left,) = json.loads(restic("snapshots", "--json"))
    assert left["original"] == second["id"]
    restic("restore", "latest", "--target", str(tmp_path / "second"))
    assert_same_tree(source, tmp_path / "second" / source.relative_to("/"))
    assert json.loads(restic("list", "locks", "--json") or "[]") == []
