"""Promises of jaxlm/redact.py: what looks like a secret, or is one of the environment's, is out of sight everywhere."""

import os
import subprocess
import sys

import pytest

from jaxlm import run
from jaxlm.cli import main as cli
from jaxlm.config import from_config_dict
from jaxlm.data.files import reachable
from jaxlm.redact import printable, redact
from jaxlm.report.events import EventLog
from jaxlm.runconfig import RunConfig, parse, resolve
from jaxlm.types import UserError

TOKEN = "hf_" + "Ab3" * 12  # made up, of the form of a real one
PLAIN = "swordfish-and-chips"
SECRETS = {
    "a login": ("https://me:pw1234@host/a.jsonl", "https://(hidden)@host/a.jsonl", "pw1234"),
    "a login with a dollar": ("s3://AKIAIO:wJal$+/rXUt@bucket/x", None, None),
    "a name": ("https://pw1234@host/a", "https://(hidden)@host/a", "pw1234"),
    "a signature": (
        "https://h/a?X-Amz-Signature=ab12&b=1",
        "https://h/a?X-Amz-Signature=(hidden)&b=1",
        "ab12",
    ),
    "of Google": ("gs://b/a?x-goog-signature=ab12", "gs://b/a?x-goog-signature=(hidden)", "ab12"),
    "of Azure": ("https://h/a?sv=1&sig=a%2Bb12", "https://h/a?sv=1&sig=(hidden)", "a%2Bb12"),
    "an api key": ("'https://h/a?api_key=ab12': 403", "'https://h/a?api_key=(hidden)': 403", "ab12"),
    "of the hub": (f"token {TOKEN}.", "token (hidden).", TOKEN),
    "of GitHub": ("ghp_" + "a1" * 18, "(hidden)", "a1a1"),
    "of AWS": ("id AKIA" + "A1B2" * 4, "id (hidden)", "A1B2"),
    "of OpenAI": ("sk-proj-" + "a1" * 20, "(hidden)", "a1a1"),
    "a header": ("Authorization: Bearer abc.def", "Authorization: Bearer (hidden)", "abc.def"),
    "a header as a dict": (
        "{'authorization': 'Bearer abc.def'}",
        "{'authorization': 'Bearer (hidden)'}",
        "abc.def",
    ),
    "a private key": (
        "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----",
        "(hidden)",
        "MIIE",
    ),
}


@pytest.mark.parametrize("name", [name for name, (_, wanted, _) in SECRETS.items() if wanted])
def test_what_looks_like_a_secret_is_hidden(name):
    text, wanted, secret = SECRETS[name]
    assert redact(text) == wanted
    assert secret not in redact(f"before {text} after")
    assert redact(redact(text)) == redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "gs://bucket/data/train.jsonl", "hf://datasets/owner/name@main/a.jsonl", "owner/name@v1.0", "a@b.c", "x://",
        "/data/token/key=1/a.txt", "embedded:topics", "--config.data.text_key=body", "text_key=body", "sk-learn",
        "hf_transfer", "50 tokens = 3 s", "loss=1.5, step=3", "https://host/a?page=2&lang=bn", "<|im_start|>@x",
        "https://host/@user/post",
    ],
)  # fmt: skip
def test_other_text_stays_as_it_is(text):
    assert redact(text, {}) == text


def test_values_of_the_environment_that_are_named_like_secrets_are_hidden():
    environ = {
        "MY_API_KEY": PLAIN,
        "HF_TOKEN": " short",
        "DB_PASSWORD": "/run/secrets/db",
        "USER": "swordfish",
    }
    assert redact(f"401 for {PLAIN}", environ) == "401 for (hidden: $MY_API_KEY)"
    assert (
        redact("a short word of swordfish in /run/secrets/db", environ)
        == "a short word of swordfish in /run/secrets/db"
    )


def test_a_terminal_obeys_nothing_that_comes_from_a_file():
    assert printable("a\x1b[2J\u202eb\tc\n") == "a\\x1b[2J\\u202eb\tc\n"


KEYS = ["data.sources.web.path", "tokenizer.path", "init_from", "instruct.template"]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("name", ["a login", "a signature", "of the hub"])
def test_a_config_with_a_secret_is_refused_by_key_and_does_not_tell_it(key, name, capsys):
    text, _, secret = SECRETS[name]
    assert cli.main(["config", "--config=quickstart", f"--config.{key}={text}"]) == 2
    out, err = capsys.readouterr()
    assert f"{key}='" in err
    assert "holds a secret" in err
    assert secret not in out + err


