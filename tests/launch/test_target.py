"""A target is checked key by key: a typo gets the nearest key, a name is no more than a name, a secret stays out."""

import pytest

from jaxlm.launch.names import RULES
from jaxlm.launch.target import KEYS, Target, read_target
from jaxlm.types import UserError


def test_a_file_and_flags_make_a_target_and_flags_win(tmp_path):
    path = tmp_path / "pod.yaml"
    path.write_text(
        "accelerator: v5e-16\nzone: us-west4-a\nwheel: dist/a.whl\nenvironment: {A: b, N: 3}\nsecrets: [TOKEN]\n"
    )
    target = read_target(path, {"accelerator": "v5e-32", "environment": {"C": "d"}})
    assert (target.accelerator, target.zone) == ("v5e-32", "us-west4-a")
    assert target.wheel == str(tmp_path / "dist" / "a.whl")
    assert target.environment == {"A": "b", "N": "3", "C": "d"}
    assert target.secrets == {"TOKEN": None}
    assert read_target(path, {"package": "jaxlm==1.0"}).wheel is None  # a flag says where the code comes from


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("accelerators: v5e-16", "'accelerators' is not one of .*did you mean 'accelerator'"),
        ("zone: [a]", r"zone=\['a'\] has to be a zone of Google Cloud"),
        ("zone: us-west4", "zone='us-west4' has to be a zone"),
        ("project: My Project", "has to be the ID of a project"),
        ("capacity: preemptible", "capacity='preemptible' is not one of on-demand, spot, reserved"),
        ("slices: two", "slices='two' has to be a whole number"),
        ("slices: true", "slices=True has to be a whole number"),
        ("internal_ips: 3", "internal_ips=3 has to be true or false"),
        ("time: 24:00:00", "time has to be quoted"),
        ("image: a:b\nwheel: c.whl", "image and wheel are given"),
        ("environment: [A]", "environment has to be a mapping"),
        ("environment: {1A: b}", "no name of a variable"),
        ("environment: {A: true}", "environment.A has to be one line of text"),
        ('environment: {A: "b\\nc"}', "environment.A has to be one line of text"),
        ("environment: {JAX_PROCESS_ID: 0}", "the platform sets this variable"),
        ("environment: {A: b}\nsecrets: [A]", "under environment and under secrets"),
        ("- v5e-16", "needs the keys|has to have|but is"),
        ("accelerator: v5e-16\naccelerator: v5e-32", "stands twice"),
        ("name: [", "is not YAML"),
    ],
)
def test_a_mistake_in_the_file_is_one_line_with_file_and_key(tmp_path, text, rule):
    path = tmp_path / "pod.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=rule) as raised:
        read_target(path, {})
    assert "\n" not in str(raised.value)
    assert str(path) in str(raised.value)


EVIL = [
    "a;id",
    "$(id)",
    "`id`",
    "a b",
    "a'b",
    'a"b',
    "a\nb",
    "a&b",
    "a|b",
    "-rf",
    "--flag",
    "a>b",
    "",
    "ä",
    "a\x1b[2J",
    "*",
]


@pytest.mark.parametrize("key", sorted(RULES))
def test_no_name_can_be_more_than_a_name(key):
    for value in EVIL:
        if key == "infra" and value == "*":
            continue
        with pytest.raises(UserError, match=f"^{key}=") as raised:
            Target(**{key: value})
        assert "\x1b" not in str(raised.value)
        assert "\n" not in str(raised.value)


SECRETS = [
    ("WANDB_API_KEY", "0123456789abcdef"),
    ("A", "hf_" + "a1" * 20),
    ("URL", "https://me:secret-word@host/"),
    ("X_TOKEN", "t"),
]


@pytest.mark.parametrize(("name", "value"), SECRETS)
def test_a_secret_is_refused_without_being_said(name, value):
    with pytest.raises(UserError, match=f"environment.{name} looks like a secret") as raised:
        Target(environment={name: value})
    assert len(value) < 3 or value not in str(raised.value)


@pytest.mark.parametrize("stored", ["hf_" + "a1" * 20, "a b", "a/b/c", "$(id)", ""])
def test_a_secret_is_named_and_never_given(stored):
    with pytest.raises(UserError, match="has to be the name of a secret in the platform's store") as raised:
        Target(secrets={"TOKEN": stored})
    assert "hf_" not in str(raised.value)


def test_what_a_platform_needs_is_named_with_the_way_to_give_it():
    with pytest.raises(
        UserError,
        match=r"zone is missing: --on=tpu needs it. Write `zone: ...` into the target, or give --zone=",
    ):
        Target().need("tpu", "zone")
    with pytest.raises(UserError, match="accelerator is missing"):
        Target().machines("tpu")
    with pytest.raises(UserError, match="takes jaxlm from image, but none is given"):
        Target().need_code("gke", "image")


def test_every_rule_is_of_a_key():
    assert set(RULES) < set(KEYS)
