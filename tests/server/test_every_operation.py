"""What must be so of every operation of the model, whoever implements it: typed by the SDK, refused as AWS refuses."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from xml.etree import ElementTree

import pytest
from botocore import xform_name
from botocore.exceptions import ClientError

from tests.server.conftest import BOB, LiveServer

# Addressed to no bucket, or to an endpoint of its own.
ELSEWHERE = {"CreateBucket", "CreateSession", "ListBuckets", "ListDirectoryBuckets", "WriteGetObjectResponse"}
# The body names what is asked for, and the answer lists each key's refusal.
PER_KEY = {"DeleteObjects"}


def sample(shape: Any, name: str, given: dict[str, str]) -> Any:
    """The least value of a shape: required members only."""
    if name in given:
        return given[name]
    kind = shape.type_name
    if kind == "string":
        return shape.enum[0] if shape.enum else "abc".ljust(shape.metadata.get("min", 0), "c")
    if kind == "list":
        return [sample(shape.member, "", given)]
    if kind == "structure":
        names = shape.required_members or (list(shape.members)[:1] if shape.is_tagged_union else [])
        return {each: sample(shape.members[each], each, given) for each in names}
    plain = {"integer": 1, "long": 1, "boolean": True, "blob": b"x", "map": {"a": "b"}}
    return plain.get(kind, datetime(2030, 1, 1, tzinfo=UTC))


def operations(client: Any) -> list[str]:
    return [name for name in client.meta.service_model.operation_names if name not in ELSEWHERE]


def ask(client: Any, operation: str, bucket: str) -> tuple[int, dict[str, Any]]:
    """Status and error of the least request for this operation."""
    given = {
        "Bucket": bucket,
        "Key": "k",
        "CopySource": f"{bucket}/other",
        "RenameSource": f"/{bucket}/other",
        "ObjectOwnership": "ObjectWriter",
    }
    shape = client.meta.service_model.operation_model(operation).input_shape
    arguments = {name: sample(shape.members[name], name, given) for name in shape.required_members}
    try:
        answer = getattr(client, xform_name(operation))(**arguments)
    except ClientError as error:
        return error.response["ResponseMetadata"]["HTTPStatusCode"], error.response["Error"]
    return answer["ResponseMetadata"]["HTTPStatusCode"], {}


def test_every_operation_names_a_bucket_that_is_missing(server: LiveServer) -> None:
    client = server.client()
    wrong = {}
    for operation in operations(client):
        status, error = ask(client, operation, "no-such-bucket")
        named = (status, error.get("Code"), error.get("BucketName"))
        expected = (
            (404, "404", None) if operation.startswith("Head") else (404, "NoSuchBucket", "no-such-bucket")
        )
        if named != expected:
            wrong[operation] = named
    assert not wrong


@pytest.mark.parametrize("who", ["another owner", "nobody"])
def test_every_operation_keeps_strangers_out_of_a_private_bucket(two_owners: LiveServer, who: str) -> None:
    two_owners.client().create_bucket(Bucket="private")
    two_owners.client().put_object(Bucket="private", Key="k", Body=b"secret")
    client = two_owners.client(BOB)
    if who == "nobody":
        from botocore import UNSIGNED

        client = two_owners.client(BOB, signature_version=UNSIGNED)
    wrong = {}
    for operation in operations(client):
        status, error = ask(client, operation, "private")
        code = "403" if operation.startswith("Head") else "AccessDenied"
        if (status, error.get("Code")) != (403, code) and operation not in PER_KEY:
            wrong[operation] = (status, error.get("Code"))
    assert not wrong
    mine = two_owners.client()
    assert mine.get_object(Bucket="private", Key="k")["Body"].read() == b"secret"
    assert [each["Key"] for each in mine.list_object_versions(Bucket="private")["Versions"]] == ["k"]


@pytest.mark.parametrize(
    "query",
    ["", "acl", "cors", "encryption", "lifecycle", "object-lock", "ownershipControls", "policy",
     "publicAccessBlock", "replication", "tagging", "website"],
)  # fmt: skip
def test_every_error_document_has_the_elements_that_clients_read(
    server: LiveServer, s3: Any, query: str
) -> None:
    answer = server.request("GET", f"/missing?{query}" if query else "/missing")
    root = ElementTree.fromstring(answer.body)
    names = [child.tag for child in root]
    assert names[:2] == ["Code", "Message"] and names[-3:] == ["Resource", "RequestId", "HostId"]
    assert root.findtext("Resource") == "/missing" and root.findtext("BucketName") == "missing"
    assert root.findtext("HostId") == answer.headers["x-amz-id-2"]
    assert root.findtext("RequestId") == answer.headers["x-amz-request-id"]
