"""Promises of .ci/audit.py: secrets in files are found, and a service that is not there is said and no failure."""

import importlib.util
import json
import stat
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci/audit.py")
audit = importlib.util.module_from_spec(spec)
spec.loader.exec_module(audit)


def test_the_repository_holds_no_secret():
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    assert audit.find_secrets(ROOT, audit.tracked(ROOT)) == []
    assert all((ROOT / name).exists() for name in audit.MADE_UP)


@pytest.mark.parametrize(
    "line",
    ["hf_" + "aB3" * 12, "url = 'https://me:pw1234@host/x'", "AKIA" + "A1B2" * 4, "password: 'correct-horse-battery'",
     'WANDB_API_KEY = "0123456789abcdef0123"', "-----BEGIN PRIVATE KEY-----"],
)  # fmt: skip
def test_a_planted_secret_is_found_by_file_and_line(line, tmp_path):
    (tmp_path / "a.py").write_text(f"x = 1\n{line}\n")
    (tmp_path / "b.bin").write_bytes(b"\xff\xfe")
    assert audit.find_secrets(tmp_path, ["a.py", "b.bin", "gone.py"]) == ["a.py:2"]


def test_code_about_secrets_is_none(tmp_path):
    (tmp_path / "a.py").write_text(
        "password = os.environ['DB_PASSWORD']\ntoken=token\napi_key: str = ''\nkey = 'abc'\n"
    )
    assert audit.find_secrets(tmp_path, ["a.py"]) == []


def fake(tmp_path, body):
    path = tmp_path / "pip-audit"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def answer(*packages):
    return "cat <<'EOF'\n" + json.dumps({"dependencies": list(packages)}) + "\nEOF"


GOOD = {"name": "a", "version": "1", "vulns": []}
BAD = {"name": "b", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["3"]}]}
UNKNOWN = {"name": "c", "skip_reason": "Dependency not found on PyPI"}


@pytest.mark.parametrize(
    ("body", "lines", "note"),
    [
        (answer(GOOD, UNKNOWN), [], "1 packages looked up; 1 are unknown to it"),
        (answer(GOOD, BAD) + "\nexit 1", ["b 2: CVE-1, mended in 3"], "2 packages looked up"),
        (
            answer(UNKNOWN, UNKNOWN),
            [],
            "NOT AUDITED: the index that pip-audit asks knows none of the 2 packages",
        ),
        ("echo 'requests.exceptions.ConnectionError: no' >&2; exit 1", [], "NOT AUDITED: the service of"),
        ("exec sleep 20", [], "NOT AUDITED: the service of vulnerabilities did not answer within 0.5 s"),
        ("echo 'TypeError: x' >&2; exit 1", ["pip-audit failed: TypeError: x"], "pip-audit did not work"),
    ],
    ids=["good", "vulnerable", "unknown", "unreachable", "slow", "broken"],
)
def test_what_pip_audit_says_is_told_and_an_absent_service_is_no_failure(body, lines, note, tmp_path):
    found, said = audit.find_vulnerabilities(
        fake(tmp_path, body), "site", seconds=0.5 if "sleep" in body else 30
    )
    assert found == lines
    assert said.startswith(note)


def test_without_pip_audit_that_is_said():
    assert audit.find_vulnerabilities("/nowhere/pip-audit", "site")[1].startswith(
        "NOT AUDITED: /nowhere/pip-audit is not"
    )
