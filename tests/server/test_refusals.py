"""What AWS answers to requests that cannot be meant: code, message and the elements that name the argument."""

from __future__ import annotations

import base64
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.server.conftest import ALICE, Answer, LiveServer

UNTIL = {"x-amz-object-lock-retain-until-date": "2999-01-01T00:00:00Z"}
MODE = {"x-amz-object-lock-mode": "GOVERNANCE"}


@pytest.mark.parametrize(
    ("headers", "code", "message", "name"),
    [
        ({"x-amz-acl": "mine"}, "InvalidArgument", "The value of 'x-amz-acl' is not valid.", "x-amz-acl"),
        (
            {"x-amz-object-lock-legal-hold": "YES"},
            "InvalidArgument", "Legal Hold must be either of 'ON' or 'OFF'", "x-amz-object-lock-legal-hold",
        ),
        (
            {**UNTIL, "x-amz-object-lock-mode": "LAX"},
            "InvalidArgument", "Unknown wormMode directive.", "x-amz-object-lock-mode",
        ),
        (
            {**MODE, "x-amz-object-lock-retain-until-date": "tomorrow"},
            "InvalidArgument", "The retain until date must be provided in ISO 8601 format",
            "x-amz-object-lock-retain-until-date",
        ),
        (
            {**MODE, "x-amz-object-lock-retain-until-date": "1999-01-01T00:00:00Z"},
            "InvalidArgument", "The retain until date must be in the future!",
            "x-amz-object-lock-retain-until-date",
        ),
        (
            MODE,
            "InvalidArgument",
            "x-amz-object-lock-retain-until-date and x-amz-object-lock-mode must both be supplied",
            "x-amz-object-lock-retain-until-date",
        ),
        ({**MODE, **UNTIL}, "InvalidRequest", "Bucket is missing ObjectLockConfiguration", ""),
        ({"content-md5": "no md5"}, "InvalidDigest", "The Content-MD5 you specified was invalid.", ""),
        (
            {"x-amz-checksum-crc16": "AAA="},
            "InvalidRequest", "The algorithm type you specified in x-amz-checksum- header is invalid.", "",
        ),
        (
            {"x-amz-copy-source": "bkt/%zz"},
            "InvalidArgument", "Invalid copy source encoding", "x-amz-copy-source",
        ),
        (
            {"x-amz-copy-source": "bkt/%ff"},
            "InvalidArgument", "Invalid copy source encoding", "x-amz-copy-source",
        ),
        ({"x-amz-tagging": "=value"}, "InvalidArgument", None, "x-amz-tagging"),
        ({"x-amz-tagging": "key=%zz"}, "InvalidArgument", None, "x-amz-tagging"),
        ({"x-amz-tagging": "key=a%2"}, "InvalidArgument", None, "x-amz-tagging"),
    ],
)  # fmt: skip
def test_a_header_of_an_upload_that_makes_no_sense_is_named(
    server: LiveServer, s3: Any, headers: dict[str, str], code: str, message: str | None, name: str
) -> None:
    refused = server.request("PUT", "/bkt/k", b"text", headers)
    assert (refused.status, refused.code, refused.field("ArgumentName")) == (400, code, name)
    assert message is None or refused.field("Message") == message


def test_an_ownership_that_is_none_is_named(server: LiveServer) -> None:
    refused = server.request("PUT", "/new", headers={"x-amz-object-ownership": "mine"})
    assert refused.field("Message") == "Invalid x-amz-object-ownership header: mine"


def test_more_than_fifty_tags_of_a_bucket_are_a_bad_request(server: LiveServer, s3: Any) -> None:
    tags = "".join(f"<Tag><Key>{n}</Key><Value/></Tag>" for n in range(51))
    refused = server.request("PUT", "/bkt?tagging", f"<Tagging><TagSet>{tags}</TagSet></Tagging>".encode())
    assert (refused.code, refused.field("Message")) == (
        "BadRequest",
        "Bucket tag count cannot be greater than 50",
    )


def test_a_bucket_that_holds_versions_says_so_when_it_is_to_go(server: LiveServer, s3: Any) -> None:
    s3.put_bucket_versioning(Bucket="bkt", VersioningConfiguration={"Status": "Enabled"})
    s3.put_object(Bucket="bkt", Key="k")
    s3.delete_object(Bucket="bkt", Key="k")
    refused = server.request("DELETE", "/bkt")
    assert (refused.status, refused.code) == (409, "BucketNotEmpty")
    assert refused.field("Message").endswith("You must delete all versions in the bucket.")


