"""`jaxlm data show`: records as they are trained on, the trained tokens marked."""

from __future__ import annotations

import html
import itertools
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxlm.types import UserError

if TYPE_CHECKING:
    from jaxlm.data.examples import ExampleStore
    from jaxlm.data.tokenizer import Tokenizer
    from jaxlm.runconfig import RunConfig

TRAINED_STYLE = "bold green"
_PAGE = """<!doctype html>
<meta charset="utf-8">
<title>Records as they are trained on</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; }}
pre {{ white-space: pre-wrap; color: #666; border: 1px solid #ddd; padding: .8em; }}
mark {{ background: #d7f5d7; color: #060; }}
table {{ border-collapse: collapse; }} td {{ padding: 0 1em 0 0; }}
</style>
<p>Marked: the tokens that are trained on.</p>
{body}
"""


class Stretch(NamedTuple):
    """Neighbouring tokens of a record that are all trained on, or all not."""

    text: str
    trained: bool


def show(cfg: RunConfig, num: int, split: str, html_file: str | None) -> int:
    """Prints `num` records of each source, and counts; or writes them as a page."""
    stores, tokenizer = _open(cfg, split)
    if html_file is not None:
        from jaxlm.data.files import write_atomic

        body = "\n".join(
            part for name, store in stores.items() for part in _as_html(name, store, tokenizer, num)
        )
        write_atomic(html_file, _PAGE.format(body=body).encode())
        print(html_file)
        return 0
    colours = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    for name, store in stores.items():
        for example in range(min(num, store.num_documents)):
            print(f"--- {name}: {store.where(example)}{_label(store, example)}")
            _print(stretches(store, tokenizer, example), colours)
        print("\n".join(f"{name}: {line}" for line in counts(store)))
    return 0


def _open(cfg: RunConfig, split: str) -> tuple[dict[str, ExampleStore], Tokenizer]:
    if cfg.objective == "pretrain":
        raise UserError(
            "jaxlm data show needs objective=instruct or classify: pretrain reads documents, all of which are trained "
            "on. See `jaxlm data plan`."
        )
    from jaxlm.run import open_data

    opened = open_data(cfg)
    return (opened.train if split == "train" else opened.eval), opened.tokenizer


def stretches(store: ExampleStore, tokenizer: Tokenizer, example: int) -> list[Stretch]:
    """The tokens of a record as text, special ones by name."""
    import numpy as np

    end = int(store.document_ends[example])
    start = int(store.document_ends[example - 1]) if example else 0
    place = np.array([start]), np.array([end - start])
    ids, trained = store.read_rows(*place)[0].tolist(), store.read_trained(*place)[0].tolist()
    found = []
    for known, group in itertools.groupby(zip(ids, trained), key=lambda pair: pair[1]):
        found.append(Stretch(_text([i for i, _ in group], tokenizer), known))
    return found


def _text(ids: list[int], tokenizer: Tokenizer) -> str:
    special = set(tokenizer.special.values())
    return "".join(
        "".join(map(tokenizer.piece, group)) if known else tokenizer.decode(group)
        for known, group in ((k, list(g)) for k, g in itertools.groupby(ids, key=special.__contains__))
    )


def _label(store: ExampleStore, example: int) -> str:
    if store.manifest["task"] is None:
        return ""
    label = store.label_of(example)
    return f"  label: {(', '.join(label) or '(none)') if isinstance(label, list) else f'{label:g}'}"


def counts(store: ExampleStore) -> Iterator[str]:
    """Lines about a whole split of a source."""
    manifest: dict[str, Any] = store.manifest
    yield f"{manifest['num_examples']:,} records, {manifest['num_tokens']:,} tokens"
    if manifest["task"] is None:
        share = manifest["num_trained"] / max(1, manifest["num_tokens"])
        yield f"{manifest['num_trained']:,} trained tokens ({share:.1%}), template {manifest['template']}"
    elif manifest["labels"]:
        found = [f"{label} {n:,}" for label, n in list(manifest["label_counts"].items())[:20]]
        more = len(manifest["labels"]) - len(found)
        yield f"labels: {', '.join(found)}{f' and {more:,} more' if more else ''}"
    yield f"{manifest['num_truncated']:,} truncated"
    dropped = ", ".join(f"{n:,} {reason}" for reason, n in manifest["dropped"].items()) or "none"
    yield f"dropped: {dropped}; columns: {manifest['columns']['name'] if manifest['columns'] else 'none'}"


def _print(parts: list[Stretch], colours: bool) -> None:
    if not colours:
        print("".join(f"[[{part.text}]]" if part.trained else part.text for part in parts))
        return
    from rich.console import Console
    from rich.text import Text

    text = Text()
    for part in parts:
        text.append(part.text, style=TRAINED_STYLE if part.trained else "dim")
    Console(highlight=False).print(text, soft_wrap=True)


def _as_html(name: str, store: ExampleStore, tokenizer: Tokenizer, num: int) -> Iterator[str]:
    yield f"<h2>{html.escape(name)}</h2>"
    yield f"<p>{html.escape('; '.join(counts(store)))}</p>"
    for example in range(min(num, store.num_documents)):
        yield f"<h4>{html.escape(store.where(example) + _label(store, example))}</h4>"
        parts = stretches(store, tokenizer, example)
        text = "".join(
            f"<mark>{html.escape(part.text)}</mark>" if part.trained else html.escape(part.text)
            for part in parts
        )
        yield f"<pre>{text}</pre>"
