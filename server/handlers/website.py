"""The website configuration of a bucket.

Must not know: how a site is served.
Invariant: what is stored can be carried out: every redirect has a place to go to and a code that redirects.

Source: PutBucketWebsite, Amazon S3 API Reference.
"""

from __future__ import annotations

from typing import Any, Final

from cordwood.server.handlers.ingest import receive_structure
from cordwood.server.handlers.request import Request, handles
from cordwood.server.website import WEBSITE
from cordwood.server.wire.errors import S3Error, s3_error
from cordwood.server.wire.interpret import respond
from cordwood.server.wire.message import Response
from cordwood.server.wire.xml import malformed

MAX_RULES: Final = 50


@handles("GetBucketWebsite")
async def get_bucket_website(request: Request) -> Response:
    assert request.bucket_info is not None
    configuration = request.bucket_info.attrs.get(WEBSITE)
    if configuration is None:
        raise s3_error("NoSuchWebsiteConfiguration", bucket_name=request.bucket)
    return respond(request.operation, configuration)


@handles("PutBucketWebsite", "WebsiteConfiguration", has_body=True)
async def put_bucket_website(request: Request) -> Response:
    configuration = await receive_structure(request)
    _check(configuration)
    await _set(request, configuration)
    return respond(request.operation, {})


@handles("DeleteBucketWebsite")
async def delete_bucket_website(request: Request) -> Response:
    await _set(request, None)
    return respond(request.operation, {})


async def _set(request: Request, configuration: dict[str, Any] | None) -> None:
    store = request.service.store
    await request.service.bridge.run(
        lambda: store.update_bucket(request.bucket, attrs={WEBSITE: configuration})
    )


def _invalid(message: str) -> S3Error:
    return s3_error("InvalidRequest", message)


def _check(configuration: dict[str, Any]) -> None:
    moved = configuration.get("RedirectAllRequestsTo")
    if moved is not None:
        if len(configuration) > 1:
            raise malformed("RedirectAllRequestsTo stands alone")
        if not moved["HostName"]:
            raise malformed("RedirectAllRequestsTo needs a HostName")
        return
    index = configuration.get("IndexDocument")
    if index is None:
        raise s3_error(
            "InvalidArgument",
            "A value for IndexDocument Suffix must be provided if RedirectAllRequestsTo is empty",
            argument_name="IndexDocument",
            argument_value="null",
        )
    if not index["Suffix"] or "/" in index["Suffix"]:
        raise s3_error(
            "InvalidArgument",
            "The IndexDocument Suffix is not well formed",
            argument_name="IndexDocument",
            argument_value=index["Suffix"],
        )
    if "ErrorDocument" in configuration and not configuration["ErrorDocument"]["Key"]:
        raise s3_error(
            "InvalidArgument",
            "The ErrorDocument Key is not well formed",
            argument_name="ErrorDocument",
            argument_value="",
        )
    if "RoutingRules" in configuration:
        rules = configuration["RoutingRules"]
        if not rules:
            raise malformed("RoutingRules hold at least one rule")
        if len(rules) > MAX_RULES:
            raise _invalid(
                f"{len(rules)} routing rules provided, the number of routing rules in a website configuration is "
                f"limited to {MAX_RULES}."
            )
        for rule in rules:
            _check_condition(rule.get("Condition"))
            _check_redirect(rule["Redirect"])


def _check_condition(condition: dict[str, Any] | None) -> None:
    if condition is None:
        return
    if not condition:
        raise _invalid(
            "Condition cannot be empty. To redirect all requests without a condition, the condition element shouldn't "
            "be present."
        )
    code = condition.get("HttpErrorCodeReturnedEquals")
    if code is not None and not (_is_code(code) and code[0] in "45"):
        raise _invalid(f"The provided HTTP error code ({code}) is not valid. Valid codes are 4XX or 5XX.")


def _check_redirect(redirect: dict[str, Any]) -> None:
    if not redirect:
        raise malformed("a Redirect says where to")
    if "ReplaceKeyWith" in redirect and "ReplaceKeyPrefixWith" in redirect:
        raise _invalid("You can only define ReplaceKeyPrefix or ReplaceKey but not both.")
    code = redirect.get("HttpRedirectCode")
    if code is not None and not (_is_code(code) and code[0] == "3" and code != "300"):
        raise _invalid(
            f"The provided HTTP redirect code ({code}) is not valid. Valid codes are 3XX except 300."
        )
    if redirect.get("HostName") == "":
        raise malformed("a HostName is not empty")


def _is_code(text: str) -> bool:
    return len(text) == 3 and text.isascii() and text.isdigit()
