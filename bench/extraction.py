"""How well and how fast the main text of pages is found: `python bench/extraction.py FOLDER [--rounds N]`.

The folder holds pages and their main text as people marked it: `name.html` and `name.txt`, UTF-8.

The measure is that of the article extraction benchmark: texts are bags of shingles, four words that follow each other;
of each page the share of found shingles that are right (precision) and of right ones that are found (recall); then the
mean of each over all pages, and F1 of the two means. Both extractors read the same decoded pages; MB are of HTML, CPU
time of one core, the best of several rounds.

Source: https://github.com/scrapinghub/article-extraction-benchmark, evaluate.py (read 2026-11-26).
"""

from __future__ import annotations

import argparse
import random
import re
import statistics
import time
from collections import Counter
from pathlib import Path

from jaxlm.corpus.raw.html import EXTRACTORS, extract

SHINGLE_WORDS = 4
_WORD = re.compile(r"\w+")


def shingles(text: str) -> Counter[tuple[str, ...]]:
    """Of a text: each run of four words, with its number; of a shorter text, the text."""
    words = _WORD.findall(text)
    if not words:
        return Counter()
    return Counter(tuple(words[i : i + SHINGLE_WORDS]) for i in range(max(1, len(words) - SHINGLE_WORDS + 1)))


def score(pairs: list[tuple[str, str]]) -> tuple[float, float, float]:
    """(F1, precision, recall) of texts: (marked by people, found)."""
    precisions, recalls = [], []
    for marked, found in pairs:
        true, ours = shingles(marked), shingles(found)
        right = (true & ours).total()
        if ours:
            precisions.append(right / ours.total())
        if true:
            recalls.append(right / true.total())
    precision = sum(precisions) / max(1, len(precisions))
    recall = sum(recalls) / max(1, len(recalls))
    return 2 * precision * recall / max(1e-12, precision + recall), precision, recall


def half_width(pairs: list[tuple[str, str]], rounds: int = 200) -> float:
    """Of the interval that holds F1 in 95% of the choices of as many pages, drawn with replacement."""
    draw = random.Random(0)
    values = [score(draw.choices(pairs, k=len(pairs)))[0] for _ in range(rounds)]
    return 1.96 * statistics.stdev(values)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    names = sorted(path for path in args.folder.glob("*.html") if path.with_suffix(".txt").exists())
    if not names:
        parser.error(f"{args.folder} holds no pair of a page NAME.html and its main text NAME.txt")
    pages = [path.read_text(encoding="utf-8") for path in names]
    marked = [path.with_suffix(".txt").read_text(encoding="utf-8") for path in names]
    num_bytes = sum(len(page.encode()) for page in pages)
    best_s = dict.fromkeys(EXTRACTORS, float("inf"))
    found: dict[str, list[str]] = {}
    for _ in range(args.rounds):
        for extractor in EXTRACTORS:
            begin = time.process_time()
            found[extractor] = [extract(page, extractor).text for page in pages]
            best_s[extractor] = min(best_s[extractor], time.process_time() - begin)
    print(f"{len(pages)} pages, {num_bytes / 1e6:.2f} MB of HTML")
    print(f"{'':<12} {'F1':>6} {'+-':>6} {'precision':>9} {'recall':>6} {'MB/s':>6}")
    for extractor in EXTRACTORS:
        pairs = list(zip(marked, found[extractor]))
        f1, precision, recall = score(pairs)
        rate = num_bytes / best_s[extractor] / 1e6
        print(
            f"{extractor:<12} {f1:6.3f} {half_width(pairs):6.3f} {precision:9.3f} {recall:6.3f} {rate:6.1f}"
        )


if __name__ == "__main__":
    main()
