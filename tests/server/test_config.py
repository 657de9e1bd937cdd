"""Settings: layers, types, errors, and the document that repeats the table."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cordwood.server.config import (
    SETTINGS,
    Address,
    ConfigError,
    Settings,
    describe,
    load,
    make_credential,
    markdown_table,
)
from cordwood.server.units import format_size, parse_duration_s, parse_size

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "operations.md"


def settings(file: Path | None = None, env: dict[str, str] | None = None, **flags: object) -> Settings:
    return load(flags={"dir": "/data", **flags}, environ=env or {}, config_file=file).settings


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "cordwood.toml"


def test_flags_beat_the_environment_which_beats_the_file_which_beats_the_defaults(file: Path) -> None:
    file.write_text('region = "file"\nlog_level = "debug"\nidle_timeout = "5s"\nvolume_size = "10MiB"\n')
    env = {"CORDWOOD_REGION": "env", "CORDWOOD_LOG_LEVEL": "error", "CORDWOOD_VOLUME_SIZE": ""}
    found = settings(file, env, region="flag")
    assert (found.region, found.log_level, found.idle_timeout) == ("flag", "error", 5.0)
    assert found.volume_size == 10 << 20, "an empty variable is not set"
    assert found.head_timeout == 30.0


def test_every_setting_can_be_given_in_every_layer(file: Path) -> None:
    """The same text in the file, the environment and a flag means the same."""
    texts = {
        "dir": "/d", "bind": "[::1]:80", "workers": "3", "anonymous": "true", "domain": "a.example,b.example",
        "website_domain": "site.example",
        "region": "r", "durability": "relaxed", "dedup": "false", "volume_size": "2GiB", "chunk_size": "64KiB",
        "inline_max": "1KiB", "head_cache_size": "4MiB",
        "head_timeout": "1s", "body_timeout": "500ms", "send_timeout": "2m", "idle_timeout": "1h",
        "stop_timeout": "0", "max_head_size": "8KiB", "max_header_count": "10", "max_connections": "7",
        "log_level": "warning", "log_format": "json", "access_log": "1", "access_key": "AK", "secret_key": "SK",
        "compaction_enabled": "false", "compaction_interval_hours": "0.5", "compaction_threshold": "0.2",
        "compaction_full_time": "23:59", "compaction_multipart_ttl_secs": "60", "compaction_grace": "1m",
        "compaction_rate": "1MiB", "compaction_dry_run": "true", "scrub_days": "7",
        "lifecycle_interval": "5m", "lifecycle_dry_run": "true", "lifecycle_day": "10s",
        "notification_queue_max": "9",
        "torrent_tracker": "http://tracker.example/announce",
        "bucket_logging_interval": "1m", "master_key_file": "/k/master", "kms_key_file": "/k/kms",
        "default_encryption": "AES256", "require_tls_for_customer_keys": "true",
    }  # fmt: skip
    assert set(texts) == {name for name, row in SETTINGS.items() if not row.is_file_only}
    file.write_text("".join(f'{name} = "{text}"\n' for name, text in texts.items()))
    by_file = load(flags={}, environ={}, config_file=file).settings
    by_env = load(flags={}, environ={SETTINGS[name].env: text for name, text in texts.items()}).settings
    by_flag = load(flags=texts, environ={}).settings
    assert by_file == by_env == by_flag
    assert by_flag.bind == Address("::1", 80) and by_flag.domain == ("a.example", "b.example")
    assert by_flag.body_timeout == 0.5 and by_flag.inline_max == 1024


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("volumesize = 1", ["'volumesize'", "cordwood.toml", "did you mean 'volume_size'?"]),
        ("zzz = 1", ["'zzz'", "valid are dir, bind"]),
        ('workers = "many"', ["workers in", "'many'", "expected auto or a whole number"]),
        ("anonymous = 3", ["anonymous in", "expected true or false"]),
        ('bind = "9000"', ["expected HOST:PORT"]),
        ('bind = "::1:9000"', ["expected HOST:PORT"]),
        ('bind = "a:99999"', ["expected HOST:PORT"]),
        ('volume_size = "10 parsecs"', ["expected a size"]),
        ("volume_size = -1", ["expected a size"]),
        ("volume_size = 10", ["from 1MiB to 1TiB"]),
        ('idle_timeout = "soon"', ["expected a duration"]),
        ('compaction_full_time = "2 am"', ["expected a time such as 02:00"]),
        ("compaction_threshold = 2", ["expected a number from 0 to 1"]),
        ('log_level = "loud"', ["expected one of debug, info, warning, error"]),
        ('inline_max = "1MiB"\nchunk_size = "64KiB"', ["inline_max", "chunk_size"]),
        ('volume_size = "1MiB"\nchunk_size = "1MiB"', ["volume_size", "two chunks"]),
        ('access_key = "A"', ["access_key in", "without secret_key in"]),
        ('access_key = "A/B"\nsecret_key = "s"', ["no '/'"]),
        ("[[credentials]]\naccess_key = 'A'", ["lacks secret_key"]),
        (
            "[[credentials]]\naccess_key = 'A'\nsecret = 'B'",
            ["unknown key 'secret'", "did you mean 'secret_key'?"],
        ),
        ("[credentials]\naccess_key = 'A'", ["[[credentials]]"]),
        ("region = ", ["not valid TOML"]),
    ],
)
def test_what_cannot_be_used_is_named_with_its_place_and_what_would_be_valid(
    file: Path, text: str, words: list[str]
) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        settings(file)
    for word in words:
        assert word in str(caught.value)


def test_a_misspelt_variable_is_an_error_but_those_of_the_client_are_not() -> None:
    with pytest.raises(
        ConfigError, match="CORDWOOD_WOKERS in the environment; did you mean 'CORDWOOD_WORKERS'"
    ):
        settings(env={"CORDWOOD_WOKERS": "2"})
    settings(env={"CORDWOOD_ENDPOINT": "http://x", "CORDWOOD_PROFILE": "p", "CORDWOOD_CONFIG": "c"})


def test_a_file_that_is_not_there_and_a_missing_directory_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        settings(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="no store directory"):
        load(flags={}, environ={})


def test_a_key_pair_comes_from_one_layer(file: Path) -> None:
    file.write_text('access_key = "FILE"\nsecret_key = "file-secret"\n')
    with pytest.raises(ConfigError, match="CORDWOOD_ACCESS_KEY is given without CORDWOOD_SECRET_KEY"):
        settings(file, {"CORDWOOD_ACCESS_KEY": "ENV"})
    found = settings(file, {"CORDWOOD_ACCESS_KEY": "ENV", "CORDWOOD_SECRET_KEY": "env-secret"})
    assert found.all_credentials() == (make_credential("ENV", "env-secret"),)


def test_several_owners_can_have_keys(file: Path) -> None:
    file.write_text(
        'access_key = "ONE"\nsecret_key = "1"\n'
        '[[credentials]]\naccess_key = "TWO"\nsecret_key = "2"\nowner_id = "someone"\ndisplay_name = "Some One"\n'
        '[[credentials]]\naccess_key = "THREE"\nsecret_key = "3"\n'
    )
    one, two, three = settings(file).all_credentials()
    assert (two.owner_id, two.display_name) == ("someone", "Some One")
    assert three.display_name == "THREE" and re.fullmatch("[0-9a-f]{64}", three.owner_id)
    assert len({one.owner_id, two.owner_id, three.owner_id}) == 3
    file.write_text(
        'access_key = "TWO"\nsecret_key = "1"\n[[credentials]]\naccess_key = "TWO"\nsecret_key = "2"\n'
    )
    with pytest.raises(ConfigError, match="give it once"):
        settings(file)


def test_domains_are_a_list_in_any_spelling(file: Path) -> None:
    file.write_text('domain = ["A.example", ".b.example"]')
    expected = ("a.example", "b.example")
    assert settings(file).domain == expected
    assert settings(domain=("a.example", "b.example")).domain == expected
    assert settings(domain=("a.example,b.example",)).domain == expected
    file.write_text("domain = [1]")
    with pytest.raises(ConfigError, match="list of domain names"):
        settings(file)


def test_no_secret_is_shown(file: Path) -> None:
    file.write_text("[[credentials]]\naccess_key = 'TWO'\nsecret_key = 'swordfish'\n")
    loaded = load(
        flags={"dir": "/d"},
        environ={"CORDWOOD_ACCESS_KEY": "A", "CORDWOOD_SECRET_KEY": "swordfish"},
        config_file=file,
    )
    shown = repr(loaded) + repr(loaded.settings.all_credentials()) + repr(describe(loaded))
    assert "swordfish" not in shown
    with pytest.raises(ConfigError) as caught:
        settings(env={"CORDWOOD_ACCESS_KEY": "A", "CORDWOOD_SECRET_KEY": "sword fish"})
    assert "fish" not in str(caught.value)


def test_sizes_and_durations_are_read_as_people_write_them() -> None:
    sizes = {
        "0": 0,
        "1048576": 1 << 20,
        "10MiB": 10 << 20,
        "10 mib": 10 << 20,
        "1M": 1 << 20,
        "1MB": 10**6,
        "1.5k": 1536,
    }
    assert {text: parse_size(text) for text in sizes} == sizes
    durations = {"30": 30.0, "500ms": 0.5, "30s": 30.0, "5m": 300.0, "2h": 7200.0, "1d": 86400.0}
    assert {text: parse_duration_s(text) for text in durations} == durations
    assert [format_size(n) for n in (0, 1000, 1024, 1 << 30, 3 << 19)] == [
        "0",
        "1000",
        "1KiB",
        "1GiB",
        "1536KiB",
    ]


def test_the_document_repeats_the_table_of_the_code() -> None:
    assert markdown_table() in DOCUMENT.read_text()


def test_notification_targets_come_from_the_file_and_hide_their_secrets(file: Path) -> None:
    file.write_text(
        '[[notification_targets]]\narn = "arn:aws:sqs:r:1:q"\nurl = "http://u:pw@h/x?token=t"\n'
        'authorization = "Bearer b"\nbatch = 5\ntimeout = "3s"\n'
        '[[notification_targets]]\narn = "arn:aws:events:r:1:event-bus/default"\nfile = "/var/log/e.jsonl"\n'
    )
    found = settings(file)
    first, second = found.notification_targets
    assert (first.url, first.authorization, first.batch, first.timeout_s) == (
        "http://u:pw@h/x?token=t",
        "Bearer b",
        5,
        3.0,
    )
    assert (second.file, second.batch, second.timeout_s) == ("/var/log/e.jsonl", 1, 10.0)
    shown = repr(found) + repr(first)
    assert not any(secret in shown for secret in ("pw", "token", "Bearer"))
    rows = describe(load(flags={"dir": "/d"}, environ={}, config_file=file))
    assert ("notification_targets", "(hidden)", f"notification_targets in {file}") in rows


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('arn = "x"', "expected the ARN"),
        ('arn = "arn:aws:sqs:r:1:q"', "either a url or a file"),
        ('arn = "arn:aws:sqs:r:1:q"\nurl = "http://h"\nfile = "/f"', "either a url or a file"),
        ('url = "http://h"', "lacks arn"),
        ('arn = "arn:aws:sqs:r:1:q"\nurl = "ftp://secret@h"', "begins with http"),
        ('arn = "arn:aws:sqs:r:1:q"\nfile = "relative"', "absolute path"),
        ('arn = "arn:aws:sqs:r:1:q"\nfile = "/f"\nauthorization = "a"', "goes with a url"),
        ('arn = "arn:aws:sqs:r:1:q"\nurl = "http://h"\nauthorization = "a\\nb"', "printable ASCII"),
        ('arn = "arn:aws:sqs:r:1:q"\nurl = "http://h"\nurls = 1', "did you mean 'url'"),
        ('arn = "arn:aws:sqs:r:1:q"\nurl = "http://h"\nbatch = 0', "batch:"),
    ],
)
def test_a_target_that_cannot_be_meant_is_refused_without_telling_its_secrets(
    file: Path, text: str, words: str
) -> None:
    file.write_text(f"[[notification_targets]]\n{text}\n")
    with pytest.raises(ConfigError) as refused:
        settings(file)
    assert words in str(refused.value)
    assert "secret" not in str(refused.value)


def test_two_targets_of_one_arn_are_refused(file: Path) -> None:
    one = '[[notification_targets]]\narn = "arn:aws:sqs:r:1:q"\nurl = "http://h"\n'
    file.write_text(one + one)
    with pytest.raises(ConfigError, match="given twice"):
        settings(file)
