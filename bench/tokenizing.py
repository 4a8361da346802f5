"""How fast text becomes shards, beside sentencepiece alone: `python bench/tokenizing.py [--kind bpe] [FILE ...]`.

Both sides use one core and its CPU time, and the best of several rounds. Ours is the whole way: read JSON lines,
choose held-out documents, tokenise with a cold cache, write shards and their hashes. Sentencepiece's is `encode`
of the same documents, already in memory, with nothing done to the ids. (Not tokenize.py: beside a script of that
name Python's own module cannot be imported.)
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time

from jaxlm.corpus import embedded
from jaxlm.corpus.inputs import find_inputs, plan_units
from jaxlm.corpus.split import Split
from jaxlm.corpus.text import ReadOptions, Tally
from jaxlm.corpus.units import Job, tokenise
from jaxlm.data.tokenizer import SentencePieceTokenizer, train_tokenizer


def rates(texts: list[str], kind: str, vocab_size: int = 8000, rounds: int = 3) -> tuple[float, float]:
    """(bytes/s of jaxlm's whole way, bytes/s of sentencepiece's encode), on one core."""
    model = train_tokenizer(texts, kind, vocab_size)
    size = sum(len(text.encode()) for text in texts)
    ours, raw = [], []
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "text.jsonl")
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
        units = plan_units(find_inputs([path], Tally()), ReadOptions())
        for number in range(rounds):
            tokenizer = SentencePieceTokenizer(model)
            processor = tokenizer._sp
            begin = time.process_time()
            processor.encode(texts, num_threads=1)
            raw.append(time.process_time() - begin)
            begin = time.process_time()
            for index, unit in enumerate(units):
                place = os.path.join(folder, f"{number}-{index}")
                split = Split("hash", 0.02, int(0.02 * 2**64))
                tokenise(
                    Job(unit, place, ReadOptions(), split, 1 << 24, 2048), tokenizer, lambda tokens: None
                )
            ours.append(time.process_time() - begin)
    return size / min(ours), size / min(raw)


def main() -> None:
    """Prints one line per kind of tokenizer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="*", help="text files; default: the embedded topics and docstrings")
    parser.add_argument("--kind", nargs="+", default=["bpe", "unigram"])
    args = parser.parse_args()
    if args.files:
        texts = []
        for path in args.files:
            with open(path, encoding="utf-8") as file:
                content = file.read()
            lines = content.splitlines()
            texts += [json.loads(line)["text"] for line in lines] if path.endswith(".jsonl") else [content]
    else:
        texts = [*embedded.texts("embedded:topics"), *embedded.texts("embedded:docstrings")]
    for kind in args.kind:
        ours, raw = rates(texts, kind)
        print(
            f"tokenising ({kind}, one core): text to shards {ours / 1e6:.1f} MB/s, sentencepiece's encode "
            f"{raw / 1e6:.1f} MB/s: {ours / raw:.0%}"
        )


if __name__ == "__main__":
    main()
