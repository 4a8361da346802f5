"""What became of the raw files: OUTPUT/report.json, and a page of it. Imports nothing heavy."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxlm.corpus.raw.document import MAX_EXAMPLES, Account
from jaxlm.data.files import write_atomic
from jaxlm.limits import check, read_json
from jaxlm.types import JSON_ERRORS, UserError

REPORT = "report.json"
PAGE = "report.html"
FORMAT = 1
_SHAPE = {"format": int, "sources": {str: dict}, "seconds": {str: float}, "disk_bytes": {str: int}}


def make_report(
    step: Any, manifests: Mapping[str, Mapping[str, Any]], left_out: Mapping[str, Any]
) -> dict[str, Any]:
    """The account of a finished build.

    Args:
      step: the Tokenise step: its units, folders and config.
      left_out: source -> the account of files that were not read, as JSON.
    """
    from jaxlm.corpus.raw.work import BUILD, result_of

    cfg, output = step.cfg, step.output
    chosen = result_of(step.dedup) or {"removed": {}, "examples": []}
    copies = _example_lines(step, chosen["examples"])
    sources, seconds = {}, Counter()
    for name in cfg.names:
        units = [unit for unit in step.units if unit.source == name]
        results = [result_of(unit.folder(output)) or {} for unit in units]
        account = Account.from_json(left_out[name])
        languages: Counter[str] = Counter()
        for result in results:
            account.add(Account.from_json(result["account"]))
            languages.update(result["languages"])
        removed = [chosen["removed"].get(unit.key, {"exact": 0, "near": 0}) for unit in units]
        seconds["read"] += sum(result["seconds"] for result in results)
        seconds["tokenise"] += sum((result_of(step.folder(unit)) or {})["seconds"] for unit in units)
        passed = sum(result["num_documents"] for result in results)
        exact, near = (sum(one[kind] for one in removed) for kind in ("exact", "near"))
        splits = manifests[name]["splits"]
        kept_bytes = sum(split["num_bytes"] for split in splits.values())
        kept_tokens = sum(split["num_tokens"] for split in splits.values())
        sources[name] = {
            "num_files": manifests[name]["source"]["num_files"],
            "num_input_bytes": sum(unit.num_bytes for unit in units),
            "documents_read": account.read_documents,
            "text_bytes_read": account.read_text_bytes,
            "documents_passed": passed,
            "text_bytes_passed": sum(result["num_text_bytes"] for result in results),
            "exact_copies": exact,
            "near_copies": near,
            "documents_kept": passed - exact - near,  # eval_split=tail has a part of each in both splits
            "text_bytes_kept": kept_bytes,
            "train_tokens": splits["train"]["num_tokens"],
            "eval_tokens": splits["eval"]["num_tokens"],
            "bytes_per_token": round(kept_bytes / max(1, kept_tokens), 4),
            "weight": _weight(cfg, name),
            "epochs": _epochs(cfg, name, splits["train"]["num_tokens"]),
            "language_bytes": dict(languages.most_common()),
            "dropped": dict(account.dropped.most_common()),
            "changed": dict(account.changed.most_common()),
            "faults": dict(account.faults.most_common()),
            "examples": account.examples
            | {kind: lines for (source, kind), lines in copies.items() if source == name},
            "sha256": manifests[name]["sha256"],
        }
    return {
        "format": FORMAT,
        "sources": sources,
        "budget_tokens": cfg.budget_tokens,
        "tokenizer_sha256": step.tokenizer.sha256,
        "vocab_size": step.tokenizer.vocab_size,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "disk_bytes": {
            **{name: _size(os.path.join(output, BUILD, name)) for name in ("read", "dedup", "tokens")},
            "corpora": sum(_size(os.path.join(output, name)) for name in cfg.names),
        },
    }


def _weight(cfg: Any, name: str) -> float:
    total = sum(source.weight_tokens for source in cfg.sources.values())
    return cfg.sources[name].weight_tokens / total if total else 0.0


def _epochs(cfg: Any, name: str, tokens: int) -> float | None:
    """How often a run of `budget_tokens` reads the source; None without a budget."""
    if not cfg.budget_tokens or not tokens:
        return None
    return round(cfg.budget_tokens * _weight(cfg, name) / tokens, 6)


def _example_lines(step: Any, pairs: Sequence[Sequence[Any]]) -> dict[tuple[str, str], list[str]]:
    """(source, kind of copy) -> lines that name a copy and what it is one of."""
    from jaxlm.corpus.raw.read import read_documents

    units = {unit.key: unit for unit in step.units}
    wanted: dict[str, set[int]] = {}
    for _, *ends in pairs:
        for key, place in ends:
            wanted.setdefault(key, set()).add(place)
    names: dict[tuple[str, int], str] = {}
    for key, places in wanted.items():
        for place, document in enumerate(read_documents(units[key].folder(step.output))):
            if place in places:
                names[key, place] = f"{units[key].source}: {document['id']} {document['text'][:60]!r}"
            if place >= max(places):
                break
    lines: dict[tuple[str, str], list[str]] = {}
    for kind, gone, stays in pairs:
        line = f"{names[gone[0], gone[1]]} is a copy of {names[stays[0], stays[1]]}"
        found = lines.setdefault((units[gone[0]].source, f"{kind}_copy"), [])
        if len(found) < MAX_EXAMPLES:
            found.append(line)
    return lines


def _size(folder: str) -> int:
    """Bytes of the files below a folder."""
    return sum(
        os.lstat(os.path.join(where, name)).st_size for where, _, names in os.walk(folder) for name in names
    )


def write_report(output: str, report: Mapping[str, Any]) -> None:
    """Writes OUTPUT/report.json and OUTPUT/report.html."""
    from jaxlm.corpus.raw.report_page import page

    write_atomic(os.path.join(output, REPORT), json.dumps(report, indent=1, ensure_ascii=False).encode())
    write_atomic(os.path.join(output, PAGE), page(report).encode())


def read_report(output: str) -> dict[str, Any]:
    """The report of a finished build. Errors: UserError."""
    path = os.path.join(output, REPORT)
    try:
        found = read_json(path)
        check(found, _SHAPE)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{output} holds no {REPORT}: it is no corpus of `jaxlm corpus build --config`, or not finished. Run the "
            "same command again to finish it."
        ) from None
    except JSON_ERRORS as error:
        raise UserError(f"{path} is damaged ({error}): build again to write it anew.") from None
    return found


def lines(report: Mapping[str, Any]) -> Iterator[str]:
    """The report in a terminal."""
    heads = (
        "source",
        "files",
        "read",
        "passed",
        "copies",
        "kept",
        "train tokens",
        "bytes/token",
        "weight",
        "epochs",
    )
    rows = []
    for name, source in report["sources"].items():
        copies = source["exact_copies"] + source["near_copies"]
        epochs = source["epochs"]
        rows.append((
            name, f"{source['num_files']:,}", f"{source['documents_read']:,}", f"{source['documents_passed']:,}",
            f"{copies:,}", f"{source['documents_kept']:,}", f"{source['train_tokens']:,}",
            f"{source['bytes_per_token']:.2f}", f"{source['weight']:.3f}",
            "-" if epochs is None else f"{epochs:.3g}",
        ))  # fmt: skip
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    for row in [heads, *rows]:
        yield "  ".join(
            text.ljust(width) if i == 0 else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths))
        )
    for word in ("dropped", "changed", "faults"):
        for name, source in report["sources"].items():
            if source[word]:
                counts = ", ".join(f"{reason} {count:,}" for reason, count in source[word].items())
                yield f"{name}: {word}: {counts}"
