"""How fast text becomes tokens, beside sentencepiece alone: `python bench/tokenizing.py [--kind bpe] [FILE ...]`.

All sides use one core and its CPU time, and the best of several rounds.

- tokens: `Tokenizer.documents`, from texts in memory to one array of ids with BOS and EOS; its cache starts cold.
- shards: the whole way of `jaxlm corpus build`: read JSON lines, choose held-out documents, tokenise, write shards.
- sentencepiece: its `encode` of the same texts in memory, with nothing done to the ids.

(Not tokenize.py: beside a script of that name Python's own module cannot be imported.)
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time

import sentencepiece

from jaxlm.corpus import embedded
from jaxlm.corpus.inputs import find_inputs, plan_units
from jaxlm.corpus.split import Split
from jaxlm.corpus.text import ReadOptions, Tally
from jaxlm.corpus.units import Job, tokenise
from jaxlm.data.tokenizer import SentencePieceTokenizer
from jaxlm.data.tokenizer_training import train_tokenizer


def rates(texts: list[str], kind: str, vocab_size: int = 8000, rounds: int = 3) -> tuple[float, ...]:
    """Bytes/s on one core of jaxlm to tokens, jaxlm to shards, and sentencepiece's encode."""
    model = train_tokenizer(texts, kind, vocab_size)
    size = sum(len(text.encode()) for text in texts)
    tokens, shards, raw = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "text.jsonl")
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
        units = plan_units(find_inputs([path], Tally()), ReadOptions())
        for number in range(rounds):
            processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            begin = time.process_time()
            processor.encode(texts, num_threads=1)
            raw.append(time.process_time() - begin)
            tokenizer = SentencePieceTokenizer(model)
            begin = time.process_time()
            tokenizer.documents(texts)
            tokens.append(time.process_time() - begin)
            tokenizer = SentencePieceTokenizer(model)
            begin = time.process_time()
            for index, unit in enumerate(units):
                place = os.path.join(folder, f"{number}-{index}")
                split = Split("hash", 0.02, int(0.02 * 2**64))
                tokenise(
                    Job(unit, place, ReadOptions(), split, 1 << 24, 2048), tokenizer, lambda tokens: None
                )
            shards.append(time.process_time() - begin)
    return size / min(tokens), size / min(shards), size / min(raw)


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
        tokens, shards, raw = rates(texts, kind)
        print(
            f"tokenising ({kind}, one core): {tokens / 1e6:.1f} MB/s, {tokens / raw:.0%} of sentencepiece's "
            f"{raw / 1e6:.1f} MB/s; text to shards {shards / 1e6:.1f} MB/s, {shards / raw:.0%}"
        )


if __name__ == "__main__":
    main()
