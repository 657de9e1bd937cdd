"""Bucket policies as a pure function: what is refused, and what each part of a statement means."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from cordwood.server.app import _ASKED_FOR_EACH_KEY, _BESIDE, _OF_A_VERSION, _action
from cordwood.server.glob import matches, matches_with
from cordwood.server.handlers import HANDLERS
from cordwood.server.policy import MAX_BYTES, Principal, evaluate, parse
from cordwood.server.policy_actions import kinds
from cordwood.server.policy_conditions import PolicyError

ALICE = Principal("a" * 64, "alice")
NOBODY = Principal()


def document(**changes: Any) -> dict[str, Any]:
    statement = {
        "Effect": "Allow",
        "Principal": "*",
        "Action": "s3:GetObject",
        "Resource": "arn:aws:s3:::bkt/*",
    }
    statement.update(changes)
    return {
        "Version": "2012-10-17",
        "Statement": [{name: value for name, value in statement.items() if value is not None}],
    }


def verdict(
    policy: dict[str, Any],
    principal: Principal = ALICE,
    action: str = "s3:GetObject",
    resource: str = "bkt/key",
    **keys: Any,
) -> str:
    found = {name.replace("__", "/").replace("_", ":", 1).lower(): value for name, value in keys.items()}
    return evaluate(parse(json.dumps(policy), "bkt"), principal, action, resource, found.get)


def test_a_statement_that_names_no_resource_speaks_of_the_bucket_that_it_hangs_on() -> None:
    assert verdict(document(Resource=None)) == "allow"
    assert verdict(document(Resource=None, Effect="Deny"), resource="bkt") == "deny"


def test_a_service_is_meant_by_its_own_name_only() -> None:
    service = Principal(service="logging.s3.amazonaws.com")
    assert verdict(document(Principal={"Service": "logging.s3.amazonaws.com"}), service) == "allow"
    assert verdict(document(Principal={"Service": "other.s3.amazonaws.com"}), service) == "none"
    assert verdict(document(Principal={"AWS": "*"}), service) == "none"
    assert verdict(document(Principal={"Service": "logging.s3.amazonaws.com"})) == "none"


def under(condition: dict[str, Any], **keys: Any) -> bool:
    return verdict(document(Condition=condition), **keys) == "allow"


@pytest.mark.parametrize(
    "changes",
    [
        {"Effect": "Maybe"},
        {"Effect": None},
        {"Principal": None},
        {"Principal": "alice"},
        {"Principal": {"AWS": "arn:aws:iam::*:root"}},
        {"Principal": {"Planet": "x"}},
        {"Principal": None, "NotPrincipal": {"AWS": "x"}},
        {"NotPrincipal": "*"},
        {"Action": "ec2:Run"},
        {"Action": []},
        {"Action": 7},
        {"NotAction": "s3:GetObject"},
        {"Resource": "bkt/*"},
        {"Resource": "arn:aws:s3:::other/*"},
        {"Condition": []},
        {"Condition": {"StringSounds": {"s3:prefix": "a"}}},
        {"Condition": {"StringEquals": {"s3:flavour": "a"}}},
        {"Condition": {"NumericEquals": {"s3:max-keys": "ten"}}},
        {"Condition": {"IpAddress": {"aws:SourceIp": "10.0.0.0/99"}}},
        {"Condition": {"DateLessThan": {"aws:CurrentTime": "soon"}}},
        {"Condition": {"Bool": {"aws:SecureTransport": "perhaps"}}},
        {"Condition": {"StringEquals": {"s3:prefix": []}}},
        {"Condtion": {}},
    ],
)
def test_what_cannot_be_meant_is_refused_when_it_is_stored(changes: dict[str, Any]) -> None:
    with pytest.raises(PolicyError):
        parse(json.dumps(document(**changes)), "bkt")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        '{"Version": "2012-10-17"}',
        '{"Version": "1999-01-01", "Statement": []}',
        '{"Statement": []}',
        '{"Statement": {}, "Statement": {}}',
        "[" * 5000,
        " " * (MAX_BYTES + 1),
    ],
)
def test_what_is_no_policy_document_is_refused(text: str) -> None:
    with pytest.raises(PolicyError):
        parse(text, "bkt")


def test_silence_is_no_permission_and_a_deny_wins_over_any_allow() -> None:
    policy = document()
    assert verdict(policy) == "allow"
    assert verdict(policy, action="s3:PutObject") == "none"
    assert verdict(policy, resource="bkt") == "none"
    policy["Statement"].append(document(Effect="Deny", Resource="arn:aws:s3:::bkt/secret/*")["Statement"][0])
    assert verdict(policy) == "allow"
    assert verdict(policy, resource="bkt/secret/x") == "deny"


def test_a_principal_is_named_by_account_by_arn_or_as_everybody() -> None:
    account = "a" * 64
    for named in (
        {"AWS": account},
        {"AWS": [f"arn:aws:iam::{account}:root"]},
        {"AWS": f"arn:aws:iam::{account}:user/alice"},
        {"CanonicalUser": account},
    ):
        policy = document(Principal=named)
        assert verdict(policy) == "allow"
        assert verdict(policy, Principal("b" * 64, "bob")) == "none"
        assert verdict(policy, NOBODY) == "none"
    for everybody in ("*", {"AWS": "*"}, {"AWS": ["*"]}):
        assert verdict(document(Principal=everybody), NOBODY) == "allow"
    others = document(Effect="Deny", Principal=None, NotPrincipal={"AWS": account})
    assert verdict(others) == "none"
    assert verdict(others, NOBODY) == "deny"


def test_actions_and_resources_have_wildcards_and_exceptions() -> None:
    assert verdict(document(Action="S3:getobject")) == "allow"
    assert verdict(document(Action="s3:Get*"), action="s3:GetObjectTagging") == "allow"
    assert verdict(document(Action=None, NotAction=["s3:Delete*"]), action="s3:DeleteObject") == "none"
    assert verdict(document(Action=None, NotAction=["s3:Delete*"])) == "allow"
    assert verdict(document(Resource=None, NotResource="arn:aws:s3:::bkt/private/*")) == "allow"
    hidden = document(Resource=None, NotResource="arn:aws:s3:::bkt/private/*")
    assert verdict(hidden, resource="bkt/private/x") == "none"


def test_strings_are_compared_as_their_operators_say() -> None:
    assert under({"StringEquals": {"s3:prefix": ["a/", "b/"]}}, s3_prefix=["b/"])
    assert not under({"StringEquals": {"s3:prefix": "a/"}}, s3_prefix=["A/"])
    assert under({"StringEqualsIgnoreCase": {"s3:prefix": "a/"}}, s3_prefix=["A/"])
    assert under({"StringLike": {"s3:prefix": "home/?/*"}}, s3_prefix=["home/x/y"])
    assert not under({"StringNotLike": {"s3:prefix": "home/*"}}, s3_prefix=["home/x"])
    assert not under({"StringNotEquals": {"s3:prefix": ["a", "b"]}}, s3_prefix=["b"])
    assert under({"StringNotEquals": {"s3:prefix": ["a", "b"]}}, s3_prefix=["c"])


def test_a_key_that_is_missing_meets_only_negations_if_exists_and_null() -> None:
    assert not under({"StringEquals": {"s3:prefix": "a"}})
    assert under({"StringNotEquals": {"s3:prefix": "a"}})
    assert under({"StringEqualsIfExists": {"s3:prefix": "a"}})
    assert not under({"StringEqualsIfExists": {"s3:prefix": "a"}}, s3_prefix=["b"])
    assert under({"Null": {"s3:prefix": "true"}})
    assert not under({"Null": {"s3:prefix": True}}, s3_prefix=["a"])
    assert under({"Null": {"s3:prefix": "false"}}, s3_prefix=["a"])


def test_numbers_dates_booleans_and_addresses() -> None:
    assert under({"NumericLessThanEquals": {"s3:max-keys": 10}}, **{"s3_max-keys": ["10"]})
    assert not under({"NumericLessThan": {"s3:max-keys": "10"}}, **{"s3_max-keys": ["10"]})
    assert not under({"NumericLessThan": {"s3:max-keys": "10"}}, **{"s3_max-keys": ["many"]})
    now = {"aws_currenttime": ["2026-11-21T04:00:00+00:00"]}
    assert under({"DateGreaterThan": {"aws:CurrentTime": "2026-01-01T00:00:00Z"}}, **now)
    assert not under({"DateLessThan": {"aws:CurrentTime": "2026-01-01"}}, **now)
    assert under({"Bool": {"aws:SecureTransport": "false"}}, aws_securetransport=["false"])
    for address, is_inside in (
        ("10.1.2.3", True),
        ("::ffff:10.1.2.3", True),
        ("11.0.0.1", False),
        ("x", False),
    ):
        assert under({"IpAddress": {"aws:SourceIp": ["10.0.0.0/8"]}}, aws_sourceip=[address]) is is_inside
        assert (
            under({"NotIpAddress": {"aws:SourceIp": "10.0.0.0/8"}}, aws_sourceip=[address]) is not is_inside
        )


def test_quantifiers_over_keys_with_several_values() -> None:
    each = {"ForAllValues:StringEquals": {"s3:RequestObjectTagKeys": ["a", "b"]}}
    some = {"ForAnyValue:StringEquals": {"s3:RequestObjectTagKeys": ["a", "b"]}}
    assert under(each, s3_requestobjecttagkeys=["a", "b"])
    assert not under(each, s3_requestobjecttagkeys=["a", "c"])
    assert under(each)
    assert under(some, s3_requestobjecttagkeys=["a", "c"])
    assert not under(some, s3_requestobjecttagkeys=["c"])
    assert not under(some)


def test_a_variable_stands_for_its_value_and_never_for_a_wildcard() -> None:
    policy = document(Resource="arn:aws:s3:::bkt/${aws:username}/*")
    assert verdict(policy, resource="bkt/alice/x", aws_username=["alice"]) == "allow"
    assert verdict(policy, resource="bkt/bob/x", aws_username=["alice"]) == "none"
    assert verdict(policy, resource="bkt/bob/x", aws_username=["*"]) == "none"
    assert verdict(policy, resource="bkt/bob/x") == "none"
    assert verdict({**policy, "Version": "2008-10-17"}, resource="bkt/x/y", aws_username=["x"]) == "none"
    assert not matches_with("${s3:prefix}", "abc", lambda _: "\ufdd0")
    assert matches_with("${*}${?}${none, 'x'}", "*?x", lambda _: None)


def test_a_hostile_pattern_costs_no_more_than_its_length() -> None:
    started = time.monotonic()
    assert not matches("*a" * 500 + "b", "a" * 1024)
    assert matches("*a" * 500, "a" * 1024)
    assert time.monotonic() - started < 1


@pytest.mark.parametrize(
    ("pattern", "text", "is_match"),
    [
        ("a*", "a", True),
        ("*a", "ba", True),
        ("a*a", "a", False),
        ("a*a", "aa", True),
        ("a*b*c", "axxbyyc", True),
        ("a*b*c", "axxcyyb", False),
        ("a?c", "abc", True),
        ("a?c", "ac", False),
        ("*", "", True),
        ("*a?*", "xab", True),
        ("*a?*", "xa", False),
        ("a.c", "abc", False),
        ("*\n*", "x\ny", True),
    ],
)
def test_stars_and_question_marks(pattern: str, text: str, is_match: bool) -> None:
    assert matches(pattern, text) is is_match


@pytest.mark.parametrize(
    ("changes", "is_public"),
    [
        ({}, True),
        ({"Effect": "Deny"}, False),
        ({"Principal": {"AWS": "arn:aws:iam::1:root"}}, False),
        ({"Condition": {"IpAddress": {"aws:SourceIp": "10.0.0.0/32"}}}, False),
        ({"Condition": {"IpAddress": {"aws:SourceIp": "0.0.0.0/1"}}}, True),
        ({"Condition": {"StringLike": {"aws:SourceVpc": "vpc-*"}}}, True),
        ({"Condition": {"StringEquals": {"aws:SourceVpc": "vpc-1"}}}, False),
        ({"Condition": {"StringLike": {"s3:prefix": "a"}}}, True),
    ],
)
def test_public_is_what_aws_calls_so(changes: dict[str, Any], is_public: bool) -> None:
    assert parse(json.dumps(document(**changes)), "bkt").is_public is is_public


# --- what a policy of a bucket may name -----------------------------------------------------------------------

IN = "arn:aws:s3:::bkt/*"
ON = "arn:aws:s3:::bkt"


@pytest.mark.parametrize(
    "action", ["s3:GetObjekt", "s3:", "s3:????", "s3:*Obj??ect*", "s3:Abort?", "s4:GetObject"]
)
@pytest.mark.parametrize("element", ["Action", "NotAction"])
def test_an_action_that_does_not_exist_is_refused(element: str, action: str) -> None:
    document = {"Effect": "Deny", "Principal": "*", element: ["s3:PutObject", action], "Resource": [ON, IN]}
    with pytest.raises(PolicyError, match="Policy has invalid action"):
        parse(json.dumps({"Statement": document}), "bkt")


@pytest.mark.parametrize(
    ("action", "resource"),
    [
        ("s3:ListBucket", IN),
        ("s3:*Bucket", IN),
        (["s3:GetObject", "s3:ListBucket"], IN),
        ("s3:ListAllMyBuckets", [ON, IN]),
    ],
)
def test_an_action_that_cannot_be_done_to_any_resource_of_its_statement_is_refused(
    action: str | list[str], resource: str | list[str]
) -> None:
    document = {"Effect": "Allow", "Principal": "*", "Action": action, "Resource": resource}
    with pytest.raises(PolicyError, match="Action does not apply to any resource"):
        parse(json.dumps({"Statement": document}), "bkt")


@pytest.mark.parametrize(
    "statement",
    [
        {"Action": "*", "Resource": ON},
        {"Action": "s3:*", "Resource": IN},
        {"Action": "S3:getobject", "Resource": "arn:aws:s3:::bkt*"},
        {"Action": ["s3:Get*", "s3:ListBucket"], "Resource": [ON, IN]},
        {"Action": "s3:ListBucket", "Resource": "*"},
        {"NotAction": "s3:ListBucket", "Resource": IN},
        {"Action": "s3:PutObject", "Resource": ON},
        {"Action": "s3:ListBucket", "NotResource": IN},
    ],
)
def test_an_action_that_can_be_done_to_one_of_the_resources_is_taken(statement: dict[str, Any]) -> None:
    assert parse(json.dumps({"Statement": {"Effect": "Deny", "Principal": "*", **statement}}), "bkt")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("true", "Policies must be valid JSON and the first byte must be '{'"),
        ("{true}", "This policy contains invalid Json"),
        ('{"Statement": []}', "Could not parse the policy: Statement is empty!"),
        ("{}", "Missing required field Statement"),
    ],
)
def test_a_document_that_is_no_policy_is_refused_in_aws_s_words(text: str, message: str) -> None:
    with pytest.raises(PolicyError) as refused:
        parse(text, "bkt")
    assert str(refused.value) == message


def test_a_stored_policy_is_read_even_if_it_names_what_is_refused_today() -> None:
    document = {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObjekt", "Resource": IN}
    assert parse(json.dumps({"Statement": document}), None).statements


def test_every_action_that_a_request_is_judged_by_can_be_named_in_a_policy() -> None:
    judged = {*_OF_A_VERSION, *_OF_A_VERSION.values(), *_BESIDE.values()}
    judged |= {
        _action(entry.operation) for name, entry in HANDLERS.items() if name not in _ASKED_FOR_EACH_KEY
    }
    assert not sorted(action for action in judged if not kinds(action.lower()))