def test_a_saved_config_with_a_secret_is_refused(tmp_path):
    values = {"init_from": SECRETS["a login"][0]}
    with pytest.raises(UserError, match="init_from='https://.hidden.@host/a.jsonl' holds a secret"):
        from_config_dict(RunConfig, values)


@pytest.mark.parametrize("path", ["s3://key:pw1234@bucket/a", "https://h/a?X-Amz-Signature=ab12"])
def test_a_path_with_a_secret_is_refused(path):
    with pytest.raises(UserError, match="holds a secret"):
        reachable(path)


def test_the_event_log_holds_no_secret(tmp_path):
    with EventLog(tmp_path / "events.jsonl") as log:
        log.write("failed", error=f"403 of https://me:pw1234@h/a?sig=ab12 with {TOKEN}", inner={"a": [TOKEN]})
    text = (tmp_path / "events.jsonl").read_text()
    assert not any(secret in text for secret in ("pw1234", "ab12", TOKEN))
    assert "403 of https://(hidden)@h/a?sig=(hidden) with (hidden)" in text


# Planted in a run, and in the mistakes around it.


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_training_writes_no_secret_of_the_environment_anywhere(tmp_path, monkeypatch, capfd):
    planted = {"HF_TOKEN": TOKEN, "WANDB_API_KEY": PLAIN, "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG"}
    for name, value in planted.items():
        monkeypatch.setenv(name, value)
    text = tmp_path / "text"
    text.mkdir()
    (text / "a.txt").write_text("The function returns a value.\n" * 400)
    cfg = parse(["--config=quickstart"])
    cfg.data.sources = {"a": {"path": str(text)}}
    cfg.data.cache_dir = str(tmp_path / "cache")
    changes = {
        "data.seq_len": 16, "data.global_batch_size": 8, "model.embed_dim": 8, "model.num_layers": 1,
        "model.num_heads": 2, "model.num_kv_heads": 2, "train.num_steps": 2, "train.eval_every_steps": 2,
        "checkpoint.every_steps": 2,
        "tokenizer.kind": "char", "optimizer.warmup_steps": 1,
    }  # fmt: skip
    cfg.update_from_flattened_dict(changes)
    run.train(resolve(cfg), tmp_path / "run")
    # Whatever may raise with an address in its message: here the store of a later run.
    with pytest.raises(UserError):
        resolve(parse(["--config=quickstart", f"--config.tokenizer.path=https://me:{PLAIN}@h/t.model"]))
    out, err = capfd.readouterr()
    seen = {**files_of(tmp_path), "out": out.encode(), "err": err.encode()}
    assert any(path.name == "events.jsonl" for path in seen if not isinstance(path, str))
    for path, content in seen.items():
        for name, value in planted.items():
            assert value.encode() not in content, f"${name} is in {path}"


@pytest.mark.parametrize(
    "argv",
    [
        ["train", "--config=quickstart", "--workdir=s3://me:SECRET@bucket/x"],
        ["corpus", "build", "--input=a", "--tokenizer=s3://me:SECRET@h/a", "--output=/none/b"],
        ["predict", "--run=https://h/a?X-Amz-Signature=SECRET", "--text=a"],
        ["inspect", "--run=/nowhere/SECRET"],
        ["SECRET"],
        ["train", "--SECRET"],
        ["config", "--config=SECRET"],
        ["config", "--config=quickstart", "--config.seed=SECRET"],
        ["config", "--config=quickstart", "--config.SECRET=1"],
        ["tokenizer", "report", "--tokenizer=https://me:SECRET@h/a", "a"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_mistake_on_the_command_line_does_not_repeat_a_secret(argv, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert cli.main([arg.replace("SECRET", TOKEN) for arg in argv]) == 2
    out, err = capsys.readouterr()
    assert TOKEN not in out + err
    assert "hidden" in err


def test_the_traceback_of_a_bug_tells_no_secret(tmp_path):
    """A config file is code: what it raises may hold anything, and a bug of ours too."""
    code = f"""
import sys
from jaxlm.cli import config, main
def run(args, config_argv):
    raise RuntimeError("404 https://me:pw1234@h/a with " + {PLAIN!r})
config.main = run
sys.argv = ["jaxlm", "config"]
sys.exit(main.start())
"""
    environ = {**os.environ, "MY_API_KEY": PLAIN}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ)
    assert done.returncode == 1
    assert "RuntimeError: 404 https://(hidden)@h/a with (hidden: $MY_API_KEY)" in done.stderr
    assert PLAIN not in done.stderr.replace(f"{PLAIN!r})", "")  # but in the line of this source
    assert "pw1234" not in done.stderr
