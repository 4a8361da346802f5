"""A report of a corpus as one page that needs nothing else: no script, no network, no file beside it."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_STYLE = """\
:root { color-scheme: light dark; --line: #8884; --dim: #888; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.05rem; margin: 2rem 0 .5rem; } h3 { font-size: .95rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
th, td { padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; }
svg text { font: 12px system-ui, sans-serif; fill: currentColor; }
.note, li { color: var(--dim); font-size: .87rem; overflow-wrap: anywhere; }
"""
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_WIDTH, _LABEL, _ROW = 760, 150, 26
_COLOURS = ("#3b7dd8", "#d8863b", "#7d5bbe", "#b0b0b0", "#4fa06a", "#c2504b", "#8a8f3c", "#5aa5b5")


def page(report: Mapping[str, Any]) -> str:
    """The page of a report (of report.make_report)."""
    sources = report["sources"]
    parts = ["<h1>What became of the raw files</h1>", _totals(sources)]
    parts.append(_section("Documents, by what became of them", _bars(sources, _fates, "documents")))
    parts.append(_section("Text, in bytes", _bars(sources, _bytes, "bytes")))
    parts.append(_section("Tokens to train on, and epochs", _table_of_tokens(report)))
    parts.append(
        _section("Languages, of the text that passed, in bytes", _bars(sources, _languages, "bytes"))
    )
    parts.append(_section("What was left out, changed, or could not be read", _reasons(sources)))
    parts.append(_section("Work", _work(report)))
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    return (
        f'<!doctype html>\n<html lang="en">\n<head>{head}<title>Corpus report</title>\n<style>\n{_STYLE}'
        "</style></head>\n"
        f"<body>\n{''.join(parts)}\n</body>\n</html>\n"
    )


def _escape(text: str) -> str:
    """Text of a file or a user as text of the page: no markup, and no control characters, which HTML does not allow."""
    return html.escape(_CONTROLS.sub("\ufffd", text))


def _section(title: str, body: str) -> str:
    return f"<h2>{_escape(title)}</h2>\n{body}\n"


def _totals(sources: Mapping[str, Any]) -> str:
    def total(key: str) -> int:
        return sum(source[key] for source in sources.values())

    return (
        f'<p class="note">{total("num_files"):,} files, {total("num_input_bytes"):,} bytes; '
        f"{total('documents_read'):,} documents read, {total('documents_kept'):,} kept; "
        f"{total('train_tokens'):,} tokens to train on, {total('eval_tokens'):,} held out.</p>"
    )


def _fates(source: Mapping[str, Any]) -> dict[str, int]:
    gone = source["documents_read"] - source["documents_passed"]
    copies = {"exact copies": source["exact_copies"], "near copies": source["near_copies"]}
    kept = source["documents_passed"] - sum(copies.values())
    return {"kept": kept, **copies, "dropped by a filter": max(0, gone)}


def _bytes(source: Mapping[str, Any]) -> dict[str, int]:
    kept, passed, read = (source[f"text_bytes_{what}"] for what in ("kept", "passed", "read"))
    return {"kept": kept, "copies": max(0, passed - kept), "dropped by a filter": max(0, read - passed)}


def _languages(source: Mapping[str, Any]) -> dict[str, int]:
    largest = list(source["language_bytes"].items())
    shown = dict(largest[:7])
    if rest := sum(size for _, size in largest[7:]):
        shown["others"] = rest
    return shown


def _bars(sources: Mapping[str, Any], values_of: Any, unit: str) -> str:
    """A bar for each source, as long as its share of the largest, in colours by kind; with a legend."""
    values = {name: values_of(source) for name, source in sources.items()}
    kinds = list(dict.fromkeys(kind for row in values.values() for kind in row))
    longest = max((sum(row.values()) for row in values.values()), default=0) or 1
    height = _ROW * (len(values) + 1) + 6
    out = [f'<svg viewBox="0 0 {_WIDTH} {height}" width="100%" role="img">']
    for index, (name, row) in enumerate(values.items()):
        top, left = index * _ROW, float(_LABEL)
        out.append(f'<text x="0" y="{top + 17}">{_escape(name)}</text>')
        for kind, value in row.items():
            width = (_WIDTH - _LABEL - 90) * value / longest
            share = value / (sum(row.values()) or 1)
            title = f"{name}, {kind}: {value:,} {unit} ({share:.1%})"
            colour = _COLOURS[kinds.index(kind) % len(_COLOURS)]
            out.append(
                f'<rect x="{left:.1f}" y="{top + 4}" width="{width:.1f}" height="{_ROW - 8}" fill="{colour}">'
                f"<title>{_escape(title)}</title></rect>"
            )
            left += width
        out.append(f'<text x="{left + 6:.1f}" y="{top + 17}">{sum(row.values()):,}</text>')
    left = float(_LABEL)
    for index, kind in enumerate(kinds):
        top = _ROW * len(values) + 6
        out.append(
            f'<rect x="{left:.0f}" y="{top}" width="10" height="10" fill="{_COLOURS[index % len(_COLOURS)]}"/>'
        )
        out.append(f'<text x="{left + 14:.0f}" y="{top + 10}">{_escape(kind)}</text>')
        left += 30 + 7 * len(kind)
    return "".join([*out, "</svg>"])


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["".join(f"<th>{_escape(head)}</th>" for head in heads)]
    lines += ["".join(f"<td>{_escape(cell)}</td>" for cell in row) for row in rows]
    return '<div class="scroll"><table>' + "".join(f"<tr>{line}</tr>" for line in lines) + "</table></div>"


def _table_of_tokens(report: Mapping[str, Any]) -> str:
    rows = []
    for name, source in report["sources"].items():
        epochs = "-" if source["epochs"] is None else f"{source['epochs']:.3g}"
        cells = (
            f"{source['train_tokens']:,}",
            f"{source['eval_tokens']:,}",
            f"{source['bytes_per_token']:.2f}",
        )
        rows.append((name, *cells, f"{source['weight']:.3f}", epochs))
    budget = report["budget_tokens"]
    note = f"Epochs: of a run of {budget:,.0f} tokens." if budget else "No budget is planned (budget_tokens)."
    return (
        _table(("source", "train", "eval", "bytes/token", "weight", "epochs"), rows)
        + f'<p class="note">{note}</p>'
    )


def _reasons(sources: Mapping[str, Any]) -> str:
    parts = []
    for name, source in sources.items():
        counts = [
            (word, reason, n)
            for word in ("dropped", "changed", "faults")
            for reason, n in source[word].items()
        ]
        counts += [("copies", f"{kind}_copy", source[f"{kind}_copies"]) for kind in ("exact", "near")]
        items = []
        for word, reason, number in counts:
            if not number:
                continue
            shown = "".join(f"<li>{_escape(one)}</li>" for one in source["examples"].get(reason, []))
            more = f"<ul>{shown}</ul>" if shown else ""
            items.append(f"<details><summary>{word}: {_escape(reason)}, {number:,}</summary>{more}</details>")
        parts.append(f"<h3>{_escape(name)}</h3>" + ("".join(items) or '<p class="note">nothing</p>'))
    return "".join(parts)


def _work(report: Mapping[str, Any]) -> str:
    rows = [(f"{name}, seconds of a core", f"{value:,.1f}") for name, value in report["seconds"].items()]
    rows += [(f"{name}, bytes on disk", f"{value:,}") for name, value in report["disk_bytes"].items()]
    return _table(("what", "how much"), rows)