@pytest.mark.parametrize(
    ("method", "target", "headers", "code", "message"),
    [
        (
            "GET", "/bkt/k?versions", {}, "InvalidRequest",
            "There is no such thing as the ?versions sub-resource for a key",
        ),
        (
            "GET", "/bkt/k?uploads", {}, "InvalidRequest",
            "Key is not expected for the GET method ?uploads subresource",
        ),
        (
            "PUT", "/bkt/k?partNumber=1", {}, "InvalidArgument",
            "This operation does not accept partNumber without uploadId",
        ),
        (
            "GET", "/bkt/k", {"x-amz-copy-source": "bkt/k"},
            "InvalidArgument", "You can only specify a copy source header for copy requests.",
        ),
        ("PUT", "//bkt/k", {}, "InvalidBucketName", "The specified bucket is not valid."),
    ],
)  # fmt: skip
def test_a_request_line_that_cannot_be_meant_is_refused(
    server: LiveServer, s3: Any, method: str, target: str, headers: dict[str, str], code: str, message: str
) -> None:
    refused = server.request(method, target, headers=headers)
    assert (refused.status, refused.code, refused.field("Message")) == (400, code, message)


@pytest.mark.parametrize(
    ("method", "target", "names"),
    [
        ("GET", "/bkt?versioning&acl", "acl, versioning"),
        ("PATCH", "/bkt?acl&versioning", "acl, versioning"),
        ("GET", "/absent?versions&acl&max-keys=x", "acl, versions"),
        ("GET", "/bkt?location&uploads", "location, uploads"),
        ("GET", "/bkt?partNumber=1&acl", "acl, partNumber"),
        ("PUT", "/bkt/k?cors&acl", "acl, cors"),
        ("GET", "/bkt/k?tagging&partNumber=1", "partNumber, tagging"),
        ("GET", "/bkt/k?annotationName=v&acl", "acl, annotationName"),
        ("DELETE", "/bkt/k?uploadId=u&tagging", "tagging, uploadId"),
    ],
)
def test_sub_resources_in_conflict_are_named_in_the_order_of_the_alphabet(
    server: LiveServer, s3: Any, method: str, target: str, names: str
) -> None:
    refused = server.request(method, target)
    assert (refused.status, refused.code) == (400, "InvalidArgument")
    assert refused.field("Message") == f"Conflicting query string parameters: {names}"
    assert refused.field("ArgumentName") == "ResourceType"
    assert refused.field("ArgumentValue") == names.partition(",")[0]
    assert server.request("HEAD", target).status == 400


@pytest.mark.parametrize(
    ("method", "target", "resource", "allowed"),
    [
        ("PATCH", "/bkt", "BUCKET", "DELETE, GET, HEAD, POST, PUT"),
        ("PUT", "/", "SERVICE", "GET"),
        ("PATCH", "/bkt?acl", "ACL", "GET, PUT"),
        ("PUT", "/bkt?delete", "MULTI_OBJECT_DELETE", "POST"),
        ("GET", "/bkt/k?delete", "MULTI_OBJECT_DELETE", "POST"),
        ("DELETE", "/bkt?versioning", "VERSIONING", "GET, PUT"),
        ("PATCH", "/bkt/k?versioning", "VERSIONING", "GET, PUT"),
        ("PUT", "/bkt/k?location", "LOCATION", "GET"),
        ("POST", "/bkt?tagging", "TAGGING", "DELETE, GET, PUT"),
        ("POST", "/bkt/k?tagging", "OBJECT_TAGGING", "DELETE, GET, PUT"),
        ("GET", "/bkt/k?encryption", "OBJECT_ENCRYPTION", "PUT"),
        ("GET", "/bkt/k?select&select-type=2", "SELECT", "POST"),
        ("GET", "/bkt?restore", "RESTORE", "POST"),
        ("GET", "/bkt?torrent", "TORRENT", "GET"),
        ("GET", "/bkt/k?partNumber=1&uploadId=u", "PART", "PUT"),
        ("PATCH", "/bkt?uploadId=u", "UPLOAD", "DELETE, GET, POST"),
        ("POST", "/bkt?metadataJournalTable", "BUCKET_METADATA_JOURNAL_TABLE_CONFIGURATION", "PUT"),
    ],
)
def test_a_method_that_a_resource_does_not_have_is_refused_with_the_name_of_the_resource(
    server: LiveServer, s3: Any, method: str, target: str, resource: str, allowed: str
) -> None:
    refused = server.request(method, target)
    assert (refused.status, refused.code) == (405, "MethodNotAllowed")
    assert (refused.field("Method"), refused.field("ResourceType")) == (method, resource)
    assert refused.headers["allow"] == allowed


