"""The licences of all that `pip install jaxlm` and its extras bring, as docs/licences.md lists them.

    python .ci/licences.py --write      renew docs/licences.md from what is installed here
    python .ci/licences.py --check      exit code 1 where a package is new, changed its licence, or is not permissive

Licences are what the packages say in their own metadata: the SPDX expression, else the field, else the classifiers.
Packages of extras that are not installed keep the lines they have; `make release-check` installs all extras but
those of EXCEPT.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement

PAGE = Path(__file__).parents[1] / "docs/licences.md"
EXCEPT = {
    "cuda": "CUDA and cuDNN under NVIDIA's own licences, which are proprietary",
    "tpu": "libtpu, the compiler of TPUs, under Google's own terms: free to use, without its source",
    "parity": "torch (BSD-3-Clause) and transformers (Apache-2.0), which only tests of this repository compare with",
    "dev": "tools that check and test this repository",
}
"""Extras whose packages are not in the table, and why."""
PERMISSIVE = {
    "0BSD", "AFL-2.1", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "CNRI-Python", "HPND", "ISC",
    "MIT", "MIT-0", "MIT-CMU", "PSF-2.0", "Unlicense", "Zlib",
}  # fmt: skip
REVIEWED = {
    "certifi": "MPL-2.0",
    "chardet": "LGPL-2.1-or-later",
    "orjson": "MPL-2.0 AND (Apache-2.0 OR MIT)",
    "pathspec": "MPL-2.0",
    "tld": "MPL-1.1 OR GPL-2.0-only OR LGPL-2.1-or-later",
    "tqdm": "MPL-2.0 AND MIT",
}
"""Package -> a licence that asks for the source of changed files (MPL, LGPL). jaxlm imports them as they are."""
NAMES = (
    (r"lgpl|lesser general public", "LGPL-2.1-or-later"),
    (r"apache", "Apache-2.0"),
    (r"bsd.?2|2-clause", "BSD-2-Clause"),
    (r"bsd|kiwi", "BSD-3-Clause"),
    (r"mpl.2|mozilla public license 2", "MPL-2.0"),
    (r"python software foundation|matplotlib", "PSF-2.0"),
    (r"\bmit\b", "MIT"),
    (r"\bisc\b", "ISC"),
)
"""Words that packages use instead of an SPDX expression."""
SPDX = re.compile(r"[\w.+-]+(?:\s+(?:AND|OR|WITH)\s+[\w.+-]+)*|.*\(.*\).*")
HEAD = """\
# Licences

