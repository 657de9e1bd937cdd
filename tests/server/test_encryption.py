"""Server-side encryption through a real server: by the store's keys, by named keys, by the customer's own."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from cordwood.engine import Store, check_store
from cordwood.engine.operations import Content, Description, PutObject
from cordwood.server.encryption import ENVELOPE, Encryption, Keys, Wish
from cordwood.server.keyring import KeyFile, append_key, key_line
from tests.server.conftest import ALICE, BOB, Answer, LiveServer
from tests.server.test_form_upload import encode, policy_text, post, signed

PART = 5 << 20
KEY_A, KEY_B = b"A" * 32, b"B" * 32
CONTEXT = base64.b64encode(b'{"team": "sawmill"}').decode()


def customer(key: bytes, prefix: str = "") -> dict[str, Any]:
    return {f"{prefix}SSECustomerAlgorithm": "AES256", f"{prefix}SSECustomerKey": key}


def spelled(key: bytes) -> dict[str, str]:
    """The same for the calls in which boto3 does not encode it."""
    return {
        "SSECustomerAlgorithm": "AES256",
        "SSECustomerKey": base64.b64encode(key).decode(),
        "SSECustomerKeyMD5": base64.b64encode(hashlib.md5(key).digest()).decode(),
    }


# What a request says about encryption, by the name of what it asks for; and what a read must bring.
ASKS: dict[str, dict[str, Any]] = {
    "none": {},
    "AES256": {"ServerSideEncryption": "AES256"},
    "aws:kms": {
        "ServerSideEncryption": "aws:kms",
        "SSEKMSKeyId": "billing",
        "SSEKMSEncryptionContext": CONTEXT,
    },
    "aws:kms:dsse": {"ServerSideEncryption": "aws:kms:dsse", "SSEKMSKeyId": "alias/billing"},
    "SSE-C": customer(KEY_A),
}
ENCRYPTED = [each for each in ASKS if each != "none"]
BRINGS: dict[str, dict[str, Any]] = {mode: customer(KEY_A) if mode == "SSE-C" else {} for mode in ASKS}


@pytest.fixture
def key_files(tmp_path: Path) -> tuple[Path, Path]:
    master, named = tmp_path / "store" / "master-keys", tmp_path / "named"
    named.touch(0o600)
    named.write_text(key_line("billing") + key_line("payroll"))
    return master, named


@pytest.fixture
def server(store: Store, key_files: tuple[Path, Path]) -> Iterator[LiveServer]:
    keys = Keys(KeyFile(key_files[0]), KeyFile(key_files[1]))
    live = LiveServer(store, (ALICE, BOB), encryption=Encryption(keys))
    live.start()
    yield live
    live.stop()


def refusal(call: Any, **arguments: Any) -> tuple[int, str]:
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    response = caught.value.response
    return response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Code"]


def check_answer(answer: dict[str, Any], mode: str) -> None:
    """That an answer says how the object is encrypted."""
    if mode == "none":
        assert not any(name.startswith(("ServerSide", "SSE")) for name in answer)
    elif mode == "SSE-C":
        assert answer["SSECustomerAlgorithm"] == "AES256"
        assert answer["SSECustomerKeyMD5"] == base64.b64encode(hashlib.md5(KEY_A).digest()).decode()
        assert "ServerSideEncryption" not in answer
    else:
        assert answer["ServerSideEncryption"] == mode
        assert answer.get("SSEKMSKeyId") == ASKS[mode].get("SSEKMSKeyId")


def is_on_disk(store: Store, data: bytes) -> bool:
    """Whether 16 bytes in a row of this stand in any file of the store."""
    pieces = {data[at : at + 16] for at in range(0, max(1, len(data) - 16), 4096)}
    held = [each.read_bytes() for each in store.path.rglob("*") if each.is_file()]
    return any(piece in text for text in held for piece in pieces if len(piece) == 16)


SIZES = [0, 100, 65_536, 65_537, (3 << 20) + 5]


@pytest.mark.parametrize("mode", ASKS)
@pytest.mark.parametrize("size", SIZES)
def test_an_object_comes_back_as_it_was_and_is_told_to_be_encrypted(
    s3: Any, store: Store, mode: str, size: int
) -> None:
    data = os.urandom(size)
    put = s3.put_object(Bucket="bkt", Key="k", Body=data, ChecksumAlgorithm="SHA256", **ASKS[mode])
    check_answer(put, mode)
    assert put["ChecksumSHA256"] == base64.b64encode(hashlib.sha256(data).digest()).decode()
    assert (put["ETag"].strip('"') == hashlib.md5(data).hexdigest()) == (mode in ("none", "AES256"))
    got = s3.get_object(Bucket="bkt", Key="k", ChecksumMode="ENABLED", **BRINGS[mode])
    assert got["Body"].read() == data
    head = s3.head_object(Bucket="bkt", Key="k", ChecksumMode="ENABLED", **BRINGS[mode])
    for answer in (got, head):
        check_answer(answer, mode)
        assert (answer["ETag"], answer["ContentLength"]) == (put["ETag"], size)
        assert answer["ChecksumSHA256"] == put["ChecksumSHA256"]
    (listed,) = s3.list_objects_v2(Bucket="bkt")["Contents"]
    assert (listed["Size"], listed["ETag"]) == (size, put["ETag"])
    if size > 100:
        assert is_on_disk(store, data) == (mode == "none")
    if mode != "none":
        assert put["ChecksumSHA256"].encode() not in b"".join(
            each.read_bytes() for each in store.path.rglob("*") if each.is_file()
        )


@pytest.mark.parametrize("mode", ENCRYPTED)
def test_a_range_is_answered_at_every_border_of_a_chunk(s3: Any, mode: str) -> None:
    data = os.urandom((2 << 20) + 10)
    s3.put_object(Bucket="bkt", Key="k", Body=data, **ASKS[mode])
    chunk = 1 << 20
    for first, last in (
        (0, 0), (0, chunk - 1), (chunk - 1, chunk), (chunk, chunk), (chunk, 2 * chunk), (2 * chunk, len(data) - 1),
        (len(data) - 1, len(data) - 1), (5, len(data) - 5),
    ):  # fmt: skip
        got = s3.get_object(Bucket="bkt", Key="k", Range=f"bytes={first}-{last}", **BRINGS[mode])
        assert got["ContentRange"] == f"bytes {first}-{last}/{len(data)}"
        assert got["Body"].read() == data[first : last + 1]


@pytest.mark.parametrize("target", ASKS)
@pytest.mark.parametrize("source", ASKS)
@pytest.mark.parametrize("size", [100, 200_000])
def test_a_copy_from_any_state_of_encryption_to_any_other(
    s3: Any, store: Store, source: str, target: str, size: int
) -> None:
    data = os.urandom(size)
    original = s3.put_object(Bucket="bkt", Key="k", Body=data, Metadata={"a": "1"}, **ASKS[source])
    s3.create_bucket(Bucket="other")
    brought = customer(KEY_A, "CopySource") if source == "SSE-C" else {}
    asked = customer(KEY_B) if target == "SSE-C" else ASKS[target]
    copied = s3.copy_object(
        Bucket="other", Key="copy", CopySource={"Bucket": "bkt", "Key": "k"}, **brought, **asked
    )
    s3.delete_object(Bucket="bkt", Key="k")
    needs = customer(KEY_B) if target == "SSE-C" else {}
    got = s3.get_object(Bucket="other", Key="copy", ChecksumMode="ENABLED", **needs)
    assert got["Body"].read() == data
    assert (got["Metadata"], got["ETag"]) == ({"a": "1"}, copied["CopyObjectResult"]["ETag"])
    # What was encrypted stays so, also where nothing was said.
    expected = "AES256" if target == "none" and source != "none" else target
    assert got.get("ServerSideEncryption") == (expected if expected not in ("none", "SSE-C") else None)
    assert ("SSECustomerKeyMD5" in got) == (target == "SSE-C")
    if expected in ("none", "AES256") or source == target == "aws:kms":
        is_md5 = got["ETag"].strip('"') == hashlib.md5(data).hexdigest()
        assert is_md5 == (expected in ("none", "AES256"))
    assert copied["CopyObjectResult"]["ChecksumCRC32"] == got["ChecksumCRC32"] == original["ChecksumCRC32"]
    with store.get("other", "copy") as reader:
        assert reader.info.is_encrypted == (expected != "none")


def test_copies_under_the_stores_keys_share_their_chunks(s3: Any, store: Store) -> None:
    for mode in ("AES256", "aws:kms"):
        s3.put_object(Bucket="bkt", Key=f"{mode} 1", Body=os.urandom(3 << 20), **ASKS[mode])
        s3.copy_object(Bucket="bkt", Key=f"{mode} 2", CopySource=f"bkt/{mode} 1", **ASKS[mode])
        infos = [store.head("bkt", f"{mode} {number}") for number in (1, 2)]
        lists = []
        for number in (1, 2):
            with store.get("bkt", f"{mode} {number}") as reader:
                lists.append(reader.manifest.chunks())
        assert lists[0] == lists[1]
        assert infos[0].attrs[ENVELOPE]["wrapped"] != infos[1].attrs[ENVELOPE]["wrapped"]
        body = s3.get_object(Bucket="bkt", Key=f"{mode} 2", Range="bytes=2000000-2000009")["Body"].read()
        assert body == s3.get_object(Bucket="bkt", Key=f"{mode} 1")["Body"].read()[2_000_000:2_000_010]


def test_an_object_can_be_copied_onto_itself_to_change_its_encryption(s3: Any) -> None:
    s3.put_object(Bucket="bkt", Key="k", Body=b"text")
    for mode in ("AES256", "aws:kms"):
        s3.copy_object(Bucket="bkt", Key="k", CopySource="bkt/k", **ASKS[mode])
        got = s3.get_object(Bucket="bkt", Key="k")
        assert (got["Body"].read(), got["ServerSideEncryption"]) == (b"text", mode)
    s3.copy_object(Bucket="bkt", Key="k", CopySource="bkt/k", **customer(KEY_A))
    s3.copy_object(
        Bucket="bkt", Key="k", CopySource="bkt/k", **customer(KEY_A, "CopySource"), **customer(KEY_B)
    )
    assert s3.get_object(Bucket="bkt", Key="k", **customer(KEY_B))["Body"].read() == b"text"
    s3.copy_object(Bucket="bkt", Key="k", CopySource="bkt/k", **customer(KEY_B, "CopySource"))
    got = s3.get_object(Bucket="bkt", Key="k")
    assert (got["Body"].read(), got["ServerSideEncryption"]) == (b"text", "AES256")


# --- multipart uploads ----------------------------------------------------------------------------------------


def upload(s3: Any, mode: str, bodies: dict[int, bytes], key: str = "k", **options: Any) -> dict[str, Any]:
    made = s3.create_multipart_upload(Bucket="bkt", Key=key, **ASKS[mode], **options)
    check_answer(
        {**made, "SSECustomerKeyMD5": made.get("SSECustomerKeyMD5")} if mode == "SSE-C" else made, mode
    )
    target = {"Bucket": "bkt", "Key": key, "UploadId": made["UploadId"]}
    parts = []
    for number, body in bodies.items():
        sent = s3.upload_part(PartNumber=number, Body=body, **target, **BRINGS[mode])
        check_answer(sent, mode)
        parts.append({"PartNumber": number, "ETag": sent["ETag"], "ChecksumCRC32": sent["ChecksumCRC32"]})
    done: dict[str, Any] = s3.complete_multipart_upload(
        MultipartUpload={"Parts": parts}, **target, **BRINGS[mode]
    )
    return done


@pytest.mark.parametrize("mode", ASKS)
def test_parts_of_odd_sizes_become_one_encrypted_object(s3: Any, store: Store, mode: str) -> None:
    bodies = {2: os.urandom(PART + 1), 7: os.urandom(PART + 70_001), 9: os.urandom(13)}
    data = b"".join(bodies.values())
    done = upload(s3, mode, bodies, ChecksumAlgorithm="CRC32")
    assert done["ETag"].endswith('-3"')
    got = s3.get_object(Bucket="bkt", Key="k", ChecksumMode="ENABLED", **BRINGS[mode])
    assert got["Body"].read() == data
    check_answer(got, mode)
    assert got["ChecksumCRC32"] == done["ChecksumCRC32"] and done["ChecksumCRC32"].endswith("-3")
    for number, (_, body) in enumerate(bodies.items(), 1):
        part = s3.get_object(Bucket="bkt", Key="k", PartNumber=number, **BRINGS[mode])
        assert (part["Body"].read(), part["PartsCount"]) == (body, 3)
    first = PART + 1
    for at in (first - 2, first - 1, first, len(data) - 14, len(data) - 13):
        got = s3.get_object(Bucket="bkt", Key="k", Range=f"bytes={at}-{at + 1}", **BRINGS[mode])
        assert got["Body"].read() == data[at : at + 2]
    assert is_on_disk(store, data) == (mode == "none")
    attributes = s3.get_object_attributes(
        Bucket="bkt",
        Key="k",
        ObjectAttributes=["Checksum", "ObjectParts", "ObjectSize"],
        **(spelled(KEY_A) if mode == "SSE-C" else {}),
    )
    assert attributes["ObjectSize"] == len(data)
    assert attributes["Checksum"]["ChecksumCRC32"] == done["ChecksumCRC32"]
    assert [part["Size"] for part in attributes["ObjectParts"]["Parts"]] == [len(b) for b in bodies.values()]


@pytest.mark.parametrize("target", ASKS)
@pytest.mark.parametrize("source", ASKS)
def test_a_part_is_copied_from_any_state_of_encryption_to_any_other(
    s3: Any, source: str, target: str
) -> None:
    data = os.urandom(200_000)
    s3.put_object(Bucket="bkt", Key="source", Body=data, **ASKS[source])
    made = s3.create_multipart_upload(Bucket="bkt", Key="k", **ASKS[target])
    where = {"Bucket": "bkt", "Key": "k", "UploadId": made["UploadId"]}
    brought = customer(KEY_A, "CopySource") if source == "SSE-C" else {}
    copied = s3.upload_part_copy(
        PartNumber=1,
        CopySource="bkt/source",
        CopySourceRange="bytes=70000-199998",
        **where,
        **brought,
        **BRINGS[target],
    )
    check_answer(copied, target)
    parts = [{"PartNumber": 1, "ETag": copied["CopyPartResult"]["ETag"]}]
    s3.complete_multipart_upload(MultipartUpload={"Parts": parts}, **where, **BRINGS[target])
    got = s3.get_object(Bucket="bkt", Key="k", **BRINGS[target])
    assert got["Body"].read() == data[70_000:199_999]


def test_every_part_under_a_customers_key_must_bring_that_key(s3: Any) -> None:
    made = s3.create_multipart_upload(Bucket="bkt", Key="k", **customer(KEY_A))
    where = {"Bucket": "bkt", "Key": "k", "UploadId": made["UploadId"]}
    for brought in ({}, customer(KEY_B)):
        assert refusal(s3.upload_part, PartNumber=1, Body=b"x", **where, **brought) == (400, "InvalidRequest")
    sent = s3.upload_part(PartNumber=1, Body=b"x", **where, **customer(KEY_A))
    parts = {"Parts": [{"PartNumber": 1, "ETag": sent["ETag"]}]}
    for brought in ({}, customer(KEY_B)):
        refused = refusal(s3.complete_multipart_upload, MultipartUpload=parts, **where, **brought)
        assert refused == (400, "InvalidRequest")
    made = s3.create_multipart_upload(Bucket="bkt", Key="k")
    where["UploadId"] = made["UploadId"]
    refused = refusal(s3.upload_part, PartNumber=1, Body=b"x", **where, **customer(KEY_A))
    assert refused == (400, "InvalidRequest")


def test_an_old_client_completes_an_upload_under_its_key_without_sending_it(
    server: LiveServer, s3: Any
) -> None:
    s3 = server.client(request_checksum_calculation="when_required")
    made = s3.create_multipart_upload(Bucket="bkt", Key="k", **customer(KEY_A))
    where = {"Bucket": "bkt", "Key": "k", "UploadId": made["UploadId"]}
    sent = s3.upload_part(PartNumber=1, Body=b"text", **where, **customer(KEY_A))
    assert s3.list_parts(**where)["Parts"][0]["Size"] == 4
    parts = {"Parts": [{"PartNumber": 1, "ETag": sent["ETag"]}]}
    s3.complete_multipart_upload(MultipartUpload=parts, **where)
    assert s3.get_object(Bucket="bkt", Key="k", **customer(KEY_A))["Body"].read() == b"text"
    again = s3.complete_multipart_upload(MultipartUpload=parts, **where)
    assert again["ETag"].endswith('-1"')


def test_the_checksums_of_parts_are_shown_to_whoever_has_the_key(s3: Any) -> None:
    made = s3.create_multipart_upload(Bucket="bkt", Key="k", ChecksumAlgorithm="CRC32", **customer(KEY_A))
    where = {"Bucket": "bkt", "Key": "k", "UploadId": made["UploadId"]}
    sent = s3.upload_part(PartNumber=3, Body=b"text", **where, **customer(KEY_A))
    (shown,) = s3.list_parts(**where, **spelled(KEY_A))["Parts"]
    assert shown["ChecksumCRC32"] == sent["ChecksumCRC32"]
    (shown,) = s3.list_parts(**where)["Parts"]
    assert "ChecksumCRC32" not in shown and shown["ETag"] == sent["ETag"]


# --- the customer's key ---------------------------------------------------------------------------------------

SSE = "x-amz-server-side-encryption"
GOOD = {
    f"{SSE}-customer-algorithm": "AES256",
    f"{SSE}-customer-key": base64.b64encode(KEY_A).decode(),
    f"{SSE}-customer-key-md5": base64.b64encode(hashlib.md5(KEY_A).digest()).decode(),
}
SHORT = {
    f"{SSE}-customer-key": base64.b64encode(KEY_A[:16]).decode(),
    f"{SSE}-customer-key-md5": base64.b64encode(hashlib.md5(KEY_A[:16]).digest()).decode(),
}


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        ({"algorithm": "AES128"}, "InvalidEncryptionAlgorithmError", "AES256"),
        ({"algorithm": None}, "InvalidArgument", "valid encryption algorithm"),
        ({"key": None}, "InvalidArgument", "appropriate secret key"),
        ({"key-md5": None}, "InvalidArgument", "client calculated MD5"),
        ({"key": "!not base64!"}, "InvalidArgument", "secret key was invalid"),
        ({"key-md5": "AAAAAAAAAAAAAAAAAAAAAA=="}, "InvalidArgument", "MD5 hash of the key did not match"),
        ({"key-md5": "\u00e4"}, "InvalidArgument", "MD5 hash of the key did not match"),
        ({"key": SHORT[f"{SSE}-customer-key"]}, "InvalidArgument", "secret key was invalid"),
    ],
)
@pytest.mark.parametrize("method", ["PUT", "GET"])
def test_a_customers_key_is_checked_before_anything_is_done(
    server: LiveServer, s3: Any, method: str, change: dict[str, str | None], code: str, says: str
) -> None:
    s3.put_object(Bucket="bkt", Key="k", Body=b"before", **customer(KEY_A))
    headers = dict(GOOD)
    for name, value in change.items():
        headers.pop(f"{SSE}-customer-{name}")
        if value is not None:
            headers[f"{SSE}-customer-{name}"] = value
    answer = server.request(method, "/bkt/k", b"after" if method == "PUT" else b"", headers)
    assert (answer.status, answer.code) == (400, code), answer.body
    assert says.encode() in answer.body
    assert GOOD[f"{SSE}-customer-key"].encode() not in answer.body
    assert s3.get_object(Bucket="bkt", Key="k", **customer(KEY_A))["Body"].read() == b"before"


@pytest.mark.parametrize("size", [10, 100_000])
def test_an_object_under_a_customers_key_is_read_with_that_key_alone(s3: Any, size: int) -> None:
    s3.put_object(Bucket="bkt", Key="k", Body=os.urandom(size), **customer(KEY_A))
    for call in (s3.get_object, s3.head_object):
        for brought in ({}, customer(KEY_B)):
            assert refusal(call, Bucket="bkt", Key="k", **brought)[0] == 400
    asked = {"Bucket": "bkt", "Key": "k", "ObjectAttributes": ["ETag"]}
    assert refusal(s3.get_object_attributes, **asked) == (400, "InvalidRequest")
    assert s3.get_object_attributes(**asked, **spelled(KEY_A))["ETag"]
    copy = {"Bucket": "bkt", "Key": "copy", "CopySource": "bkt/k"}
    for brought in ({}, customer(KEY_B, "CopySource")):
        assert refusal(s3.copy_object, **copy, **brought) == (400, "InvalidRequest")


@pytest.mark.parametrize("mode", ["none", "AES256", "aws:kms"])
def test_a_customers_key_is_refused_for_what_was_not_encrypted_with_one(s3: Any, mode: str) -> None:
    s3.put_object(Bucket="bkt", Key="k", Body=b"x", **ASKS[mode])
    assert refusal(s3.get_object, Bucket="bkt", Key="k", **customer(KEY_A)) == (400, "InvalidRequest")
    copy = {"Bucket": "bkt", "Key": "copy", "CopySource": "bkt/k"}
    refused = refusal(s3.copy_object, **copy, **customer(KEY_A, "CopySource"))
    assert refused == (400, "InvalidRequest")


def test_customers_keys_can_be_refused_without_tls(store: Store, key_files: tuple[Path, Path]) -> None:
    live = LiveServer(store, encryption=Encryption(Keys(KeyFile(key_files[0])), must_have_tls=True))
    live.start()
    try:
        s3 = live.client()
        s3.create_bucket(Bucket="bkt")
        refused = refusal(s3.put_object, Bucket="bkt", Key="k", Body=b"", **customer(KEY_A))
        assert refused == (400, "InvalidRequest")
        s3.put_object(Bucket="bkt", Key="k", Body=b"", **ASKS["AES256"])
    finally:
        live.stop()


# --- what cannot be meant -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {SSE: "AES256", **GOOD},
        {SSE: "aws:kms", f"{SSE}-aws-kms-key-id": "billing", **GOOD},
        {SSE: "AES256", f"{SSE}-aws-kms-key-id": "billing"},
        {SSE: "AES256", f"{SSE}-context": CONTEXT},
        {f"{SSE}-aws-kms-key-id": "billing"},
        {f"{SSE}-context": CONTEXT},
        {SSE: "rot13"},
        {SSE: "aws:fsx"},
        {SSE: "aws:kms", f"{SSE}-aws-kms-key-id": "billing", f"{SSE}-context": "bm8ganNvbg=="},
        {SSE: "aws:kms", f"{SSE}-aws-kms-key-id": "billing", f"{SSE}-context": "eyJhIjogMX0="},
        {SSE: "aws:kms", f"{SSE}-aws-kms-key-id": "billing", f"{SSE}-bucket-key-enabled": "perhaps"},
    ],
)
def test_headers_that_contradict_each_other_or_mean_nothing_are_refused(
    server: LiveServer, s3: Any, headers: dict[str, str]
) -> None:
    answer = server.request("PUT", "/bkt/k", b"x", headers)
    assert (answer.status, answer.code) == (400, "InvalidArgument"), answer.body
    assert refusal(s3.head_object, Bucket="bkt", Key="k")[0] == 404


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_read_that_asks_for_encryption_is_refused(server: LiveServer, s3: Any, method: str) -> None:
    s3.put_object(Bucket="bkt", Key="k", Body=b"x", **ASKS["AES256"])
    assert server.request(method, "/bkt/k", b"", {SSE: "AES256"}).status == 400


@pytest.mark.parametrize("key", ["unknown", "arn:aws:kms:us-east-1:000000000000:key/unknown", None])
def test_a_named_key_that_the_server_lacks_is_not_found(s3: Any, key: str | None) -> None:
    asked = {"ServerSideEncryption": "aws:kms"} | ({"SSEKMSKeyId": key} if key else {})
    assert refusal(s3.put_object, Bucket="bkt", Key="k", Body=b"", **asked) == (400, "KMS.NotFoundException")
    refused = refusal(s3.create_multipart_upload, Bucket="bkt", Key="k", **asked)
    assert refused == (400, "KMS.NotFoundException")


def test_the_managed_key_is_used_when_the_key_file_has_one(s3: Any, key_files: tuple[Path, Path]) -> None:
    append_key(key_files[1], "aws/s3")
    put = s3.put_object(Bucket="bkt", Key="k", Body=b"x", ServerSideEncryption="aws:kms")
    assert put["SSEKMSKeyId"] == "aws/s3"
    assert s3.get_object(Bucket="bkt", Key="k")["Body"].read() == b"x"


def test_a_key_is_found_by_name_alias_and_arn_and_answered_as_it_was_named(s3: Any) -> None:
    arn = "arn:aws:kms:us-east-1:000000000000:"
    for named in ("billing", "alias/billing", f"{arn}key/billing", f"{arn}alias/billing"):
        s3.put_object(
            Bucket="bkt",
            Key="k",
            Body=b"x",
            ServerSideEncryption="aws:kms",
            SSEKMSKeyId=named,
            BucketKeyEnabled=True,
        )
        got = s3.get_object(Bucket="bkt", Key="k")
        assert (got["Body"].read(), got["SSEKMSKeyId"], got["BucketKeyEnabled"]) == (b"x", named, True)


def test_the_encryption_context_is_answered_to_a_write_and_bound_to_the_key(s3: Any, store: Store) -> None:
    put = s3.put_object(Bucket="bkt", Key="k", Body=b"x", **ASKS["aws:kms"])
    assert json.loads(base64.b64decode(put["SSEKMSEncryptionContext"])) == {"team": "sawmill"}
    envelope = store.head("bkt", "k").attrs[ENVELOPE]
    assert json.loads(envelope["context"]) == {"team": "sawmill"}
    store.update_attrs("bkt", "k", {ENVELOPE: {**envelope, "context": '{"team": "kiln"}'}})
    assert refusal(s3.get_object, Bucket="bkt", Key="k") == (500, "InternalError")


# --- defaults -------------------------------------------------------------------------------------------------


def set_default(s3: Any, **default: Any) -> None:
    rule: dict[str, Any] = {}
    if "has_bucket_key" in default:
        rule["BucketKeyEnabled"] = default.pop("has_bucket_key")
    if "blocked" in default:
        rule["BlockedEncryptionTypes"] = {"EncryptionType": default.pop("blocked")}
    if default:
        rule["ApplyServerSideEncryptionByDefault"] = default
    s3.put_bucket_encryption(Bucket="bkt", ServerSideEncryptionConfiguration={"Rules": [rule]})


def test_the_default_of_a_bucket_holds_for_every_way_to_write_and_until_it_is_removed(
    server: LiveServer, s3: Any
) -> None:
    not_found = (404, "ServerSideEncryptionConfigurationNotFoundError")
    assert refusal(s3.get_bucket_encryption, Bucket="bkt") == not_found
    s3.put_object(Bucket="bkt", Key="before", Body=b"plain")
    set_default(s3, SSEAlgorithm="aws:kms", KMSMasterKeyID="payroll", has_bucket_key=True)
    (rule,) = s3.get_bucket_encryption(Bucket="bkt")["ServerSideEncryptionConfiguration"]["Rules"]
    assert rule["ApplyServerSideEncryptionByDefault"] == {
        "SSEAlgorithm": "aws:kms",
        "KMSMasterKeyID": "payroll",
    }
    assert rule["BucketKeyEnabled"] is True
    s3.put_object(Bucket="bkt", Key="put", Body=b"text")
    s3.copy_object(Bucket="bkt", Key="copy", CopySource="bkt/before")
    made = s3.create_multipart_upload(Bucket="bkt", Key="parts")
    where = {"Bucket": "bkt", "Key": "parts", "UploadId": made["UploadId"]}
    sent = s3.upload_part(PartNumber=1, Body=b"text", **where)
    s3.complete_multipart_upload(
        MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": sent["ETag"]}]}, **where
    )
    assert post(server, encode(signed(policy_text()), b"text")).status == 204
    for key in ("put", "copy", "parts", "user/a"):
        got = s3.get_object(Bucket="bkt", Key=key)
        assert (got["ServerSideEncryption"], got["SSEKMSKeyId"]) == ("aws:kms", "payroll"), key
        assert got["BucketKeyEnabled"] is True
        assert got["Body"].read() == (b"plain" if key == "copy" else b"text")
    assert "ServerSideEncryption" not in s3.head_object(Bucket="bkt", Key="before")
    for mode in ("AES256", "aws:kms", "SSE-C"):  # what a request says goes before the default
        check_answer(s3.put_object(Bucket="bkt", Key="said", Body=b"", **ASKS[mode]), mode)
    s3.delete_bucket_encryption(Bucket="bkt")
    assert refusal(s3.get_bucket_encryption, Bucket="bkt") == not_found
    assert "ServerSideEncryption" not in s3.put_object(Bucket="bkt", Key="after", Body=b"")
    assert s3.get_object(Bucket="bkt", Key="put")["Body"].read() == b"text"


@pytest.mark.parametrize(
    "rules",
    [
        [],
        [{}],
        [{"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}] * 2,
        [{"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "aws:fsx"}}],
        [{"BlockedEncryptionTypes": {"EncryptionType": ["NONE", "SSE-C"]}}],
    ],
)
def test_a_default_that_cannot_be_carried_out_is_malformed(s3: Any, rules: list[Any]) -> None:
    asked = {"Bucket": "bkt", "ServerSideEncryptionConfiguration": {"Rules": rules}}
    assert refusal(s3.put_bucket_encryption, **asked) == (400, "MalformedXML")


def test_a_default_of_the_stores_own_key_names_no_other(s3: Any) -> None:
    default = {"SSEAlgorithm": "AES256", "KMSMasterKeyID": "billing"}
    asked = {"Rules": [{"ApplyServerSideEncryptionByDefault": default}]}
    refused = refusal(s3.put_bucket_encryption, Bucket="bkt", ServerSideEncryptionConfiguration=asked)
    assert refused == (400, "InvalidArgument")


def test_a_bucket_can_block_customers_keys_and_take_them_again(s3: Any) -> None:
    s3.put_object(Bucket="bkt", Key="old", Body=b"old", **customer(KEY_A))
    set_default(s3, blocked=["SSE-C"])
    (rule,) = s3.get_bucket_encryption(Bucket="bkt")["ServerSideEncryptionConfiguration"]["Rules"]
    assert rule["BlockedEncryptionTypes"] == {"EncryptionType": ["SSE-C"]}
    for call, body in ((s3.put_object, {"Body": b""}), (s3.create_multipart_upload, {})):
        assert refusal(call, Bucket="bkt", Key="k", **body, **customer(KEY_A)) == (403, "AccessDenied")
    assert s3.get_object(Bucket="bkt", Key="old", **customer(KEY_A))["Body"].read() == b"old"
    set_default(s3, blocked=["NONE"])
    s3.put_object(Bucket="bkt", Key="k", Body=b"", **customer(KEY_A))


def test_a_store_can_encrypt_by_default(store: Store, key_files: tuple[Path, Path]) -> None:
    live = LiveServer(store, encryption=Encryption(Keys(KeyFile(key_files[0])), Wish("AES256")))
    live.start()
    try:
        s3 = live.client()
        s3.create_bucket(Bucket="bkt")
        (rule,) = s3.get_bucket_encryption(Bucket="bkt")["ServerSideEncryptionConfiguration"]["Rules"]
        assert rule["ApplyServerSideEncryptionByDefault"] == {"SSEAlgorithm": "AES256"}
        assert s3.put_object(Bucket="bkt", Key="k", Body=b"x")["ServerSideEncryption"] == "AES256"
        set_default(s3, blocked=["SSE-C"])
        assert s3.put_object(Bucket="bkt", Key="k", Body=b"x")["ServerSideEncryption"] == "AES256"
    finally:
        live.stop()


# --- policies, forms, appends ---------------------------------------------------------------------------------


def deny(s3: Any, condition: dict[str, Any]) -> None:
    statement = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:PutObject",
        "Resource": "arn:aws:s3:::bkt/*",
        "Condition": condition,
    }
    s3.put_bucket_policy(Bucket="bkt", Policy=json.dumps({"Version": "2012-10-17", "Statement": [statement]}))


def test_a_policy_can_demand_encryption_and_parts_have_that_of_their_upload(s3: Any) -> None:
    deny(s3, {"StringNotEquals": {f"s3:{SSE}": "aws:kms"}})
    assert refusal(s3.put_object, Bucket="bkt", Key="k", Body=b"") == (403, "AccessDenied")
    assert refusal(s3.put_object, Bucket="bkt", Key="k", Body=b"", **ASKS["AES256"]) == (403, "AccessDenied")
    assert refusal(s3.create_multipart_upload, Bucket="bkt", Key="k") == (403, "AccessDenied")
    s3.put_object(Bucket="bkt", Key="k", Body=b"", **ASKS["aws:kms"])
    upload(s3, "aws:kms", {1: b"part"})
    deny(s3, {"StringNotEquals": {f"s3:{SSE}-aws-kms-key-id": "payroll"}})
    refused = refusal(s3.put_object, Bucket="bkt", Key="k", Body=b"", **ASKS["aws:kms"])
    assert refused == (403, "AccessDenied")
    payroll = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "payroll"}
    s3.put_object(Bucket="bkt", Key="k", Body=b"", **payroll)
    deny(s3, {"Null": {f"s3:{SSE}-customer-algorithm": "true"}})
    assert refusal(s3.put_object, Bucket="bkt", Key="k", Body=b"") == (403, "AccessDenied")
    upload(s3, "SSE-C", {1: b"part"})


def test_a_form_is_encrypted_as_its_fields_say(server: LiveServer, s3: Any) -> None:
    fields = signed(policy_text(*(["starts-with", f"${name}", ""] for name in GOOD)), **GOOD)
    assert post(server, encode(fields, b"secret")).status == 204
    got = s3.get_object(Bucket="bkt", Key="user/a", **customer(KEY_A))
    assert got["Body"].read() == b"secret"
    assert refusal(s3.get_object, Bucket="bkt", Key="user/a") == (400, "InvalidRequest")


def test_nothing_is_appended_to_an_encrypted_object_or_in_plain_where_encryption_is_the_default(
    server: LiveServer, s3: Any
) -> None:
    s3.put_object(Bucket="bkt", Key="k", Body=b"x", **ASKS["AES256"])
    assert refusal(s3.put_object, Bucket="bkt", Key="k", Body=b"y", WriteOffsetBytes=1)[0] == 400
    set_default(s3, SSEAlgorithm="AES256")
    assert refusal(s3.put_object, Bucket="bkt", Key="new", Body=b"y", WriteOffsetBytes=0)[0] == 400
    assert refusal(s3.head_object, Bucket="bkt", Key="new")[0] == 404


def test_an_encrypted_object_keeps_its_bytes_when_it_is_renamed(server: LiveServer, s3: Any) -> None:
    for number, (mode, size) in enumerate([("AES256", 10), ("aws:kms", 100_000), ("SSE-C", 10)]):
        data = os.urandom(size)
        s3.put_object(Bucket="bkt", Key=f"old/{number}", Body=data, **ASKS[mode])
        answer = server.request(
            "PUT", f"/bkt/new{number}?renameObject", b"", {"x-amz-rename-source": f"old/{number}"}
        )
        assert answer.status == 200, answer.body
        got = s3.get_object(Bucket="bkt", Key=f"new{number}", **BRINGS[mode])
        assert got["Body"].read() == data


# --- another key for what is there ----------------------------------------------------------------------------

PAYROLL = "arn:aws:kms:us-east-1:000000000000:key/payroll"


@pytest.mark.parametrize("mode", ["AES256", "aws:kms"])
@pytest.mark.parametrize("size", [10, 100_000])
def test_an_object_gets_another_key_and_keeps_everything_else(
    s3: Any, store: Store, mode: str, size: int
) -> None:
    data = os.urandom(size)
    put = s3.put_object(Bucket="bkt", Key="k", Body=data, **ASKS[mode])
    before = store.head("bkt", "k")
    asked = {"SSEKMS": {"KMSKeyArn": PAYROLL, "BucketKeyEnabled": True}}
    s3.update_object_encryption(Bucket="bkt", Key="k", ObjectEncryption=asked)
    got = s3.get_object(Bucket="bkt", Key="k", ChecksumMode="ENABLED")
    assert got["Body"].read() == data
    assert (got["ServerSideEncryption"], got["SSEKMSKeyId"]) == ("aws:kms", PAYROLL)
    assert (got["ETag"], got["ChecksumCRC32"]) == (put["ETag"], put["ChecksumCRC32"])
    after = store.head("bkt", "k")
    assert (after.modified_ms, after.version_id) == (before.modified_ms, before.version_id)


def test_only_what_the_stores_keys_encrypt_gets_another_key(s3: Any) -> None:
    asked = {"Bucket": "bkt", "Key": "k", "ObjectEncryption": {"SSEKMS": {"KMSKeyArn": PAYROLL}}}
    for mode in ("none", "SSE-C", "aws:kms:dsse"):
        s3.put_object(Bucket="bkt", Key="k", Body=b"", **ASKS[mode])
        assert refusal(s3.update_object_encryption, **asked) == (400, "InvalidRequest")
    s3.put_object(Bucket="bkt", Key="k", Body=b"", **ASKS["AES256"])
    asked["ObjectEncryption"] = {"SSEKMS": {"KMSKeyArn": PAYROLL[:-4]}}
    assert refusal(s3.update_object_encryption, **asked) == (400, "KMS.NotFoundException")


def test_a_locked_version_keeps_its_key(s3: Any) -> None:
    s3.create_bucket(Bucket="locked", ObjectLockEnabledForBucket=True)
    s3.put_object(Bucket="locked", Key="k", Body=b"", ObjectLockLegalHoldStatus="ON", **ASKS["AES256"])
    asked = {"Bucket": "locked", "Key": "k", "ObjectEncryption": {"SSEKMS": {"KMSKeyArn": PAYROLL}}}
    assert refusal(s3.update_object_encryption, **asked) == (403, "AccessDenied")
    s3.put_object_legal_hold(Bucket="locked", Key="k", LegalHold={"Status": "OFF"})
    s3.update_object_encryption(**asked)


def test_a_new_master_key_encrypts_and_the_old_one_still_decrypts(
    s3: Any, store: Store, key_files: tuple[Path, Path]
) -> None:
    s3.put_object(Bucket="bkt", Key="old", Body=b"old", **ASKS["AES256"])
    new_id = append_key(key_files[0], "master")
    live = LiveServer(store, encryption=Encryption(Keys(KeyFile(key_files[0]))))
    live.start()
    try:
        later = live.client()
        later.put_object(Bucket="bkt", Key="new", Body=b"new", **ASKS["AES256"])
        by = {key: store.head("bkt", key).attrs[ENVELOPE]["by"] for key in ("old", "new")}
        assert by["new"] == new_id != by["old"]
        for key in ("old", "new"):
            for client in (s3, later):  # the server that runs reads the file again, too
                assert client.get_object(Bucket="bkt", Key=key)["Body"].read() == key.encode()
    finally:
        live.stop()


def test_a_lost_master_key_is_said_in_the_log_and_a_lost_named_key_to_the_client(
    s3: Any, store: Store, key_files: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    s3.put_object(Bucket="bkt", Key="master", Body=b"x", **ASKS["AES256"])
    s3.put_object(Bucket="bkt", Key="named", Body=b"x", **ASKS["aws:kms"])
    by = store.head("bkt", "master").attrs[ENVELOPE]["by"]
    key_files[0].unlink()
    key_files[1].write_text(key_line("payroll"))
    live = LiveServer(store, encryption=Encryption(Keys(KeyFile(key_files[0]), KeyFile(key_files[1]))))
    live.start()
    try:
        later = live.client()
        assert refusal(later.get_object, Bucket="bkt", Key="master") == (500, "InternalError")
        assert f"master key {by} is not in" in caplog.text
        assert refusal(later.get_object, Bucket="bkt", Key="named") == (400, "KMS.NotFoundException")
        assert later.head_bucket(Bucket="bkt")
    finally:
        live.stop()


# --- tampering, and what nobody may see -----------------------------------------------------------------------


def forge(store: Store, bucket: str, key: str, like: str, **changes: Any) -> None:
    """The object `like` of bucket `bkt` once more under another name, as somebody could write it into the directory."""
    with store.get("bkt", like) as reader:
        info, manifest = reader.info, reader.manifest
    chunks = changes.get("chunks", manifest.chunks())
    content = Content(changes.get("size", info.size), bytes(16), chunks=chunks, overhead=info.overhead)
    about = Description(attrs=info.attrs, checksums=info.checksums, checksum_type=info.checksum_type)
    parts = changes.get("parts", manifest.parts()) or None
    _, committer = store._core.writing()
    committer.execute(PutObject(bucket, key.encode(), content, about, parts=parts))


@pytest.mark.parametrize("mode", ENCRYPTED)
def test_an_object_that_was_cut_short_is_refused_before_its_first_byte(
    s3: Any, store: Store, mode: str
) -> None:
    s3.put_object(Bucket="bkt", Key="k", Body=os.urandom(3 << 20), **ASKS[mode])
    with store.get("bkt", "k") as reader:
        chunks = reader.manifest.chunks()
    forge(store, "bkt", "cut", "k", chunks=chunks[:2], size=2 << 20)
    assert refusal(s3.get_object, Bucket="bkt", Key="cut", **BRINGS[mode]) == (500, "InternalError")
    forge(store, "bkt", "whole", "k")
    assert s3.get_object(Bucket="bkt", Key="whole", **BRINGS[mode])["Body"].read()


@pytest.mark.parametrize("mode", ENCRYPTED)
def test_a_part_that_was_left_out_is_missed(s3: Any, store: Store, mode: str) -> None:
    upload(s3, mode, {1: os.urandom(PART), 2: os.urandom(PART), 3: b"end"})
    with store.get("bkt", "k") as reader:
        chunks, parts = reader.manifest.chunks(), reader.manifest.parts()
    for kept in ([0, 1], [0, 2], [1, 2]):
        chosen = [parts[at] for at in kept]
        left = [ref for at, ref in enumerate(chunks) if min(at // 5, 2) in kept]
        forge(store, "bkt", "cut", "k", chunks=left, parts=chosen, size=sum(part.size for part in chosen))
        assert refusal(s3.get_object, Bucket="bkt", Key="cut", **BRINGS[mode]) == (500, "InternalError")


@pytest.mark.parametrize("mode", ENCRYPTED)
def test_an_object_that_was_moved_into_another_bucket_does_not_open_there(
    s3: Any, store: Store, mode: str
) -> None:
    s3.put_object(Bucket="bkt", Key="k", Body=os.urandom(200_000), **ASKS[mode])
    s3.create_bucket(Bucket="mine")
    forge(store, "mine", "k", "k")
    refused = refusal(s3.get_object, Bucket="mine", Key="k", **BRINGS[mode])
    assert refused == ((400, "InvalidRequest") if mode == "SSE-C" else (500, "InternalError"))


def test_a_body_that_turns_out_bad_in_the_middle_is_cut_off_and_never_filled_up(
    server: LiveServer, s3: Any, store: Store
) -> None:
    s3.put_object(Bucket="bkt", Key="k", Body=os.urandom(3 << 20), **ASKS["AES256"])
    with store.get("bkt", "k") as reader:
        first, second, third = reader.manifest.chunks()
    forge(store, "bkt", "swapped", "k", chunks=[first, third, second])
    got = s3.get_object(Bucket="bkt", Key="swapped")
    with pytest.raises(Exception):  # noqa: B017 -- urllib3 has several names for a body that ends early
        got["Body"].read()


def test_no_key_is_in_a_log_an_error_or_the_store(
    server: LiveServer,
    s3: Any,
    store: Store,
    key_files: tuple[Path, Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, logger="cordwood")
    sent = base64.b64encode(KEY_A).decode()
    answers: list[Answer] = []
    for headers in (GOOD, {**GOOD, SSE: "AES256"}, {**GOOD, f"{SSE}-customer-key-md5": "x"}):
        answers.append(server.request("PUT", "/bkt/k", b"text", headers))
    answers.append(server.request("GET", "/bkt/k", b"", {**GOOD, f"{SSE}-customer-algorithm": "no"}))
    answers.append(server.request("GET", "/bkt/missing", b"", GOOD))
    answers.append(server.request("PUT", "/bkt/k?tagging", b"text", GOOD))
    upload(s3, "SSE-C", {1: b"text"}, "parts")
    s3.put_object(Bucket="bkt", Key="m", Body=b"text", **ASKS["AES256"])
    s3.put_object(Bucket="bkt", Key="n", Body=b"text", **ASKS["aws:kms"])
    kept = [
        line.split()[1] for file in key_files for line in file.read_text().splitlines() if "#" not in line
    ]
    secrets = [sent, *kept]
    told = caplog.text + "".join(str(answer.headers) + answer.body.decode() for answer in answers)
    files = b"".join(
        each.read_bytes() for each in store.path.rglob("*") if each.is_file() and each not in key_files
    )
    assert len(secrets) == 4
    for secret in secrets:
        raw = base64.b64decode(secret)
        assert secret not in told and raw.hex() not in told and repr(raw)[2:-1] not in told
        assert secret.encode() not in files and raw not in files


def test_the_store_is_sound_to_whoever_has_no_key(
    s3: Any, store: Store, key_files: tuple[Path, Path]
) -> None:
    for mode in ENCRYPTED:
        s3.put_object(Bucket="bkt", Key=mode, Body=os.urandom(100), **ASKS[mode])
        upload(s3, mode, {1: os.urandom(PART + 1), 2: b"end"}, f"{mode} parts")
    store.close()
    for file in key_files:
        file.unlink()
    report = check_store(store.path, data=True)
    assert report.is_clean, report.problems
