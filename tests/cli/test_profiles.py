"""Where the endpoint and the keys come from, and the file that holds profiles."""

from __future__ import annotations

import stat
import tomllib
from pathlib import Path

import pytest

from cordwood.cli.errors import UsageError
from cordwood.cli.profiles import Target, config_path, resolve, write_profile

PROFILES = """
[profile.default]
endpoint = "http://default:1/"
access_key = "DA"
secret_key = "DS"
region = "dr"

[profile.lab]
endpoint = "http://lab:2"
access_key = "LA"
secret_key = "LS"

[profile.open]
endpoint = "http://open:3"
anonymous = true
"""


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    path = tmp_path / "config.toml"
    path.write_text(PROFILES)
    return {"CORDWOOD_CONFIG": str(path)}


def brief(target: Target) -> tuple[str, str, str, str]:
    return target.endpoint, target.access_key, target.secret_key, target.region


AWS = {
    "AWS_ACCESS_KEY_ID": "AA",
    "AWS_SECRET_ACCESS_KEY": "AS",
    "AWS_ENDPOINT_URL": "http://aws",
    "AWS_REGION": "ar",
}


def test_the_default_profile_serves_when_nothing_is_said(env: dict[str, str]) -> None:
    assert brief(resolve(env)) == ("http://default:1", "DA", "DS", "dr")
    assert brief(resolve({**env, **AWS})) == ("http://default:1", "DA", "DS", "dr")


def test_flags_beat_variables_which_beat_profiles(env: dict[str, str]) -> None:
    env |= {
        "CORDWOOD_ENDPOINT": "http://env",
        "CORDWOOD_ACCESS_KEY": "EA",
        "CORDWOOD_SECRET_KEY": "ES",
        "CORDWOOD_REGION": "er",
    }
    assert brief(resolve(env)) == ("http://env", "EA", "ES", "er")
    by_flag = resolve(env, endpoint="http://flag/", access_key="FA", secret_key="FS", region="fr")
    assert brief(by_flag) == ("http://flag", "FA", "FS", "fr")
    assert by_flag.origin == "--endpoint"


def test_a_profile_is_chosen_by_flag_or_variable(env: dict[str, str]) -> None:
    assert brief(resolve(env, profile="lab")) == ("http://lab:2", "LA", "LS", "us-east-1")
    assert brief(resolve({**env, "CORDWOOD_PROFILE": "lab"}))[1] == "LA"
    with pytest.raises(UsageError, match=r"no profile .lob. in .* default, lab, open"):
        resolve(env, profile="lob")


def test_the_keys_of_a_profile_are_not_sent_to_another_endpoint(env: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="no keys known for http://else"):
        resolve(env, endpoint="http://else")
    assert brief(resolve({**env, **AWS}, endpoint="http://else"))[1:3] == ("AA", "AS")
    assert resolve(env, endpoint="http://else", profile="lab").access_key == "LA", "unless it was named"
    assert resolve(env, endpoint="http://default:1").access_key == "DA", "or is that endpoint's own"


def test_without_profiles_the_variables_of_aws_are_used(tmp_path: Path) -> None:
    env = {**AWS, "CORDWOOD_CONFIG": str(tmp_path / "none"), "AWS_SESSION_TOKEN": "token"}
    target = resolve(env)
    assert brief(target) == ("http://aws", "AA", "AS", "ar") and target.session_token == "token"
    assert resolve(env, access_key="FA", secret_key="FS").session_token == ""


def test_anonymous_needs_no_keys_and_half_a_pair_is_an_error(env: dict[str, str]) -> None:
    assert resolve(env, profile="open").is_anonymous
    assert resolve(env, endpoint="http://else", anonymous=True).is_anonymous
    with pytest.raises(UsageError, match="--access-key and --secret-key must be given together"):
        resolve(env, access_key="FA")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("endpoint = 'x'", "unknown key 'endpoint'"),
        ("[profile.a]\nend_point = 'x'", "unknown key 'end_point' in profile 'a'"),
        ("profile = 3", "unknown key"),
        ("[profile", "not valid TOML"),
    ],
)
def test_a_profiles_file_that_makes_no_sense_is_an_error_that_names_it(
    tmp_path: Path, text: str, words: str
) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=words) as caught:
        resolve({"CORDWOOD_CONFIG": str(path)})
    assert str(path) in str(caught.value)


def test_no_secret_is_in_the_repr_of_a_target(env: dict[str, str]) -> None:
    assert "DS" not in repr(resolve(env))


def test_writing_a_profile_keeps_the_rest_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "config.toml"
    write_profile(path, "local", {"endpoint": "http://a", "secret_key": 'quo"te\\'})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text("# top\n" + path.read_text() + "\n[profile.other] # mine\nregion = 'x'\n# end")
    write_profile(path, "local", {"endpoint": "http://b", "anonymous": True})
    write_profile(path, "third", {"region": "y"})
    text = path.read_text()
    assert text.startswith("# top\n") and "[profile.other] # mine\nregion = 'x'\n# end\n" in text
    assert tomllib.loads(text)["profile"] == {
        "local": {"endpoint": "http://b", "anonymous": True},
        "other": {"region": "x"},
        "third": {"region": "y"},
    }


def test_the_file_follows_the_xdg_directory() -> None:
    assert config_path({"XDG_CONFIG_HOME": "/x"}) == Path("/x/cordwood/config.toml")
    assert config_path({"CORDWOOD_CONFIG": "/y"}) == Path("/y")