jaxlm is under the [Apache License 2.0](https://www.apache.org/licenses/LICENSE-2.0). It contains no code of others;
what it needs is installed beside it, as packages of their own. The table has all of them, with what each says of
itself.
`python .ci/licences.py --write` makes this page; `make release-check` says when it no longer holds.

*jaxlm* in the last column is a plain `pip install jaxlm`, anything else an extra. Left out are the extras

{others}

All in the table are permissive, except for {reviewed}. The Mozilla Public License
asks that changes of its own files are published, and nothing of what uses them, and so does the LGPL of a library that
can be replaced; jaxlm uses these packages as they are. Of tld's three licences the Mozilla one is chosen.

| package | licence | brought by |
|---|---|---|
"""


def normal(name: str) -> str:
    """A package's name as indices compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def licence(metadata: importlib.metadata.PackageMetadata) -> str:
    """SPDX expression of a package, or what comes nearest to it; "unknown" where it says nothing."""
    fields = metadata.json  # plain values: a missing field is no error
    expression = str(fields.get("license_expression") or "")
    if expression:
        return expression
    text = str(fields.get("license") or "").strip()
    if text and len(text) < 60 and SPDX.fullmatch(text) and parts(text) <= PERMISSIVE | {"MPL-2.0"}:
        return text
    classifiers = [line for line in fields.get("classifier") or () if line.startswith("License ::")]
    found = {spdx(line.rpartition(" :: ")[2]) for line in classifiers} - {None}
    if not found:
        found = {spdx(text[:300])} - {None}
    return " AND ".join(sorted(map(str, found))) or "unknown"


def spdx(words: str) -> str | None:
    """The first of NAMES that the words hold."""
    return next((name for pattern, name in NAMES if re.search(pattern, words, re.IGNORECASE)), None)


def parts(expression: str) -> set[str]:
    """Licences that an SPDX expression names."""
    return set(re.findall(r"[\w.+-]+", expression)) - {"AND", "OR", "WITH"}


def permissive(expression: str) -> bool:
    """Whether one may use the package under permissive licences alone."""
    conjunction = expression.replace("(", " ").replace(")", " ").split(" AND ")
    return all(any(parts(one) <= PERMISSIVE for one in part.split(" OR ")) for part in conjunction)


def extras() -> list[str]:
    """Extras of jaxlm that the table has."""
    return [
        name
        for name in importlib.metadata.metadata("jaxlm").get_all("Provides-Extra") or []
        if name not in EXCEPT
    ]


def brought_by(extra: str) -> dict[str, bool]:
    """Package -> whether it is installed, of all that `jaxlm[extra]` needs; "" is a plain install."""
    found: dict[str, bool] = {}

    def visit(name: str, wanted: Iterable[str]) -> None:
        try:
            requires = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            return
        for one in map(Requirement, requires):
            if one.marker and not any(one.marker.evaluate({"extra": extra}) for extra in wanted):
                continue
            package = normal(one.name)
            if package not in found:
                found[package] = installed(package)
                visit(one.name, one.extras or {""})

    visit("jaxlm", {extra})
    found.pop("jaxlm", None)
    return found


def installed(package: str) -> bool:
    """Whether its metadata can be read here."""
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def here() -> tuple[dict[str, tuple[str, list[str]]], list[str]]:
    """(package -> (licence, extras) of what is installed, extras of which some package is not)."""
    found: dict[str, tuple[str, list[str]]] = {}
    missing = []
    plain = brought_by("")
    for extra in ["", *extras()]:
        packages = brought_by(extra)
        if not all(packages.values()):
            missing.append(extra or "jaxlm")
        for package, there in packages.items():
            if there and (not extra or package not in plain):
                terms = licence(importlib.metadata.metadata(package))
                found.setdefault(package, (terms, []))[1].append(extra or "jaxlm")
    return found, missing


def listed(page: str) -> dict[str, tuple[str, list[str]]]:
    """Package -> (licence, extras) of the page's table."""
    rows = re.findall(r"^\| ([a-z0-9-]+) \| ([^|]+) \| ([^|]+) \|$", page, re.MULTILINE)
    return {name: (terms, names.split(", ")) for name, terms, names in rows if name != "package"}


def problems(found: dict[str, tuple[str, list[str]]], page: dict[str, tuple[str, list[str]]]) -> list[str]:
    """One line for each package that the page does not have as it is installed, or that needs a decision."""
    lines = []
    for package, (terms, brought) in sorted(found.items()):
        by = ", ".join(brought)
        if package not in page:
            lines.append(
                f"{package} ({by}): new, under {terms}. Renew docs/licences.md: python .ci/licences.py --write"
            )
        elif page[package][0] != terms:
            lines.append(f"{package} ({by}): {terms}; docs/licences.md says {page[package][0]}.")
        if not permissive(terms) and REVIEWED.get(package) != terms:
            lines.append(f"{package} ({by}): {terms} is not permissive. Replace it, or name it in REVIEWED.")
    return lines


def render(rows: dict[str, tuple[str, list[str]]]) -> str:
    """docs/licences.md."""
    named = [f"{name} ({REVIEWED[name]})" for name in sorted(REVIEWED) if name in rows]
    others = "\n".join(f"- `{name}`: {why}" for name, why in EXCEPT.items())
    head = HEAD.format(reviewed=", ".join(named), others=others)
    return head + "".join(
        f"| {name} | {terms} | {', '.join(brought)} |\n" for name, (terms, brought) in sorted(rows.items())
    )


def main() -> int:
    """Writes or checks the page; problems go to stdout, one a line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true")
    action.add_argument("--check", action="store_true")
    parser.add_argument("--complete", action="store_true", help="all extras have to be installed")
    args = parser.parse_args()
    found, missing = here()
    page = listed(PAGE.read_text(encoding="utf-8")) if PAGE.exists() else {}
    if missing:
        print(f"Not all of these extras is installed; their lines are as they were: {', '.join(missing)}.")
        if args.complete:
            return 1
    if args.write:
        kept = {name: row for name, row in page.items() if name not in found and missing}
        PAGE.write_text(render(kept | found), encoding="utf-8")
        page = kept | found
    lines = problems(found, page)
    print("\n".join(lines) or f"licences: {len(found)} packages, all as docs/licences.md lists them.")
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main())
