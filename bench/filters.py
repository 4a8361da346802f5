"""How fast each filter of raw documents is on one core: `python bench/filters.py [--bytes N] [FILE.jsonl ...]`.

Texts come from files of {"text", "url"} records, or from Python's own documentation (`embedded:topics`) until there are
--bytes of them. Each line is one step: MB/s of text on the CPU time of one core, best of three rounds, each on all the
texts whatever other steps would drop; its share of the time of all; and what it would drop. Beside it, where there is
one, datatrove's own class on the same words: they are cut beforehand for both, and are a line of their own.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable

from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.formatters.pii import PIIFormatter
from datatrove.utils.text import split_into_parts, split_into_words

from jaxlm.corpus import embedded
from jaxlm.corpus.raw.decontaminate import DecontaminateStep, build_index
from jaxlm.corpus.raw.document import Account
from jaxlm.corpus.raw.filter_config import DecontaminateConfig, FilterConfig
from jaxlm.corpus.raw.filters import RuleStep, build_filters
from jaxlm.corpus.raw.language import LanguageIdentifier
from jaxlm.corpus.raw.steps import AccountedStep
from jaxlm.corpus.raw.words import UnicodeWords

ROUNDS = 3


Record = tuple[str, str | None, str]
"""Text, address, language."""


def read(files: list[str], num_bytes: int) -> list[Record]:
    """Every record, again and again until there are num_bytes."""
    texts: list[tuple[str, str | None]] = []
    for path in files:
        with open(path, encoding="utf-8") as file:
            records = map(json.loads, file)
            texts += [(record["text"], record.get("url")) for record in records]
    if not files:
        texts = [(text, None) for text in embedded.texts("embedded:topics")]
    size = sum(len(text.encode()) for text, _ in texts)
    identifier = LanguageIdentifier()
    records = [(text, url, identifier.identify(text)[0]) for text, url in texts]
    return records * max(1, -(-num_bytes // size))


def seconds(work: Callable[[Document], object], texts: list[Record], before) -> float:
    """CPU time of the best round; `before` is done to each document outside of it."""
    rounds = []
    for _ in range(ROUNDS):
        total = 0.0
        for number, (text, url, language) in enumerate(texts):
            document = Document(text, str(number), metadata={"url": url, "language": language})
            before(document)
            begin = time.process_time()
            work(document)
            total += time.process_time() - begin
        rounds.append(total)
    return min(rounds)


def theirs(words: UnicodeWords) -> dict[str, Callable[[Document], object]]:
    """datatrove's class for a step of ours."""
    pii = PIIFormatter()
    return {
        "gopher_quality": GopherQualityFilter(language=words).filter,
        "gopher_repetition": GopherRepetitionFilter(language=words).filter,
        "c4": C4QualityFilter(language=words, filter_no_terminal_punct=False).filter,
        "fineweb": FineWebQualityFilter(language=words).filter,
        "personal_data": lambda document: pii.format(document.text),
    }


def steps_of(evaluation: str, account: Account) -> Iterable[AccountedStep]:
    yield from build_filters(FilterConfig(personal_data=True), account)
    config = DecontaminateConfig(evaluation=evaluation)
    yield DecontaminateStep(config, build_index(config), account)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*")
    parser.add_argument("--bytes", type=int, default=3_000_000)
    parser.add_argument("--evaluation", default="embedded:licences", help="see decontaminate.evaluation")
    options = parser.parse_args()
    texts = read(options.files, options.bytes)
    size = sum(len(text.encode()) for text, _, _ in texts)
    print(f"{len(texts):,} documents, {size / 1e6:.1f} MB of {', '.join(options.files) or 'embedded:topics'}")
    words = UnicodeWords()

    def cut(document: Document) -> None:
        split_into_parts.cache_clear()
        split_into_words(document.text, words)

    account = Account()
    steps = list(steps_of(options.evaluation, account))
    rows: list[tuple[str, float, float | None, str]] = []
    taken = seconds(
        lambda document: words.word_tokenize(document.text), texts, lambda document: words.forget()
    )
    rows.append(("words", taken, None, ""))
    for step in steps:
        account.dropped.clear()

        def before(document: Document, step: AccountedStep = step) -> None:
            if isinstance(step, RuleStep):
                step._words.word_tokenize(document.text)
            if step.name == "language":
                document.metadata["language"] = None

        taken = seconds(lambda document, step=step: list(step.apply(document)), texts, before)
        other = theirs(words).get(step.name)
        dropped = ", ".join(f"{count // ROUNDS} {reason}" for reason, count in account.dropped.most_common(3))
        rows.append((step.name, taken, seconds(other, texts, cut) if other else None, dropped))
    total = sum(taken for _, taken, _, _ in rows)
    print(f"{'step':20}{'MB/s':>8}{'share':>8}{'datatrove':>11}  dropped")
    for name, taken, other, dropped in rows:
        beside = f"{size / other / 1e6:.1f}" if other else ""
        print(f"{name:20}{size / taken / 1e6:8.1f}{taken / total:8.1%}{beside:>11}  {dropped}")
    print(f"{'all':20}{size / total / 1e6:8.1f}")


if __name__ == "__main__":
    main()
