"""The S3 error catalogue: every code that this server can answer, in one table, and its XML form.

Must not know: trio, the engine, requests, handlers. Anything may import this module; it imports nothing of ours.

Invariants:
* A code that is not in the table cannot be raised: `s3_error` refuses it at once (our own mistake).
* The XML is well-formed whatever the message or the fields hold: characters that XML 1.0 forbids are replaced.

Source: "Error responses", Amazon S3 API Reference, and what AWS is seen to answer where that page is silent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# code -> (status, message)
CATALOGUE: dict[str, tuple[int, str]] = {
    "AccessDenied": (403, "Access Denied"),
    "AccessForbidden": (403, "Access forbidden"),
    "AnnotationLimitExceeded": (
        400,
        "The request would exceed the maximum number or size of annotations allowed per object.",
    ),
    "AnnotationNameTooLong": (400, "The annotation name exceeds 512 bytes."),
    "AccessControlListNotSupported": (400, "The bucket does not allow ACLs"),
    "AuthorizationHeaderMalformed": (400, "The authorization header that you provided is not valid."),
    "AuthorizationQueryParametersError": (400, "The authorization query parameters are not valid."),
    "BadDigest": (
        400,
        "The Content-MD5 or checksum value that you specified did not match what the server received.",
    ),
    "BadRequest": (400, "Bad Request"),
    "BucketAlreadyExists": (
        409,
        "The requested bucket name is not available. The bucket namespace is shared by all users of the system. "
        "Please select a different name and try again.",
    ),
    "BucketAlreadyOwnedByYou": (
        409,
        "Your previous request to create the named bucket succeeded and you already own it.",
    ),
    "BucketNotEmpty": (409, "The bucket you tried to delete is not empty"),
    "ConditionalRequestConflict": (
        409,
        "The conditional request cannot succeed due to a conflicting operation against this resource.",
    ),
    "CredentialsNotSupported": (400, "This request does not support credentials."),
    "EncryptionTypeMismatch": (
        400,
        "The existing object was created with a different encryption type.",
    ),
    "EntityTooLarge": (400, "Your proposed upload exceeds the maximum allowed size"),
    "EntityTooSmall": (400, "Your proposed upload is smaller than the minimum allowed size"),
    "ExpiredToken": (400, "The provided token has expired."),
    "IdempotencyParameterMismatch": (
        400,
        "Parameters on this idempotent request are inconsistent with parameters used in previous request(s).",
    ),
    "IllegalLocationConstraintException": (
        400,
        "The unspecified location constraint is incompatible for the region specific endpoint this request was "
        "sent to.",
    ),
    "IllegalVersioningConfigurationException": (
        400,
        "The versioning configuration specified in the request is not valid.",
    ),
    "IncompleteBody": (
        400,
        "You did not provide the number of bytes specified by the Content-Length HTTP header",
    ),
    "IncorrectNumberOfFilesInPostRequest": (400, "POST requires exactly one file upload per request."),
    "InlineDataTooLarge": (400, "The inline data exceeds the maximum allowed size."),
    "InternalError": (500, "We encountered an internal error. Please try again."),
    "InvalidAccessKeyId": (403, "The AWS Access Key Id you provided does not exist in our records."),
    "InvalidAnnotationName": (400, "The annotation name you provided is invalid."),
    "InvalidArgument": (400, "Invalid Argument"),
    "InvalidBucketAclWithObjectOwnership": (
        400,
        "Bucket cannot have ACLs set with ObjectOwnership's BucketOwnerEnforced setting",
    ),
    "InvalidBucketName": (400, "The specified bucket is not valid."),
    "InvalidBucketState": (409, "The request is not valid with the current state of the bucket."),
    "InvalidChunkSizeError": (403, "Only the last chunk is allowed to have a size less than 8192 bytes"),
    "InvalidDigest": (400, "The Content-MD5 you specified was invalid."),
    "InvalidEncryptionAlgorithmError": (
        400,
        "The encryption request that you specified is not valid. The valid value is AES256.",
    ),
    "InvalidLocationConstraint": (400, "The specified location-constraint is not valid"),
    "InvalidObjectState": (403, "The operation is not valid for the object's storage class"),
    "InvalidPart": (
        400,
        "One or more of the specified parts could not be found.  The part may not have been uploaded, or the "
        "specified entity tag may not match the part's entity tag.",
    ),
    "InvalidPartNumber": (416, "The requested partnumber is not satisfiable"),
    "InvalidPartOrder": (
        400,
        "The list of parts was not in ascending order. Parts must be ordered by part number.",
    ),
    "InvalidPolicyDocument": (
        400,
        "The content of the form does not meet the conditions specified in the policy document.",
    ),
    "InvalidPrefix": (400, "The annotation prefix you provided is invalid."),
    "InvalidRange": (416, "The requested range is not satisfiable"),
    "InvalidRedirectLocation": (
        400,
        "The website redirect location must have a prefix of 'http://' or 'https://' or '/'.",
    ),
    "InvalidRequest": (400, "Invalid Request"),
    "InvalidRetentionPeriod": (400, "The retention period specified is invalid."),
    "InvalidS3DestinationBucket": (
        400,
        "The destination bucket is not valid: it must be the ARN of a general purpose bucket.",
    ),
    "InvalidSecurity": (403, "The provided security credentials are not valid."),
    "InvalidStorageClass": (400, "The storage class you specified is not valid"),
    "InvalidTag": (400, "The tag provided was not a valid tag."),
    "InvalidToken": (400, "The provided token is malformed or otherwise not valid."),
    "InvalidURI": (400, "Couldn't parse the specified URI."),
    "InvalidWriteOffset": (
        400,
        "The write offset value that you specified does not match the current object size.",
    ),
    "KMS.NotFoundException": (400, "The specified key does not exist"),
    "KeyTooLongError": (400, "Your key is too long"),
    "MalformedACLError": (
        400,
        "The XML you provided was not well-formed or did not validate against our published schema",
    ),
    "MalformedPOSTRequest": (400, "The body of your POST request is not well-formed multipart/form-data."),
    "MalformedPolicy": (400, "Policy has invalid resource"),
    "MalformedXML": (
        400,
        "The XML you provided was not well-formed or did not validate against our published schema",
    ),
    "MalformedTrailerError": (
        400,
        "The request contained trailing data that was not well-formed or did not conform to our published schema.",
    ),
    "MaxMessageLengthExceeded": (400, "Your request was too big."),
    "MaxPostPreDataLengthExceededError": (
        400,
        "Your POST request fields preceding the upload file were too large.",
    ),
    "MetadataTooLarge": (400, "Your metadata headers exceed the maximum allowed metadata size"),
    "MethodNotAllowed": (405, "The specified method is not allowed against this resource."),
    "MissingAttachment": (400, "A SOAP attachment was expected, but none were found."),
    "MissingContentLength": (411, "You must provide the Content-Length HTTP header."),
    "MissingRequestBodyError": (400, "Request Body is empty"),
    "MissingSecurityHeader": (400, "Your request was missing a required header"),
    "NoSuchAnnotation": (404, "The specified annotation does not exist."),
    "NoSuchBucket": (404, "The specified bucket does not exist"),
    "NoSuchBucketPolicy": (404, "The bucket policy does not exist"),
    "NoSuchCORSConfiguration": (404, "The CORS configuration does not exist"),
    "NoSuchConfiguration": (404, "The specified configuration does not exist."),
    "NoSuchKey": (404, "The specified key does not exist."),
    "NoSuchLifecycleConfiguration": (404, "The lifecycle configuration does not exist"),
    "NoSuchObjectLockConfiguration": (404, "The specified object does not have a ObjectLock configuration"),
    "NoSuchPublicAccessBlockConfiguration": (404, "The public access block configuration was not found"),
    "NoSuchTagSet": (404, "The TagSet does not exist"),
    "NoSuchUpload": (
        404,
        "The specified upload does not exist. The upload ID may be invalid, or the upload may have been aborted "
        "or completed.",
    ),
    "NoSuchVersion": (404, "The specified version does not exist."),
    "NoSuchWebsiteConfiguration": (404, "The specified bucket does not have a website configuration"),
    "NotImplemented": (501, "A header you provided implies functionality that is not implemented"),
    "NotModified": (304, "Not Modified"),
    "ObjectLockConfigurationNotFoundError": (404, "Object Lock configuration does not exist for this bucket"),
    "OperationAborted": (
        409,
        "A conflicting conditional operation is currently in progress against this resource. Try again.",
    ),
    "OwnershipControlsNotFoundError": (404, "The bucket ownership controls were not found"),
    "PermanentRedirect": (
        301,
        "The bucket you are attempting to access must be addressed using the specified endpoint.",
    ),
    "PreconditionFailed": (412, "At least one of the pre-conditions you specified did not hold"),
    "QuotaExceeded": (403, "The quota of this bucket or account is exceeded."),
    "Redirect": (307, "Temporary redirect."),
    "ReplicationConfigurationNotFoundError": (404, "The replication configuration was not found"),
    "RequestHeaderSectionTooLarge": (
        400,
        "Your request header section exceeds the maximum allowed request header section size.",
    ),
    "RequestTimeTooSkewed": (
        403,
        "The difference between the request time and the current time is too large.",
    ),
    "RequestTimeout": (
        400,
        "Your socket connection to the server was not read from or written to within the timeout period.",
    ),
    "RequestURITooLong": (414, "The request URI is too long."),
    "ServerSideEncryptionConfigurationNotFoundError": (
        404,
        "The server side encryption configuration was not found",
    ),
    "ServiceUnavailable": (503, "Service is unable to handle request."),
    "SignatureDoesNotMatch": (
        403,
        "The request signature we calculated does not match the signature you provided. Check your key and "
        "signing method.",
    ),
    "SlowDown": (503, "Please reduce your request rate."),
    "StorageFull": (507, "The store has no space left for this request."),
    "TokenRefreshRequired": (400, "The provided token must be refreshed."),
    "TooManyBuckets": (400, "You have attempted to create more buckets than allowed"),
    "TooManyConfigurations": (
        400,
        "You are attempting to create a new configuration but have already reached the 1,000-configuration limit.",
    ),
    "TooManyParts": (
        400,
        "You have attempted to add more parts than the maximum of 10000 that are allowed for this object. Upload "
        "it anew to go on.",
    ),
    "UnexpectedContent": (400, "This request does not support content"),
    "UnresolvableGrantByEmailAddress": (
        400,
        "The email address you provided does not match any account on record.",
    ),
    "UnsupportedMediaType": (415, "The annotation payload is not valid UTF-8 encoded text."),
    "UnsupportedSignature": (400, "The provided request is signed with an unsupported signature version."),
    "UserAnnotationNameMustBeSpecified": (400, "You must specify a user annotation name."),
    "UserKeyMustBeSpecified": (
        400,
        "The bucket POST must contain the specified field name. If it is specified, check the order of the fields.",
    ),
    "XAmzContentChecksumMismatch": (
        400,
        "The provided checksum header does not match what was computed.",
    ),
    "XAmzContentSHA256Mismatch": (
        400,
        "The provided 'x-amz-content-sha256' header does not match what was computed.",
    ),
}


class S3Error(Exception):
    """One answer of the catalogue. `fields` become XML elements after Message; `headers` go on the response."""

    def __init__(
        self,
        code: str,
        status: int,
        message: str,
        headers: tuple[tuple[str, str], ...] = (),
        fields: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.status = status
        self.message = message
        self.headers = headers
        self.fields = fields


def s3_error(
    code: str, message: str | None = None, headers: Iterable[tuple[str, str]] = (), **extra_fields: object
) -> S3Error:
    """Build (not raise) the error `code`.

    Extra fields are XML elements: `key="a"` gives <Key>a</Key>, `bucket_name=` gives <BucketName>; a name that
    starts with an upper-case letter is taken literally (`AWSAccessKeyId=`). A field that is None is left out.
    """
    status, default_message = CATALOGUE[code]
    fields = tuple(
        (_element_name(name), str(value)) for name, value in extra_fields.items() if value is not None
    )
    return S3Error(code, status, default_message if message is None else message, tuple(headers), fields)


def render_error(error: S3Error, *, resource: str, request_id: str, host_id: str) -> bytes:
    """The error document. The caller leaves it out for HEAD and for 304 (RFC 9110 sections 9.3.2 and 15.4.5)."""
    parts = [
        '<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>',
        error.code,
        "</Code><Message>",
        escape_text(error.message).replace("&quot;", '"'),  # as AWS: clients look for conditions of policies
        "</Message>",
    ]
    named = set()
    for name, value in error.fields:
        named.add(name)
        parts.append(f"<{name}>{escape_text(value)}</{name}>")
    if "Resource" not in named:
        parts.append(f"<Resource>{escape_text(resource)}</Resource>")
    parts.append(
        f"<RequestId>{escape_text(request_id)}</RequestId><HostId>{escape_text(host_id)}</HostId></Error>"
    )
    return "".join(parts).encode("utf-8")


# What needs care in XML text: markup, CR (parsers turn it into LF), and what XML 1.0 (section 2.2) cannot carry at all.
_SPECIAL = re.compile('[&<>"\r\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]')
_ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "\r": "&#13;"}


def escape_text(text: str) -> str:
    """Text for an XML element or attribute; characters that XML forbids become U+FFFD."""
    if _SPECIAL.search(text) is None:
        return text
    return _SPECIAL.sub(lambda match: _ESCAPES.get(match.group(), "\ufffd"), text)


def _element_name(name: str) -> str:
    if name[0].isupper():
        return name
    return "".join(word.capitalize() for word in name.split("_"))