def test_head_does_not_take_an_upload_for_its_object(server: LiveServer, s3: Any) -> None:
    s3.put_object(Bucket="bkt", Key="k", Body=b"x")
    for target in ("/bkt/k?uploadId=u", "/bkt/k?partNumber=1&uploadId=u", "/bkt/k?acl", "/bkt?uploadId=u"):
        refused = server.request("HEAD", target)
        assert (refused.status, refused.body) == (405, b"")


def test_a_part_or_an_upload_of_no_key_touches_no_bucket(server: LiveServer, s3: Any) -> None:
    for method in ("GET", "POST", "PUT", "DELETE"):
        for query in ("partNumber=1", "uploadId=u"):
            refused = server.request(method, f"/bkt?{query}")
            assert (refused.status, refused.code) == (400, "InvalidRequest")
    s3.head_bucket(Bucket="bkt")


@pytest.mark.parametrize(
    ("method", "target", "message", "name", "value"),
    [
        ("GET", "/bkt?versionId=x", "This operation does not accept a version-id.", "versionId", "x"),
        ("GET", "/bkt?versions&versionId=", "This operation does not accept a version-id.", "versionId", ""),
        ("DELETE", "/bkt?versionId=x", "This operation does not accept a version-id.", "versionId", "x"),
        (
            "GET", "/bkt/k?uploadId=u&versionId=null",
            "This operation does not accept a version-id.", "versionId", "null",
        ),
        ("GET", "/bkt?website=v", "The website parameter must not have a value", "website", "v"),
        (
            "GET", "/bkt/k?annotationName=v",
            "Unexpected query string parameter", "ResourceType", "annotationName",
        ),
        (
            "GET", "/bkt/k?partNumber=1.0",
            "Part number must be an integer between 1 and 10000, inclusive", "partNumber", "1.0",
        ),
        (
            "GET", "/bkt/k?partNumber",
            "Part number must be an integer between 1 and 10000, inclusive", "partNumber", "",
        ),
        ("GET", "/?bucket-region=zz", "Argument value zz is not a valid AWS Region", "bucket-region", ""),
        (
            "GET", "/?bucket-region=eu-west-1",
            "Requests with bucket-region specified must be made to the corresponding regional endpoint",
            "bucket-region", "",
        ),
    ],
)  # fmt: skip
def test_a_parameter_that_an_operation_does_not_take_is_named(
    server: LiveServer, s3: Any, method: str, target: str, message: str, name: str, value: str
) -> None:
    refused = server.request(method, target)
    assert (refused.status, refused.code) == (400, "InvalidArgument")
    assert (refused.field("Message"), refused.field("ArgumentName")) == (message, name)
    assert refused.field("ArgumentValue") == value


def test_of_wrong_names_of_attributes_the_first_is_named(server: LiveServer, s3: Any) -> None:
    names = {"x-amz-object-attributes": "ETag, etag,garbage"}
    refused = server.request("GET", "/bkt/k?attributes", headers=names)
    assert (refused.code, refused.field("ArgumentValue")) == ("InvalidArgument", "etag")


def test_a_checksum_mode_that_is_none_is_refused(server: LiveServer, s3: Any) -> None:
    refused = server.request("GET", "/bkt/k", headers={"x-amz-checksum-mode": "garbage"})
    assert (refused.status, refused.code) == (400, "InvalidRequest")
    assert refused.field("Message") == "Value for x-amz-checksum-mode header is invalid."


