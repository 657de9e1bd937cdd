"""Attributes of a version change without a new version, survive everything, and carry object lock."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cordwood.engine import CompactionPolicy, Maintenance, Store, compact, errors, rebuild
from tests.engine.support import small

HOUR_MS = 3_600_000
FAR_MS = 4_000_000_000_000


def retention(mode: str, until_ms: int = FAR_MS) -> dict[str, object]:
    return {"retention": {"mode": mode, "until_ms": until_ms}}


@pytest.mark.parametrize("size", [10, 5000])
def test_a_change_keeps_version_time_etag_and_bytes(store: Store, size: int) -> None:
    store.create_bucket("bark", versioning="Enabled")
    before = store.put("bark", "k", b"x" * size, attrs={"acl": "private"})
    after = store.update_attrs("bark", "k", {"tags": {"a": "1"}})
    assert after.attrs == {"acl": "private", "tags": {"a": "1"}}
    seen = store.head("bark", "k")
    assert (seen.version_id, seen.modified_ms, seen.etag) == (
        before.version_id,
        before.modified_ms,
        before.etag,
    )
    assert seen.attrs == after.attrs
    store.update_attrs("bark", "k", {"tags": None})
    with store.get("bark", "k") as reader:
        assert reader.info.attrs == {"acl": "private"} and reader.read() == b"x" * size
    assert len(store.list_versions("bark").entries) == 1


def test_each_version_has_attributes_of_its_own(store: Store) -> None:
    store.create_bucket("bark", versioning="Enabled")
    first = store.put("bark", "a/k", b"1")
    second = store.put("bark", "a/k", b"2")
    store.update_attrs("bark", "a/k", {"n": 1}, version_id=first.version_id)
    assert store.head("bark", "a/k").attrs == {}
    assert store.head("bark", "a/k", version_id=first.version_id).attrs == {"n": 1}
    store.rename("bark", "a/", "z/")
    assert store.head("bark", "z/k", version_id=first.version_id).attrs == {"n": 1}
    store.delete("bark", "z/k", version_id=second.version_id)
    assert store.head("bark", "z/k").attrs == {"n": 1}
    copy = store.copy("bark", "z/k", "bark", "copy")
    assert copy.attrs == {"n": 1}


def test_what_is_not_there_cannot_be_changed(store: Store) -> None:
    store.create_bucket("bark", versioning="Enabled")
    with pytest.raises(errors.KeyNotFound):
        store.update_attrs("bark", "k", {"n": 1})
    store.put("bark", "k", b"1")
    with pytest.raises(errors.VersionNotFound):
        store.update_attrs("bark", "k", {"n": 1}, version_id="f" * 16)
    marker = store.delete("bark", "k").version_id
    for version_id in (None, marker):
        with pytest.raises(errors.DeleteMarkerFound):
            store.update_attrs("bark", "k", {"n": 1}, version_id=version_id)


def test_changes_survive_reopening_rebuild_and_compaction(path: Path) -> None:
    with small(path) as store:
        store.create_bucket("bark", versioning="Enabled")
        for number in range(40):
            info = store.put("bark", f"d/{number}", b"x" * (10 if number % 2 else 9000))
            for turn in range(3):
                store.update_attrs("bark", f"d/{number}", {"turn": turn, "number": number})
            if number % 3 == 0:
                store.delete("bark", f"d/{number}", version_id=info.version_id)
        store.update_bucket("bark", attrs={"object_lock": {}})
        store.put("bark", "locked", b"1", attrs={"hold": True})
        dump = store.logical_dump()
    rebuild(path)
    with small(path) as store:
        assert store.logical_dump() == dump
    compact(path, CompactionPolicy(full=True, grace_s=0, volume_size=1 << 17))
    with small(path) as store:
        for number in range(40):
            if number % 3:
                assert store.head("bark", f"d/{number}").attrs == {"turn": 2, "number": number}
        after = store.logical_dump()
    rebuild(path)
    with small(path) as store:
        assert store.logical_dump() == after


def test_a_change_of_an_object_of_the_same_batch_or_another_writer_is_not_lost(store: Store) -> None:
    from concurrent.futures import ThreadPoolExecutor

    store.create_bucket("bark")
    store.put("bark", "k", b"1")

    def change(number: int) -> None:
        while True:
            try:
                store.update_attrs("bark", "k", {f"n{number}": number})
                return
            except errors.Conflict:
                continue

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(change, range(40)))
    assert store.head("bark", "k").attrs == {f"n{number}": number for number in range(40)}


# --- object lock --------------------------------------------------------------------------------------------------


def locked_bucket(store: Store, **default: object) -> None:
    store.create_bucket("bark", versioning="Enabled", attrs={"object_lock": default})


def test_a_locked_version_stays_and_a_plain_delete_puts_a_marker(store: Store) -> None:
    locked_bucket(store)
    info = store.put("bark", "k", b"1", attrs=retention("COMPLIANCE"))
    with pytest.raises(errors.Locked):
        store.delete("bark", "k", version_id=info.version_id, bypass_governance=True)
    marker = store.delete("bark", "k")
    assert marker.is_delete_marker
    [result] = store.delete_many("bark", [("k", info.version_id, None)], bypass_governance=True)
    assert isinstance(result, errors.Locked)
    store.delete("bark", "k", version_id=marker.version_id)
    assert store.get("bark", "k").read() == b"1"


def test_governance_can_be_bypassed_and_a_hold_cannot(store: Store) -> None:
    locked_bucket(store)
    info = store.put("bark", "k", b"1", attrs={**retention("GOVERNANCE"), "hold": True})
    with pytest.raises(errors.Locked):
        store.delete("bark", "k", version_id=info.version_id, bypass_governance=True)
    store.update_attrs("bark", "k", {"hold": None})
    with pytest.raises(errors.Locked):
        store.delete("bark", "k", version_id=info.version_id)
    assert store.delete("bark", "k", version_id=info.version_id, bypass_governance=True).existed


def test_a_lock_is_not_copied(store: Store) -> None:
    locked_bucket(store)
    store.put("bark", "k", b"1", attrs={**retention("COMPLIANCE"), "hold": True, "n": 1})
    assert store.copy("bark", "k", "bark", "copy").attrs == {"n": 1}


def test_retention_only_grows_unless_it_is_governance_and_bypassed(store: Store) -> None:
    locked_bucket(store)
    store.put("bark", "k", b"1", attrs=retention("GOVERNANCE"))
    store.update_attrs("bark", "k", retention("GOVERNANCE", FAR_MS + 1))
    for change in (retention("GOVERNANCE"), retention("COMPLIANCE", FAR_MS + 2), {"retention": None}):
        with pytest.raises(errors.Locked):
            store.update_attrs("bark", "k", change)
    store.update_attrs("bark", "k", retention("COMPLIANCE"), bypass_governance=True)
    store.update_attrs("bark", "k", retention("COMPLIANCE", FAR_MS + 1))
    for change in (retention("COMPLIANCE"), retention("GOVERNANCE", FAR_MS + 2), {"retention": None}):
        with pytest.raises(errors.Locked):
            store.update_attrs("bark", "k", change, bypass_governance=True)


def test_the_default_of_the_bucket_is_given_to_whatever_is_written(store: Store) -> None:
    locked_bucket(store, mode="GOVERNANCE", days=2)
    info = store.put("bark", "k", b"1")
    given = info.modified_ms + 48 * HOUR_MS
    assert abs(store.head("bark", "k").attrs["retention"]["until_ms"] - given) < 1000
    with pytest.raises(errors.Locked):
        store.delete("bark", "k", version_id=info.version_id)
    upload = store.create_upload("bark", "m")
    writer = store.part_writer("bark", "m", upload.upload_id, 1)
    writer.write(b"part")
    part = writer.commit()
    done = store.complete_upload("bark", "m", upload.upload_id, [(1, part.etag)])
    with pytest.raises(errors.Locked):
        store.delete("bark", "m", version_id=done.version_id)


def test_object_lock_is_not_undone_and_needs_versions(store: Store) -> None:
    locked_bucket(store)
    with pytest.raises(errors.InvalidState):
        store.update_bucket("bark", versioning="Suspended")
    with pytest.raises(errors.InvalidState):
        store.update_bucket("bark", attrs={"object_lock": None})
    store.put("bark", "a/k", b"1")
    with pytest.raises(errors.InvalidState):
        store.rename("bark", "a/", "z/")
    store.create_bucket("plain")
    with pytest.raises(errors.InvalidState):
        store.update_bucket("plain", attrs={"object_lock": {}})


@pytest.mark.parametrize("attrs", [{"hold": True}, retention("GOVERNANCE")])
def test_nothing_is_locked_in_a_bucket_without_object_lock(store: Store, attrs: dict[str, object]) -> None:
    """There a version also goes because another takes its place: a lock could not keep its promise."""
    store.create_bucket("bark")
    with pytest.raises(errors.InvalidState):
        store.put("bark", "k", b"1", attrs=attrs)
    with pytest.raises(errors.InvalidState):
        store.create_upload("bark", "k", attrs=attrs)
    store.put("bark", "k", b"1")
    with pytest.raises(errors.InvalidState):
        store.update_attrs("bark", "k", attrs)
    assert store.head("bark", "k").attrs == {} and not store.list_uploads("bark").uploads


def test_a_clock_that_goes_backwards_brings_no_retention_back(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked_bucket(store)
    now_ms = time.time_ns() // 1_000_000
    info = store.put("bark", "k", b"1", attrs=retention("COMPLIANCE", now_ms + HOUR_MS))
    monkeypatch.setattr(time, "time_ns", lambda: (now_ms + 2 * HOUR_MS) * 1_000_000)
    store.put("bark", "later", b"1")
    monkeypatch.setattr(time, "time_ns", lambda: (now_ms - HOUR_MS) * 1_000_000)
    assert store.delete("bark", "k", version_id=info.version_id).existed


def test_a_lock_outlives_compaction_and_rebuild(path: Path) -> None:
    with small(path) as store:
        locked_bucket(store)
        info = store.put("bark", "k", b"1", attrs=retention("COMPLIANCE"))
        later = store.put("bark", "l", b"1")
        store.update_attrs("bark", "l", {"hold": True})
        for _ in range(200):
            store.put("bark", "noise", b"x" * 5000)
        for entry in store.list_versions("bark", prefix="noise").entries:
            store.delete("bark", "noise", version_id=entry.version_id)
    with Maintenance.open(path, volume_size=1 << 17) as maintenance:
        maintenance.compact(CompactionPolicy(full=True, grace_s=0, volume_size=1 << 17))
    rebuild(path)
    with small(path) as store:
        for key, version in (("k", info.version_id), ("l", later.version_id)):
            with pytest.raises(errors.Locked):
                store.delete("bark", key, version_id=version)


def test_attributes_that_cannot_be_enforced_are_refused(store: Store) -> None:
    locked_bucket(store)
    for attrs in ({"hold": "yes"}, retention("NONE"), retention("COMPLIANCE", 0), {"retention": 1}):
        with pytest.raises(errors.InvalidArgument):
            store.put("bark", "k", b"1", attrs=attrs)
