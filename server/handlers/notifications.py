"""The notification configuration of a bucket: which events are told to whom.

Must not know: how messages are made, kept and delivered.
Invariants:
* A destination is an ARN that the operator has given a target; nobody who owns a bucket can make the server connect to
  a place of his choice.
* No event fits two rules of a stored configuration.
* The trial message of a new configuration is committed together with it.

Source: PutBucketNotificationConfiguration, Amazon S3 API Reference.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any, Final

from cordwood.server.config_values import kind_of_arn
from cordwood.server.handlers.ingest import receive_structure
from cordwood.server.handlers.request import Request, handles
from cordwood.server.notifications import NOTIFICATION, Rule, overlapping, rules_of, topic_of, trial
from cordwood.server.wire.errors import S3Error, s3_error
from cordwood.server.wire.interpret import respond
from cordwood.server.wire.message import Response

MAX_RULES: Final = 100
MAX_FILTER_BYTES: Final = 1024
MAX_ID_CHARACTERS: Final = 255

# kind -> (member of the document, member of the ARN in it)
_KINDS: Final = {
    "Topic": ("TopicConfigurations", "TopicArn"),
    "Queue": ("QueueConfigurations", "QueueArn"),
    "CloudFunction": ("LambdaFunctionConfigurations", "LambdaFunctionArn"),
}
_NAMES: Final = {"Topic": "topic", "Queue": "queue", "CloudFunction": "Lambda function"}


@handles("GetBucketNotificationConfiguration")
async def get_bucket_notification_configuration(request: Request) -> Response:
    assert request.bucket_info is not None
    stored = request.bucket_info.attrs.get(NOTIFICATION)
    if stored is None:
        return respond(request.operation, {})
    members: dict[str, Any] = {}
    for rule in rules_of(stored):
        member, arn_member = _KINDS[rule.kind]
        shown: dict[str, Any] = {
            "Id": rule.id,
            arn_member: rule.arn,
            "Events": [f"s3:{event}" for event in rule.events],
        }
        filters = [("Prefix", rule.prefix), ("Suffix", rule.suffix)]
        rules = [{"Name": name, "Value": value} for name, value in filters if value]
        if rules:
            shown["Filter"] = {"Key": {"FilterRules": rules}}
        members.setdefault(member, []).append(shown)
    if stored["eventbridge"]:
        members["EventBridgeConfiguration"] = {}
    return respond(request.operation, members)


@handles(
    "PutBucketNotificationConfiguration", "NotificationConfiguration SkipDestinationValidation", has_body=True
)
async def put_bucket_notification_configuration(request: Request) -> Response:
    document = await receive_structure(request)
    rules = [
        _rule(kind, entry, arn_member)
        for kind, (member, arn_member) in _KINDS.items()
        for entry in document.get(member, ())
    ]
    if len(rules) > MAX_RULES:
        raise _bad(f"A notification configuration has at most {MAX_RULES} rules.")
    if len({rule.id for rule in rules}) < len(rules):
        raise _bad("Same ID used for multiple configurations. IDs must be unique.")
    if overlapping(rules):
        raise _bad(
            "Configuration is ambiguously defined. Cannot have overlapping suffixes in two rules if the prefixes are "
            "overlapping for the same event type."
        )
    has_bus = "EventBridgeConfiguration" in document
    is_checked = not request.params.get("SkipDestinationValidation")
    if is_checked:
        _check_destinations(request, rules, has_bus=has_bus)
    configuration: dict[str, Any] | None = None
    if rules or has_bus:
        configuration = {"rules": [rule.dumped() for rule in rules], "eventbridge": has_bus}
    service, head = request.service, request.head

    body = trial(request.bucket, head.request_id, head.host_id, time.time())
    arns = dict.fromkeys(rule.arn for rule in rules if rule.kind in ("Topic", "Queue"))
    store = service.announcer.saying((topic_of(arn), body) for arn in arns if is_checked)
    await service.bridge.run(lambda: store.update_bucket(request.bucket, attrs={NOTIFICATION: configuration}))
    return respond(request.operation, {})


def _bad(message: str, **fields: Any) -> S3Error:
    return s3_error("InvalidArgument", message, **fields)


def _rule(kind: str, entry: dict[str, Any], arn_member: str) -> Rule:
    name = entry.get("Id") or secrets.token_urlsafe(36)
    if len(name) > MAX_ID_CHARACTERS:
        raise _bad(f"ID length should not exceed allowed limit of {MAX_ID_CHARACTERS}")
    arn = entry[arn_member]
    if kind_of_arn(arn) != kind:
        raise _bad("The ARN is not well formed", argument_name=_NAMES[kind], argument_value=arn)
    values = {"prefix": "", "suffix": ""}
    seen = set()
    for rule in entry.get("Filter", {}).get("Key", {}).get("FilterRules", ()):
        if "Name" not in rule:
            raise _bad("filter rule name must be either prefix or suffix")
        if rule["Name"] in seen:
            raise _bad(f"Cannot specify more than one {rule['Name']} rule in a filter.")
        seen.add(rule["Name"])
        value = rule.get("Value", "")
        if len(value.encode()) > MAX_FILTER_BYTES:
            raise _bad(f"filter value cannot exceed {MAX_FILTER_BYTES} characters")
        values[rule["Name"]] = value
    events = tuple(dict.fromkeys(event.removeprefix("s3:") for event in entry["Events"]))
    return Rule(kind, name, arn, events, values["prefix"], values["suffix"])


def _check_destinations(request: Request, rules: Sequence[Rule], *, has_bus: bool) -> None:
    targets = request.service.announcer.targets
    wrong = [
        (rule.arn, f"The destination {_NAMES[rule.kind]} does not exist")
        for rule in rules
        if rule.arn not in targets
    ]
    if has_bus and not any(kind_of_arn(arn) == "EventBridge" for arn in targets):
        wrong.append(("EventBridgeConfiguration", "This server has no target for an event bus"))
    if not wrong:
        return
    fields = {}
    for number, (name, value) in enumerate(wrong, 1):
        fields[f"ArgumentName{number}"] = name
        fields[f"ArgumentValue{number}"] = value
    raise _bad("Unable to validate the following destination configurations", **fields)