def test_a_wrong_content_md5_is_answered_with_the_right_one(server: LiveServer, s3: Any) -> None:
    """In the form in which clients send it."""
    sent = {"content-md5": "eV8yArF8trw9S3cdjGyerw=="}
    refused = server.request("PUT", "/bkt/k", b"hello", sent)
    assert (refused.status, refused.code) == (400, "BadDigest")
    assert refused.field("CalculatedDigest") == "XUFAKrxLKna5cZ2REBfFkg=="


def test_a_batch_with_an_empty_key_deletes_nothing(server: LiveServer, s3: Any) -> None:
    s3.put_object(Bucket="bkt", Key="k", Body=b"x")
    body = b"<Delete><Object><Key>k</Key></Object><Object><Key></Key></Object></Delete>"
    digest = base64.b64encode(hashlib.md5(body).digest()).decode()
    refused = server.request("POST", "/bkt?delete", body, {"content-md5": digest})
    assert (refused.status, refused.code) == (400, "UserKeyMustBeSpecified")
    s3.head_object(Bucket="bkt", Key="k")


# --- policies -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Action": "s3:GetObjekt"}, "Policy has invalid action"),
        ({"Action": "s3:ListBucket"}, "Action does not apply to any resource(s) in statement"),
        ({"Resource": "arn:aws:s3:::other/*"}, "Policy has invalid resource"),
        ({"Principal": {"AWS": "nobody"}}, "Invalid principal in policy"),
        ({"Principal": {"CanonicalUser": "nobody"}}, "Invalid principal in policy"),
        ({"Principal": ["*"]}, "Invalid principal in policy"),
        ({"Action": None}, "Missing required field Action"),
    ],
)
def test_a_policy_that_cannot_be_meant_is_malformed(
    server: LiveServer, s3: Any, changes: dict[str, Any], message: str
) -> None:
    statement = {
        "Effect": "Allow",
        "Principal": {"AWS": ALICE.owner_id},
        "Action": "s3:GetObject",
        "Resource": "arn:aws:s3:::bkt/*",
    }

    def put(changed: dict[str, Any]) -> Answer:
        document = {name: value for name, value in (statement | changed).items() if value is not None}
        return server.request("PUT", "/bkt?policy", json.dumps({"Statement": [document]}).encode())

    refused = put(changes)
    assert (refused.status, refused.code, refused.field("Message")) == (400, "MalformedPolicy", message)
    assert put({}).status == 204


# --- preflights -----------------------------------------------------------------------------------------------


def preflight(server: LiveServer, bucket: str, origin: str, method: str, names: str = "") -> Answer:
    return server.request(
        "OPTIONS",
        f"/{bucket}/k",
        headers={
            "origin": origin,
            "access-control-request-method": method,
            "access-control-request-headers": names,
        },
        credential=None,
    )


@pytest.mark.parametrize(
    ("bucket", "origin", "method", "names", "status", "message"),
    [
        ("bkt", "", "GET", "", 400, "Insufficient information. Origin request header needed."),
        ("bkt", "http://a", "get", "", 400, "Invalid Access-Control-Request-Method: get"),
        ("bkt", "http://a", "PATCH", "", 400, "Invalid Access-Control-Request-Method: PATCH"),
        (
            "bkt", "http://a", "GET", "date, a b", 400,
            'Access-Control-Request-Headers "a b" contains invalid character.',
        ),
        ("bkt", "http://a", "GET", "", 403, "CORSResponse: CORS is not enabled for this bucket."),
        ("absent", "http://a", "GET", "", 403, "CORSResponse: Bucket not found"),
    ],
)  # fmt: skip
def test_a_preflight_that_is_refused_says_why(
    server: LiveServer, s3: Any, bucket: str, origin: str, method: str, names: str, status: int, message: str
) -> None:
    refused = preflight(server, bucket, origin, method, names)
    assert (refused.status, refused.field("Message")) == (status, message)


@pytest.mark.parametrize("element", ["AllowedHeader", "ExposeHeader"])
def test_a_cors_rule_names_headers_that_can_be(server: LiveServer, s3: Any, element: str) -> None:
    document = (
        "<CORSConfiguration><CORSRule><AllowedOrigin>*</AllowedOrigin><AllowedMethod>GET</AllowedMethod>"
        f"<{element}>a/b</{element}></CORSRule></CORSConfiguration>"
    )
    refused = server.request("PUT", "/bkt?cors", document.encode())
    assert (refused.code, refused.field("Message")) == (
        "InvalidRequest",
        f'{element} "a/b" contains invalid character.',
    )


