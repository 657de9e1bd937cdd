"""Static websites: which configurations are taken, and what a browser gets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError

from cordwood.engine import Store
from tests.server.conftest import ALICE, BOB, Answer, LiveServer
from tests.server.test_logging import enable, let_in, records

DOMAIN = "s3-website.test"


@pytest.fixture
def server(store: Store) -> Iterator[LiveServer]:
    live = LiveServer(store, website_domains=(DOMAIN,), domains=("s3.test",))
    live.start()
    yield live
    live.stop()


SITE = {"IndexDocument": {"Suffix": "index.html"}, "ErrorDocument": {"Key": "error.html"}}


def allow(action: str, resource: str, effect: str = "Allow") -> dict[str, str]:
    return {"Effect": effect, "Principal": "*", "Action": action, "Resource": f"arn:aws:s3:::{resource}"}


def set_policy(s3: Any, *statements: dict[str, str]) -> None:
    document = {"Version": "2012-10-17", "Statement": list(statements)}
    s3.put_bucket_policy(Bucket="bkt", Policy=json.dumps(document))


def put(s3: Any, key: str, text: str | None = None, **more: Any) -> None:
    body = (text if text is not None else f"<h1>{key}</h1>").encode()
    s3.put_object(Bucket="bkt", Key=key, Body=body, ContentType="text/html", **more)


@pytest.fixture
def site(s3: Any) -> Any:
    """A client whose bucket `bkt` is a public website with a page, a folder and an error document."""
    s3.put_bucket_website(Bucket="bkt", WebsiteConfiguration=SITE)
    set_policy(s3, allow("s3:GetObject", "bkt/*"), allow("s3:ListBucket", "bkt"))
    for key in ("index.html", "error.html", "page.html", "docs/index.html"):
        put(s3, key)
    return s3


def visit(
    server: LiveServer,
    path: str = "/",
    *,
    method: str = "GET",
    host: str = f"bkt.{DOMAIN}",
    headers: dict[str, str] | None = None,
) -> Answer:
    return server.request(method, path, headers={"host": host, **(headers or {})}, credential=None)


def with_rules(s3: Any, *rules: dict[str, Any]) -> None:
    s3.put_bucket_website(Bucket="bkt", WebsiteConfiguration={**SITE, "RoutingRules": list(rules)})


def rule(condition: dict[str, str] | None = None, **redirect: str) -> dict[str, Any]:
    wanted: dict[str, Any] = {"Redirect": redirect}
    if condition is not None:
        wanted["Condition"] = condition
    return wanted


def on_error(code: str) -> dict[str, str]:
    return {"HttpErrorCodeReturnedEquals": code}


# --- configuration ------------------------------------------------------------------------------------------------


def test_what_was_configured_comes_back_until_it_is_deleted(s3: Any) -> None:
    def missing() -> str:
        with pytest.raises(ClientError) as unset:
            s3.get_bucket_website(Bucket="bkt")
        return str(unset.value.response["Error"]["Code"])

    assert missing() == "NoSuchWebsiteConfiguration"
    condition = {"KeyPrefixEquals": "a/", **on_error("404")}
    redirect = {"HostName": "h", "HttpRedirectCode": "302", "Protocol": "https", "ReplaceKeyWith": "b"}
    wanted = {**SITE, "RoutingRules": [{"Condition": condition, "Redirect": redirect}]}
    s3.put_bucket_website(Bucket="bkt", WebsiteConfiguration=wanted)
    got = s3.get_bucket_website(Bucket="bkt")
    del got["ResponseMetadata"]
    assert got == wanted
    moved = {"RedirectAllRequestsTo": {"HostName": "example.com", "Protocol": "https"}}
    s3.put_bucket_website(Bucket="bkt", WebsiteConfiguration=moved)
    assert s3.get_bucket_website(Bucket="bkt")["RedirectAllRequestsTo"] == moved["RedirectAllRequestsTo"]
    s3.delete_bucket_website(Bucket="bkt")
    assert missing() == "NoSuchWebsiteConfiguration"


@pytest.mark.parametrize(
    ("configuration", "code"),
    [
        ({"RedirectAllRequestsTo": {"HostName": "h"}, "IndexDocument": {"Suffix": "i"}}, "MalformedXML"),
        ({"RedirectAllRequestsTo": {"HostName": ""}}, "MalformedXML"),
        ({"RedirectAllRequestsTo": {"HostName": "h", "Protocol": "http2"}}, "InvalidRequest"),
        ({}, "InvalidArgument"),
        ({"ErrorDocument": {"Key": "e"}}, "InvalidArgument"),
        ({"IndexDocument": {"Suffix": ""}}, "InvalidArgument"),
        ({"IndexDocument": {"Suffix": "a/b"}}, "InvalidArgument"),
        ({**SITE, "RoutingRules": []}, "MalformedXML"),
        ({**SITE, "RoutingRules": [rule()]}, "MalformedXML"),
        ({**SITE, "RoutingRules": [rule({}, HostName="h")]}, "InvalidRequest"),
        ({**SITE, "RoutingRules": [rule(on_error("300"), HostName="h")]}, "InvalidRequest"),
        ({**SITE, "RoutingRules": [rule(on_error("4xx"), HostName="h")]}, "InvalidRequest"),
        ({**SITE, "RoutingRules": [rule(HttpRedirectCode="300")]}, "InvalidRequest"),
        ({**SITE, "RoutingRules": [rule(HttpRedirectCode="314x")]}, "InvalidRequest"),
        ({**SITE, "RoutingRules": [rule(Protocol="http2")]}, "InvalidRequest"),
        ({**SITE, "RoutingRules": [rule(HostName="")]}, "MalformedXML"),
        ({**SITE, "RoutingRules": [rule(ReplaceKeyWith="a", ReplaceKeyPrefixWith="b")]}, "InvalidRequest"),
        ({**SITE, "RoutingRules": [rule(HostName="h")] * 51}, "InvalidRequest"),
    ],
)
def test_a_configuration_that_cannot_be_carried_out_is_refused(
    s3: Any, configuration: dict[str, Any], code: str
) -> None:
    with pytest.raises(ClientError) as refused:
        s3.put_bucket_website(Bucket="bkt", WebsiteConfiguration=configuration)
    assert refused.value.response["Error"]["Code"] == code


def test_an_error_document_has_a_name(s3: Any, server: LiveServer) -> None:
    inner = "<IndexDocument><Suffix>i</Suffix></IndexDocument><ErrorDocument><Key></Key></ErrorDocument>"
    body = f"<WebsiteConfiguration>{inner}</WebsiteConfiguration>".encode()
    assert server.request("PUT", "/bkt?website", body).code == "InvalidArgument"


# --- pages --------------------------------------------------------------------------------------------------------


def test_index_documents_and_pages_are_served_to_everybody(site: Any, server: LiveServer) -> None:
    root = visit(server)
    assert (root.status, root.body, root.headers["content-type"]) == (
        200,
        b"<h1>index.html</h1>",
        "text/html",
    )
    assert visit(server, "/page.html").body == b"<h1>page.html</h1>"
    assert visit(server, "/docs/").body == b"<h1>docs/index.html</h1>"
    head = visit(server, "/page.html", method="HEAD")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == str(len("<h1>page.html</h1>"))
    assert visit(server, "/page.html", host=f"bkt.{DOMAIN}:{server.port}").status == 200


def test_a_folder_without_its_slash_is_redirected_to_it(site: Any, server: LiveServer) -> None:
    answer = visit(server, "/docs")
    assert (answer.status, answer.headers["location"], answer.body) == (302, "/docs/", b"")
    put(site, "sp ace/index.html")
    assert visit(server, "/sp%20ace").headers["location"] == "/sp%20ace/"
    put(site, "docs")
    assert visit(server, "/docs").status == 200


def test_conditions_and_ranges_are_those_of_the_page(site: Any, server: LiveServer) -> None:
    etag = visit(server, "/page.html").headers["etag"]
    assert visit(server, "/page.html", headers={"if-none-match": etag}).status == 304
    assert visit(server, "/page.html", headers={"if-match": '"other"'}).status == 412
    part = visit(server, "/page.html", headers={"range": "bytes=1-2"})
    assert (part.status, part.body) == (206, b"h1")


def test_neither_a_query_nor_a_signature_counts(site: Any, server: LiveServer) -> None:
    query = "versionId=x&acl&response-content-type=text/x&partNumber=7"
    assert visit(server, f"/page.html?{query}").headers["content-type"] == "text/html"
    put(site, "private.html")
    set_policy(site, allow("s3:GetObject", "bkt/*"), allow("s3:GetObject", "bkt/private*", "Deny"))
    for credential in (ALICE, BOB):
        host = {"host": f"bkt.{DOMAIN}"}
        assert server.request("GET", "/page.html", headers=host, credential=credential).status == 200
        assert server.request("GET", "/private.html", headers=host, credential=credential).status == 403


def test_only_reading_is_possible(site: Any, server: LiveServer) -> None:
    for method in ("PUT", "POST", "DELETE"):
        answer = visit(server, "/page.html", method=method)
        assert (answer.status, answer.headers["x-amz-error-code"]) == (405, "MethodNotAllowed")
        assert answer.headers["content-type"].startswith("text/html")
    assert visit(server, "/page.html").status == 200


def test_large_pages_are_streamed_and_other_hosts_still_speak_the_api(site: Any, server: LiveServer) -> None:
    put(site, "big.html", "x" * (3 << 20))
    assert len(visit(server, "/big.html").body) == 3 << 20
    assert b"<ListBucketResult" in visit(server, "/", host="bkt.s3.test").body


# --- errors -------------------------------------------------------------------------------------------------------


def test_a_missing_page_shows_the_sites_own_error_document(site: Any, server: LiveServer) -> None:
    answer = visit(server, "/none", headers={"range": "bytes=0-1", "if-match": "x"})
    assert (answer.status, answer.body) == (404, b"<h1>error.html</h1>")
    assert answer.headers["x-amz-error-code"] == "NoSuchKey"
    head = visit(server, "/none", method="HEAD")
    assert (head.status, head.body) == (404, b"")


def test_without_an_error_document_the_error_is_a_page_of_its_own(site: Any, server: LiveServer) -> None:
    site.delete_object(Bucket="bkt", Key="error.html")
    answer = visit(server, "/%3Cscript%3E")
    assert answer.status == 404
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert b"<h1>404 Not Found</h1>" in answer.body
    assert b"<li>Code: NoSuchKey</li>" in answer.body
    assert b"<li>Key: &lt;script&gt;</li>" in answer.body
    assert b"Custom Error Document" in answer.body
    assert b"<script>" not in answer.body


def test_buckets_and_configurations_that_are_missing_are_told(s3: Any, server: LiveServer) -> None:
    nobody = visit(server, host=f"nobody.{DOMAIN}")
    assert (nobody.status, nobody.headers["x-amz-error-code"]) == (404, "NoSuchBucket")
    assert b"<li>BucketName: nobody</li>" in nobody.body
    plain = visit(server)
    assert (plain.status, plain.headers["x-amz-error-code"]) == (404, "NoSuchWebsiteConfiguration")
    assert visit(server, host=f".outbox.{DOMAIN}").status == 404


def test_who_may_not_list_is_not_told_what_is_missing(site: Any, server: LiveServer) -> None:
    set_policy(site, allow("s3:GetObject", "bkt/*"))
    answer = visit(server, "/none")
    assert (answer.status, answer.body) == (403, b"<h1>error.html</h1>")
    assert visit(server, "/docs").status == 302
    site.delete_bucket_policy(Bucket="bkt")
    private = visit(server, "/page.html")
    assert (private.status, private.headers["x-amz-error-code"]) == (403, "AccessDenied")
    assert b"<h1>error.html" not in private.body
    assert visit(server, "/docs").status == 403
    site.put_object_acl(Bucket="bkt", Key="page.html", ACL="public-read")
    assert visit(server, "/page.html").status == 200


def test_paths_that_are_no_keys_are_errors_in_html(site: Any, server: LiveServer) -> None:
    for path in ("/" + "x" * 1100, "/a%00b"):
        answer = visit(server, path)
        assert answer.status == 400
        assert answer.headers["content-type"].startswith("text/html")


# --- redirects ----------------------------------------------------------------------------------------------------


def test_a_site_that_has_moved_sends_everybody_on(s3: Any, server: LiveServer) -> None:
    moved = {"RedirectAllRequestsTo": {"HostName": "example.com", "Protocol": "https"}}
    s3.put_bucket_website(Bucket="bkt", WebsiteConfiguration=moved)
    answer = visit(server, "/a%20b/c?x=1&y=%20")
    assert (answer.status, answer.headers["location"]) == (301, "https://example.com/a%20b/c?x=1&y=%20")
    assert answer.body == b""
    del moved["RedirectAllRequestsTo"]["Protocol"]
    s3.put_bucket_website(Bucket="bkt", WebsiteConfiguration=moved)
    assert visit(server).headers["location"] == "http://example.com/"


def test_an_object_may_redirect_on_the_website_and_only_there(site: Any, server: LiveServer) -> None:
    put(site, "old.html", WebsiteRedirectLocation="/new.html")
    put(site, "away.html", "x" * 300_000, WebsiteRedirectLocation="https://example.com/x y")
    answer = visit(server, "/old.html")
    assert (answer.status, answer.headers["location"], answer.body) == (301, "/new.html", b"")
    assert visit(server, "/away.html").headers["location"] == "https://example.com/x%20y"
    assert visit(server, "/old.html", method="HEAD").status == 301
    direct = site.get_object(Bucket="bkt", Key="old.html")
    assert direct["WebsiteRedirectLocation"] == "/new.html"
    with pytest.raises(ClientError) as refused:
        put(site, "bad.html", WebsiteRedirectLocation="javascript:alert(1)")
    assert refused.value.response["Error"]["Code"] == "InvalidRedirectLocation"


def test_routing_rules_redirect_by_prefix(site: Any, server: LiveServer) -> None:
    here = f"http://bkt.{DOMAIN}"
    with_rules(
        site,
        rule({"KeyPrefixEquals": "docs/"}, ReplaceKeyPrefixWith="documents/"),
        rule({"KeyPrefixEquals": "images/"}, ReplaceKeyWith="gone.html", HttpRedirectCode="307"),
        rule({"KeyPrefixEquals": "far/"}, HostName="example.com", Protocol="https"),
        rule({"KeyPrefixEquals": "app/"}, ReplaceKeyPrefixWith="#!/"),
    )
    found = {
        path: (answer.status, answer.headers.get("location"))
        for path in ("/docs/", "/docs/a%20b", "/images/x", "/far/y?q=1", "/app/z", "/page.html")
        for answer in (visit(server, path),)
    }
    assert found == {
        "/docs/": (301, f"{here}/documents/"),
        "/docs/a%20b": (301, f"{here}/documents/a%20b"),
        "/images/x": (307, f"{here}/gone.html"),
        "/far/y?q=1": (301, "https://example.com/far/y"),
        "/app/z": (301, f"{here}/#!/z"),
        "/page.html": (200, None),
    }


def test_routing_rules_redirect_by_error(site: Any, server: LiveServer) -> None:
    with_rules(
        site,
        rule(
            {"KeyPrefixEquals": "images/", **on_error("404")},
            HostName="report.test",
            ReplaceKeyPrefixWith="404/",
        ),
        rule(on_error("403"), ReplaceKeyWith="login.html", HttpRedirectCode="302"),
    )
    missing = visit(server, "/images/x")
    assert (missing.status, missing.headers["location"]) == (301, "http://report.test/404/x")
    assert visit(server, "/elsewhere").status == 404
    assert visit(server, "/page.html").status == 200
    site.delete_bucket_policy(Bucket="bkt")
    forbidden = visit(server, "/page.html")
    assert (forbidden.status, forbidden.headers["location"]) == (302, f"http://bkt.{DOMAIN}/login.html")


def test_no_location_can_break_out_of_its_header(site: Any, server: LiveServer) -> None:
    with_rules(site, rule({"KeyPrefixEquals": "x/"}, ReplaceKeyPrefixWith="y\té/"))
    answer = visit(server, "/x/%0d%0aset-cookie:%20a=b")
    assert answer.status == 301
    assert "set-cookie" not in answer.headers
    assert answer.headers["location"].endswith("/y%09%C3%A9/%0D%0Aset-cookie:%20a=b")


# --- together with the rest ---------------------------------------------------------------------------------------


def test_pages_of_other_origins_read_as_far_as_the_cors_rules_let_them(site: Any, server: LiveServer) -> None:
    rules = [{"AllowedMethods": ["GET"], "AllowedOrigins": ["https://app.test"]}]
    site.put_bucket_cors(Bucket="bkt", CORSConfiguration={"CORSRules": rules})
    mine = visit(server, "/page.html", headers={"origin": "https://app.test"})
    assert mine.headers["access-control-allow-origin"] == "https://app.test"
    other = visit(server, "/page.html", headers={"origin": "https://other.test"})
    assert "access-control-allow-origin" not in other.headers
    asked = {"origin": "https://app.test", "access-control-request-method": "GET"}
    assert visit(server, "/page.html", method="OPTIONS", headers=asked).status == 200


def test_visits_are_logged_as_such(site: Any, server: LiveServer) -> None:
    site.create_bucket(Bucket="logs")
    let_in(site, "logs")
    enable(site)
    visit(server, "/page.html", headers={"referer": "https://from.test/"})
    visit(server, "/none")
    page, missing = records(server, site)
    assert (page["operation"], page["key"], page["status"]) == ("WEBSITE.GET.OBJECT", "page.html", "200")
    assert (page["requester"], page["referer"]) == ("-", '"https://from.test/"')
    assert (missing["status"], missing["error"], missing["key"]) == ("404", "NoSuchKey", "none")


def test_a_bucket_whose_requesters_pay_has_no_site(store: Store) -> None:
    live = LiveServer(store, (ALICE, BOB), website_domains=(DOMAIN,))
    live.start()
    try:
        s3 = live.client()
        s3.create_bucket(Bucket="bkt")
        s3.put_bucket_website(Bucket="bkt", WebsiteConfiguration=SITE)
        set_policy(s3, allow("s3:GetObject", "bkt/*"))
        put(s3, "page.html")
        assert visit(live, "/page.html").status == 200
        s3.put_bucket_request_payment(Bucket="bkt", RequestPaymentConfiguration={"Payer": "Requester"})
        assert visit(live, "/page.html").status == 403
    finally:
        live.stop()


def test_no_page_is_taken_for_another_type_than_it_was_stored_as(site: Any, server: LiveServer) -> None:
    for path in ("/", "/page.html", "/none", "/docs"):
        assert visit(server, path).headers["x-content-type-options"] == "nosniff", path
