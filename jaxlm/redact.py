"""Secrets do not reach logs, reports, configs and messages. Imports no JAX.

    redact("403 for https://me:pass@host/x?X-Amz-Signature=ab12")
    'https://(hidden)@host/x?X-Amz-Signature=(hidden)'

A secret comes in as part of an address (a login, a signed query), as a token that has the form of one, or as the value
of a variable of the environment that is named like one. `redact` stands where text leaves the process: the event log,
messages, what writers are sent. A config is refused instead: it has to work when it is read again.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping

HIDDEN = "(hidden)"
SECRET_KEY = re.compile(
    r"(^|[_.-])(password|passwd|pwd|secret|token|credentials?|api_?key|access_?key|secret_?key|private_?key|auth)$",
    re.I,
)
"""Ends of the names of what is secret, in a config or in the environment."""
MIN_SECRET_CHARS = 8
"""Of a variable of the environment: shorter values are words of their own (`true`, `1`)."""
_LOGIN = re.compile(r"(?<=://)[^\s/@'\"?#]{1,500}@")
"""user:password@ of an address. An object store has none, and a path may well hold an @."""
_QUERY = re.compile(
    r"(?i)(?<=[?&;])((?:x-(?:amz|goog)-(?:signature|credential|security-token)|signature|sig|token|access_token"
    r"|auth_token|api_?key|key|awsaccesskeyid|googleaccessid|policy|key-pair-id|password|secret)=)(?!\(hidden\))[^\s&;'\"<>)]+"
)
_TOKEN = re.compile(
    r"(?<![A-Za-z0-9_])(?:"
    r"hf_[A-Za-z0-9]{30,}"  # Hugging Face
    r"|api_org_[A-Za-z0-9]{30,}"
    r"|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{50,}"  # GitHub
    r"|glpat-[A-Za-z0-9_-]{20,}"  # GitLab
    r"|(?:AKIA|ASIA)[A-Z0-9]{16}"  # AWS, the name of a key
    r"|sk-[A-Za-z0-9_-]{32,}"  # OpenAI and others
    r"|ya29\.[A-Za-z0-9_-]{30,}|AIza[A-Za-z0-9_-]{35}"  # Google
    r"|xox[abprs]-[A-Za-z0-9-]{10,}"  # Slack
    r")(?![A-Za-z0-9])"
)
_BEARER = re.compile(
    r"(?i)(\b(?:authorization|proxy-authorization)\b['\"]?\s*[:=]\s*['\"]?(?:bearer|basic)?\s*)[^\s'\",]+"
)
_PRIVATE = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL
)


def redact(text: str, environ: Mapping[str, str] | None = None) -> str:
    """The text with what looks like a secret, or is one of the environment's, put out of sight.

    Args:
      environ: default: this process's.
    """
    for value, name in _secrets_of(os.environ if environ is None else environ):
        if value in text:
            text = text.replace(value, f"(hidden: ${name})")
    if "://" in text:
        text = _LOGIN.sub(f"{HIDDEN}@", text)
    if "=" in text:
        text = _QUERY.sub(rf"\1{HIDDEN}", text)
    if "PRIVATE KEY" in text:
        text = _PRIVATE.sub(HIDDEN, text)
    return _BEARER.sub(rf"\1{HIDDEN}", _TOKEN.sub(HIDDEN, text))


@functools.cache
def _is_secret(name: str) -> bool:
    return SECRET_KEY.search(name) is not None


def _secrets_of(environ: Mapping[str, str]) -> list[tuple[str, str]]:
    """(value, name) of variables that are named like a secret, longest first; a path to one is none."""
    found = []
    for name, value in environ.items():
        value = value.strip()
        if _is_secret(name) and len(value) >= MIN_SECRET_CHARS and not value.startswith(("/", "~", "./")):
            found.append((value, name))
    return sorted(found, key=lambda pair: -len(pair[0]))


def printable(text: str) -> str:
    """The text without secrets, and without characters that a terminal would obey."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in redact(text)
    )