# --- uploads in parts -----------------------------------------------------------------------------------------


def begun(s3: Any, **checksum: str) -> tuple[str, str]:
    """An upload with one part, which has a CRC32 if the upload has: its id and the ETag of the part."""
    upload_id = s3.create_multipart_upload(Bucket="bkt", Key="k", **checksum)["UploadId"]
    part = s3.upload_part(
        Bucket="bkt", Key="k", UploadId=upload_id, PartNumber=1, Body=b"text",
        **({"ChecksumCRC32": CRC32_OF_TEXT} if checksum else {}),
    )  # fmt: skip
    return upload_id, part["ETag"]


CRC32_OF_TEXT = "O4unxw=="
SHA1 = "Kq5sNclPz7QV2+lfQIuc6R7oRu0="


@pytest.mark.parametrize(
    ("number", "checksums", "headers", "code", "message"),
    [
        (1, {"CRC32": "none"}, {}, "InvalidArgument", "Invalid Base64 or multiple checksums present in request"),
        (
            1, {"CRC32": CRC32_OF_TEXT, "SHA1": SHA1}, {},
            "InvalidArgument", "Invalid Base64 or multiple checksums present in request",
        ),
        (1, {"SHA1": SHA1}, {}, "BadDigest", "The sha1 you specified for part 1 did not match what we received."),
        (-4, {}, {}, "InvalidArgument", "PartNumber must be >= 1"),
        (
            1, {}, {"x-amz-mp-object-size": "-1"},
            "InvalidRequest", "Value for x-amz-mp-object-size header is less than zero: '-1'",
        ),
        (
            1, {}, {"x-amz-checksum-crc32": CRC32_OF_TEXT, "x-amz-checksum-sha1": SHA1},
            "InvalidRequest", "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed.",
        ),
    ],
)  # fmt: skip
def test_a_completion_that_cannot_be_meant_is_refused(
    server: LiveServer,
    s3: Any,
    number: int,
    checksums: dict[str, str],
    headers: dict[str, str],
    code: str,
    message: str,
) -> None:
    upload_id, etag = begun(s3, ChecksumAlgorithm="CRC32")
    said = "".join(f"<Checksum{name}>{value}</Checksum{name}>" for name, value in checksums.items())
    part = f"<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag>{said}</Part>"
    document = f"<CompleteMultipartUpload>{part}</CompleteMultipartUpload>".encode()
    refused = server.request("POST", f"/bkt/k?uploadId={upload_id}", document, headers)
    assert (refused.status, refused.code, refused.field("Message")) == (400, code, message)


def test_a_part_of_a_composite_checksum_brings_its_own(server: LiveServer, s3: Any) -> None:
    def put(upload_id: str) -> Answer:
        return server.request("PUT", f"/bkt/k?uploadId={upload_id}&partNumber=2", b"text")

    composite, _ = begun(s3, ChecksumAlgorithm="CRC32", ChecksumType="COMPOSITE")
    whole, _ = begun(s3, ChecksumAlgorithm="CRC32", ChecksumType="FULL_OBJECT")
    assert put(composite).field("Message") == (
        "Checksum Type mismatch occurred, expected checksum Type: crc32, actual checksum Type: null"
    )
    assert put(whole).status == 200


def test_every_one_of_several_completions_at_once_gets_the_same_answer(server: LiveServer, s3: Any) -> None:
    for _ in range(20):
        upload_id, etag = begun(s3)
        parts = {"Parts": [{"PartNumber": 1, "ETag": etag}]}
        with ThreadPoolExecutor(5) as pool:
            answers = [
                pool.submit(
                    s3.complete_multipart_upload,
                    Bucket="bkt",
                    Key="k",
                    UploadId=upload_id,
                    MultipartUpload=parts,
                )
                for _ in range(5)
            ]
        assert len({answer.result()["ETag"] for answer in answers}) == 1


def test_attributes_need_their_header(server: LiveServer, s3: Any) -> None:
    s3.put_object(Bucket="bkt", Key="k")
    for headers in ({}, {"x-amz-object-attributes": ""}):
        refused = server.request("GET", "/bkt/k?attributes", headers=headers)
        assert (refused.code, "is either missing or empty" in refused.field("Message")) == (
            "InvalidRequest",
            True,
        )


