"""The page of runs: one HTML file with everything in it, that fetches nothing and runs no code but its own.

Scripts are allowed by their hash (Content-Security-Policy), data is JSON in which no character can end its element,
and the scripts put what comes from a run on the page as text.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxlm.types import UserError

FOLDER = Path(__file__).parent
_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029\x7f"}
"""Inside a string of JSON, where alone they occur, these mean the same and end nothing."""
_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>jaxlm</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<header id="head"></header>
<div class="bar"><div>
<span class="switch" role="group" aria-label="horizontal axis"><button data-x="step" aria-pressed="true">steps</button>\
<button data-x="tokens" aria-pressed="false">tokens</button>\
<button data-x="hours" aria-pressed="false">time</button></span>
<span class="switch"><button id="smooth" aria-pressed="true">smooth</button></span>
<span id="runs" class="chips"></span>
<span class="push"></span>
<span id="live" class="badge running" hidden>live</span>
<span class="switch"><button id="theme">dark</button></span>
</div></div>
<main id="main"><noscript>This page draws its curves with JavaScript, which is turned off.</noscript></main>
<footer><span id="made"></span>; jaxlm {version}. Times of days are UTC. Plots by plotly.js (MIT).</footer>
<script id="data" type="application/json">{data}</script>
{scripts}
</body>
</html>
"""


def embed_json(value: Any) -> str:
    """JSON that can stand inside a script element, whatever its strings hold."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(_ESCAPES)


@functools.cache
def plotly_js() -> str:
    """The script that plotly's package brings along. Errors: UserError without it."""
    spec = importlib.util.find_spec("plotly")
    if spec is None or spec.origin is None:
        raise UserError("A page of runs needs plotly, which is not installed: pip install 'jaxlm[report]'.")
    return (Path(spec.origin).parent / "package_data" / "plotly.min.js").read_text(encoding="utf-8")


@functools.cache
def _frame() -> tuple[str, str]:
    """(the page up to its data, what follows them): equal for all pages of a process."""
    import jaxlm

    own = "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in ("page.js", "page_panels.js"))
    scripts = [plotly_js(), own]
    for script in scripts:
        assert "</script" not in script.lower(), "a script that ends its own element"
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in scripts
    )
    policy = (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; font-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'"
    )
    page = _PAGE.format(
        policy=policy,
        style=(FOLDER / "page.css").read_text(encoding="utf-8"),
        version=jaxlm.__version__,
        data="\0",
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
    )
    before, _, after = page.partition("\0")
    return before, after


def page_html(data: Mapping[str, Any]) -> bytes:
    """The page of `page_data.page_data`."""
    before, after = _frame()
    return f"{before}{embed_json(data)}{after}".encode("utf-8", "backslashreplace")
