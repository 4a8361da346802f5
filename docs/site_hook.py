"""What mkdocs does not do by itself for jaxlm's site: pages made from the code, pages of the repository's root, links
out of docs/. mkdocs.yml names this file; mkdocs calls the functions `on_*`.
"""

from __future__ import annotations

import posixpath
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
FROM_ROOT = {
    "security.md": "SECURITY.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
"""Page of the site -> file of the repository that it shows."""
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#\s]+)(#[^)\s]*)?\)")
_IMAGE = re.compile(r"!\[[^\]]*\]\(([^)#\s:]+)\)")


def pages_of_nav(nav: Any) -> Iterator[str]:
    """Paths of pages that a navigation names, in its order."""
    if isinstance(nav, str):
        yield nav
    else:
        for one in nav.values() if isinstance(nav, dict) else nav:
            yield from pages_of_nav(one)


def missing_pages(mkdocs_yml: Path) -> list[str]:
    """Pages that the navigation names and nobody has written; a release has none."""
    nav = yaml.safe_load(mkdocs_yml.read_text(encoding="utf-8"))["nav"]
    return [
        page
        for page in pages_of_nav(nav)
        if page not in FROM_ROOT and not page.startswith("reference/") and not (ROOT / "docs" / page).exists()
    ]


def missing_images() -> list[str]:
    """Pictures that README.md or a page shows, and that `make screenshots` has not made yet; a release has all."""
    found = set()
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for image in _IMAGE.findall(page.read_text(encoding="utf-8")):
            path = (page.parent / image).resolve()
            if not path.exists():
                found.add(str(path.relative_to(ROOT)))
    return sorted(found)


def without(nav: Any, missing: list[str]) -> Any:
    """The navigation without some pages."""
    if isinstance(nav, dict):
        return {title: without(inner, missing) for title, inner in nav.items() if inner not in missing}
    if isinstance(nav, list):
        kept = [without(one, missing) for one in nav if one not in missing]
        return [one for one in kept if one != {}]
    return nav


def on_config(config: Any) -> Any:
    """Leaves pages out of the navigation that are still being written; `make release-check` refuses them."""
    missing = missing_pages(Path(config.config_file_path))
    if left_out := [*missing, *missing_images()]:
        print(f"left out, not made yet: {', '.join(left_out)}")
    config.nav = without(config.nav, missing)
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that are made from the code, and those of the repository's root."""
    from mkdocs.structure.files import File

    sys.path.insert(0, str(ROOT / "docs"))  # mkdocs takes it away again once this module is loaded
    from reference import PAGES

    for page, name in FROM_ROOT.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text(encoding="utf-8")))
    for page, make in PAGES.items():
        files.append(File.generated(config, page, content=make()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Mends links: to a page that has another place on the site, and to files of the repository, which it has not."""
    source = page.file.src_uri
    folder = "." if source in FROM_ROOT else posixpath.join("docs", posixpath.dirname(source))
    shown = {name: page for page, name in FROM_ROOT.items()}
    missing = missing_pages(Path(config.config_file_path))

    def mend(link: re.Match) -> str:
        words, target, anchor = link[1], link[2], link[3] or ""
        if re.match(r"[a-z]+:|/", target):
            return link[0]
        path = posixpath.normpath(posixpath.join(folder, target))
        place = shown.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        if place in missing:
            return words
        if place is None or files.get_file_from_path(place) is None:
            if not (ROOT / path).exists():
                return link[0]  # mkdocs warns of it
            return words if words.strip("`") == path else f"{words} (`{path}`)"
        return f"[{words}]({posixpath.relpath(place, posixpath.dirname(source) or '.')}{anchor})"

    def show(image: re.Match) -> str:
        return image[0] if (ROOT / "docs" / posixpath.dirname(source) / image[1]).exists() else ""

    return _outside_code(markdown, lambda text: _IMAGE.sub(show, _LINK.sub(mend, text)))


def _outside_code(markdown: str, change: Any) -> str:
    parts = re.split(r"(^```.*?^```$|`[^`\n]+`(?!\]\())", markdown, flags=re.MULTILINE | re.DOTALL)
    # A link whose words are code, [`x`](y), is not split: its backticks are followed by "](".
    return "".join(part if index % 2 else change(part) for index, part in enumerate(parts))


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Says the language of Bengali pages, for fonts, hyphens and screen readers."""
    if page.file.src_uri.startswith("bn/"):
        return output.replace('<html lang="en"', '<html lang="bn"', 1)
    return output