# --- object lock ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["retention", "legal-hold"])
def test_the_lock_of_a_missing_key_is_no_such_key_whatever_the_bucket_has(
    server: LiveServer, s3: Any, what: str
) -> None:
    assert server.request("GET", f"/bkt/absent?{what}").code == "NoSuchKey"
    s3.put_object(Bucket="bkt", Key="k")
    refused = server.request("GET", f"/bkt/k?{what}")
    assert refused.field("Message") == "Bucket is missing Object Lock Configuration"


def test_a_legal_hold_without_a_status_is_malformed_whatever_the_bucket_has(
    server: LiveServer, s3: Any
) -> None:
    assert server.request("PUT", "/bkt/k?legal-hold", b"<LegalHold/>").code == "MalformedXML"


def test_a_lock_configuration_needs_a_body(server: LiveServer, s3: Any) -> None:
    assert server.request("PUT", "/bkt?object-lock").code == "MissingRequestBodyError"


# --- access control lists -------------------------------------------------------------------------------------


def policy(grantee: str, *, owner: str = f"<ID>{ALICE.owner_id}</ID>", permission: str = "READ") -> bytes:
    return (
        f"<AccessControlPolicy><Owner>{owner}</Owner><AccessControlList><Grant>{grantee}"
        f"<Permission>{permission}</Permission></Grant></AccessControlList></AccessControlPolicy>"
    ).encode()


def grantee(kind: str = "CanonicalUser", inside: str = f"<ID>{ALICE.owner_id}</ID>") -> str:
    xsi = "http://www.w3.org/2001/XMLSchema-instance"
    return f'<Grantee xmlns:xsi="{xsi}" xsi:type="{kind}">{inside}</Grantee>'


@pytest.mark.parametrize(
    ("document", "code"),
    [
        (policy(grantee(), owner=""), "MalformedACLError"),
        (policy(grantee(), owner="<ID>nobody</ID>"), "InvalidArgument"),
        (policy(grantee(), permission="LOOK"), "MalformedACLError"),
        (policy(grantee("Someone")), "MalformedACLError"),
        (policy(grantee(inside="")), "MalformedACLError"),
        (b"<AccessControlPolicy>", "MalformedACLError"),
    ],
)
@pytest.mark.parametrize("path", ["/bkt", "/bkt/k"])
def test_a_list_that_cannot_be_meant_is_refused(
    server: LiveServer, s3: Any, path: str, document: bytes, code: str
) -> None:
    s3.put_object(Bucket="bkt", Key="k")
    assert server.request("PUT", f"{path}?acl", document).code == code


def test_a_list_is_given_in_one_way_only(server: LiveServer, s3: Any) -> None:
    def put(headers: dict[str, str], body: bytes = b"") -> Answer:
        return server.request("PUT", "/bkt?acl", body, headers)

    both = put({"x-amz-acl": "private", "x-amz-grant-read": "nobody"})
    assert both.field("Message") == "Specifying both Canned ACLs and Header Grants is not allowed"
    assert put({"x-amz-grant-read": "nobody"}, policy(grantee())).code == "UnexpectedContent"
    assert put({"x-amz-acl": "private"}, policy(grantee())).code == "UnexpectedContent"


def test_log_delivery_write_lets_the_log_delivery_group_write_and_read_the_list(
    server: LiveServer, s3: Any
) -> None:
    answer = server.request("PUT", "/bkt?acl", headers={"x-amz-acl": "log-delivery-write"})
    assert answer.status == 200
    made = server.request("PUT", "/logs", headers={"x-amz-acl": "log-delivery-write"})
    assert made.status == 200
    group = "http://acs.amazonaws.com/groups/s3/LogDelivery"
    for bucket in ("bkt", "logs"):
        grants = s3.get_bucket_acl(Bucket=bucket)["Grants"]
        assert [(each["Grantee"].get("URI"), each["Permission"]) for each in grants] == [
            (group, "WRITE"),
            (group, "READ_ACP"),
            (None, "FULL_CONTROL"),
        ]
    assert server.request("PUT", "/bkt/k", headers={"x-amz-acl": "log-delivery-write"}).status == 400
