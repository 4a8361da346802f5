"""`make audit`: secrets in tracked files, and known vulnerabilities of what is installed.

    python .ci/audit.py --python=.venv/bin/python --pip-audit=.venv-audit/bin/pip-audit

Exit code 1 for a secret or a vulnerability. Where the service of vulnerabilities cannot be reached, or does not know
the packages, that is said, and is no failure: nobody's work waits for somebody else's server.

Secrets are searched for by the patterns of jaxlm/redact.py, which hide them at run time: one list, tested once. (The
best known scanner in pure Python, detect-secrets, has had no release since May 2024.)
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from jaxlm.redact import redact  # noqa: E402

SECONDS = 40
"""Given to pip-audit: a service that does not answer is not waited for."""
MADE_UP = {
    "jaxlm/redact.py": "its docstring",
    "tests/test_redact.py": "what it tests",
    "tests/report/test_run_report.py": "an address with a login, to be hidden",
    "tests/report/test_writers.py": "an address with a login, to be hidden",
    "tests/test_audit.py": "what it tests",
    "jaxlm/playground/guard.py": "how a request carries its token",
    "jaxlm/playground/serve.py": "where an address carries its token",
    "tests/cli/test_playground_cli.py": "an address with a token that was just made",
    "tests/playground/test_playground.py": "a token of its own",
    "tests/launch/test_target.py": "an address with a login, to be refused",
    "tests/report/test_run_page.py": "an address with a login, to be hidden",
    "tests/corpus/raw/test_links.py": "addresses with a login, which is no part of their normal form",
    "tests/corpus/raw/test_raw_files.py": "an address with a login, to be refused",
    "tests/corpus/raw/test_url_filter.py": "an address with a login, whose host is blocked",
}
"""Files with secrets that are none, and what they are there for."""
ASSIGNED = re.compile(
    r"""(?i)\b[\w.-]*(?:password|passwd|secret|api_?key|access_?key|auth_?token)["']?\s*[:=]\s*["'][^"'\s{}$<>()]{12,}["']"""
)
UNREACHABLE = (
    "ConnectionError",
    "NameResolutionError",
    "Max retries",
    "timed out",
    "ServiceError",
    "Temporary failure",
)


def find_secrets(root: Path, names: list[str]) -> list[str]:
    """file:line of each line that holds what looks like a secret."""
    found = []
    for name in names:
        path = root / name
        if name in MADE_UP or not path.is_file() or path.is_symlink():
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # no text
        for number, line in enumerate(text.splitlines(), 1):
            if redact(line, {}) != line or ASSIGNED.search(line):
                found.append(f"{name}:{number}")
    return found


def tracked(root: Path) -> list[str]:
    """Names of the files that git knows."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=True)
    return [name for name in done.stdout.decode().split("\0") if name]


def find_vulnerabilities(pip_audit: str, site: str, seconds: float = SECONDS) -> tuple[list[str], str]:
    """(one line for each known vulnerability, a note on what was looked at)."""
    command = [pip_audit, "--path", site, "--format", "json", "--progress-spinner", "off", "--timeout", "10"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except FileNotFoundError:
        return [], f"NOT AUDITED: {pip_audit} is not installed"
    except subprocess.TimeoutExpired:
        return [], f"NOT AUDITED: the service of vulnerabilities did not answer within {seconds:g} s"
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        if any(word in done.stderr for word in UNREACHABLE):
            return [], "NOT AUDITED: the service of vulnerabilities cannot be reached"
        return [f"pip-audit failed: {done.stderr.strip()[-500:]}"], "pip-audit did not work"
    known = [package for package in packages if "skip_reason" not in package]
    lines = [
        f"{package['name']} {package['version']}: {one['id']}, mended in "
        f"{', '.join(one['fix_versions']) or 'no version'}"
        for package in known
        for one in package["vulns"]
    ]
    if not known:
        return [], f"NOT AUDITED: the index that pip-audit asks knows none of the {len(packages)} packages"
    left = f"; {len(packages) - len(known)} are unknown to it" if len(known) < len(packages) else ""
    return lines, f"{len(known)} packages looked up{left}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", default=sys.executable, help="of the environment that is audited")
    parser.add_argument("--pip-audit", default="pip-audit")
    args = parser.parse_args()
    names = tracked(ROOT)
    secrets = find_secrets(ROOT, names)
    print(f"secrets: {len(secrets)} in {len(names)} tracked files")
    for place in secrets:
        print(
            f"  {place} looks like a secret. Take it out, and revoke it; or add the file to MADE_UP in .ci/audit.py."
        )
    site = subprocess.run(
        [args.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    lines, note = find_vulnerabilities(args.pip_audit, site)
    print(f"vulnerabilities: {len(lines)} known; {note}")
    for line in lines:
        print(f"  {line}")
    return 1 if secrets or lines else 0


if __name__ == "__main__":
    sys.exit(main())
