"""From WET to shards: MB/s of the whole pipeline, against datatrove run by hand; memory for two sizes.

    python bench/corpus.py                 100 MB against datatrove, and memory at 20 and 200 MB
    python bench/corpus.py --mb=100 --memory-mb=100,1000

The text is made of sentences of Python's own documentation (`embedded:topics`, `:docstrings`), shuffled, with names of
its own in each page, and one page in ten a copy of another with a word changed. Both sides read the same gzipped files
of WET with the same number of processes, and do the same: Gopher's, C4's and FineWeb's rules, MinHash with 14 buckets
of 8, tokenising with the same sentencepiece model. By hand means datatrove's own reader, filters, deduplication,
writers and executor, as its example of FineWeb has them (examples/fineweb.py), with our splitter of words, since its
own needs spaCy. jaxlm also identifies the language of each page; datatrove's filter would download a model for that.
It needs warcio, faust-cchardet and python-magic beside `jaxlm[corpus]`.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time

NUM_FILES = 8
PAGE_SENTENCES = (15, 60)


def sentences() -> list[str]:
    from jaxlm.corpus import embedded

    found = []
    for name in ("topics", "docstrings"):
        for text in embedded.texts(f"embedded:{name}"):
            flat = re.sub(r"\s+", " ", text)
            found += [one for one in re.split(r"(?<=[.!?]) ", flat) if 40 < len(one) < 400 and "{" not in one]
    return found


def make_wet(folder: str, num_bytes: int) -> int:
    """Writes NUM_FILES files of WET, one gzip member a record; returns the bytes of text in them."""
    os.makedirs(folder, exist_ok=True)
    pool, own = sentences(), random.Random(0)
    done, pages = 0, []
    for number in range(NUM_FILES):
        with open(os.path.join(folder, f"{number:03d}.warc.wet.gz"), "wb") as file:
            size = 0
            while size < num_bytes // NUM_FILES:
                if pages and own.random() < 0.1:
                    words = own.choice(pages).split(" ")
                    words[own.randrange(len(words))] = "changed"
                    text = " ".join(words)
                else:
                    lines = own.choices(pool, k=own.randint(*PAGE_SENTENCES))
                    text = "\n".join(
                        f"{line} {own.choice('abcdefgh')}{own.randrange(10**6)}." for line in lines
                    )
                    pages = [*pages[-200:], text]
                body = text.encode()
                head = (
                    "WARC/1.0\r\nWARC-Type: conversion\r\n"
                    f"WARC-Target-URI: https://example{own.randrange(1000)}.org/{own.randrange(10**9)}\r\n"
                    "WARC-Date: 2024-05-01T00:00:00Z\r\n"
                    f"WARC-Record-ID: <urn:uuid:{own.getrandbits(128):032x}>\r\nContent-Type: text/plain\r\n"
                    f"Content-Length: {len(body)}\r\n\r\n"
                )
                file.write(gzip.compress(head.encode() + body + b"\r\n\r\n", 6, mtime=0))
                size += len(body)
            done += size
    return done


def ours(folder: str, output: str, tokenizer: str, workers: int) -> None:
    from jaxlm.corpus.raw import config, pipeline

    cfg = config.default_config()
    cfg.sources["crawl"] = dict(path=os.path.join(folder, "*.wet.gz"))
    cfg.filters.url = False  # datatrove's own needs packages, and what it looks up is the same
    cfg.filters.gopher_quality = cfg.filters.gopher_repetition = cfg.filters.c4 = cfg.filters.fineweb = True
    cfg.tokenizer.path = tokenizer
    cfg.executor.workers = workers
    pipeline.build(config.resolve(cfg), output, progress=False)


def by_hand(folder: str, output: str, tokenizer: str, workers: int) -> None:
    import sentencepiece
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.base import PipelineStep
    from datatrove.pipeline.dedup.minhash import (
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )
    from datatrove.pipeline.readers import JsonlReader, WarcReader
    from datatrove.pipeline.writers import JsonlWriter
    from datatrove.utils.hashing import HashConfig

    from jaxlm.corpus.raw.words import UnicodeWords

    class Tokenise(PipelineStep):
        """datatrove's DocumentTokenizer takes no sentencepiece model."""

        type, name = "TOKENIZER", "sentencepiece"

        def run(self, data=None, rank=0, world_size=1):
            import numpy as np

            processor = sentencepiece.SentencePieceProcessor(model_file=tokenizer)
            os.makedirs(f"{output}/tokens", exist_ok=True)
            with open(f"{output}/tokens/{rank:05d}.bin", "wb") as file:
                for document in data:
                    ids = processor.encode(document.text, add_bos=True, add_eos=True)
                    file.write(np.asarray(ids, np.uint16).tobytes())

    words = UnicodeWords()
    minhash = MinhashConfig(hash_config=HashConfig(hash_fc="sha1"))
    kept = f"{output}/kept"
    stages = [
        ([
            WarcReader(folder, glob_pattern="*.wet.gz"),
            GopherRepetitionFilter(language=words),
            GopherQualityFilter(language=words),
            C4QualityFilter(filter_no_terminal_punct=False, language=words),
            FineWebQualityFilter(language=words),
            JsonlWriter(kept),
        ], NUM_FILES),
        ([JsonlReader(kept), MinhashDedupSignature(f"{output}/sig", minhash, language=words)], NUM_FILES),
        ([MinhashDedupBuckets(f"{output}/sig", f"{output}/buckets", config=minhash)], minhash.num_buckets),
        ([MinhashDedupCluster(f"{output}/buckets", f"{output}/remove", config=minhash)], 1),
        ([JsonlReader(kept), MinhashDedupFilter(f"{output}/remove"), Tokenise()], NUM_FILES),
    ]  # fmt: skip
    for number, (pipeline, tasks) in enumerate(stages):
        LocalPipelineExecutor(
            pipeline,
            tasks=tasks,
            workers=min(workers, tasks),
            logging_dir=f"{output}/logs/{number}",
            start_method="fork",
        ).run()


def train_tokenizer(path: str) -> None:
    from jaxlm.data.tokenizer_training import train_tokenizer as train

    with open(path, "wb") as file:
        file.write(train(sentences()[:20000], "bpe", 8192))


def child(what: str, *args: str) -> dict[str, float]:
    """Runs `ours` or `by_hand` in a process of its own: seconds, and the memory of its largest process."""
    command = [sys.executable, __file__, f"--child={what}", *args]
    environ = os.environ | {"LOGURU_LEVEL": "ERROR"}
    done = subprocess.run(command, capture_output=True, text=True, env=environ)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def missing() -> str:
    """What datatrove's reader of WARC needs and is not installed."""
    names = {"warcio": "warcio", "cchardet": "faust-cchardet", "magic": "python-magic"}
    return ", ".join(package for name, package in names.items() if importlib.util.find_spec(name) is None)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mb", type=int, default=100, help="text to compare with datatrove")
    parser.add_argument("--memory-mb", default="20,200", help="sizes to measure memory at")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--child")
    parser.add_argument("args", nargs="*")
    args = parser.parse_args()
    if args.child:
        begin = time.perf_counter()
        {"ours": ours, "by_hand": by_hand}[args.child](*args.args[:3], int(args.args[3]))
        seconds = time.perf_counter() - begin
        usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        peak = max(one.ru_maxrss for one in usage) / 1024
        cpu = sum(one.ru_utime + one.ru_stime for one in usage)
        print(json.dumps({"seconds": seconds, "peak_mib": peak, "cpu_s": cpu}))
        return 0
    root = tempfile.mkdtemp(prefix="jaxlm-corpus-")
    try:
        tokenizer = os.path.join(root, "own.model")
        train_tokenizer(tokenizer)
        folder = os.path.join(root, "wet")
        size = make_wet(folder, args.mb * 1_000_000)
        print(f"{size / 1e6:.0f} MB of text in {NUM_FILES} files of WET, {args.workers} processes")
        found = {}
        sides = ["ours"] if (lacking := missing()) else ["by_hand", "ours"]
        if lacking:
            print(f"datatrove by hand: not compared, for lack of {lacking}")
        for what in sides:
            found[what] = child(what, folder, os.path.join(root, what), tokenizer, str(args.workers))
            one = found[what]
            print(
                f"{'datatrove by hand' if what == 'by_hand' else 'jaxlm':<18} {one['seconds']:7.1f} s  "
                f"{size / 1e6 / one['seconds']:6.2f} MB/s  {one['cpu_s']:7.1f} CPU s  "
                f"peak {one['peak_mib']:6.0f} MiB a process"
            )
        if not lacking:
            ratio = found["by_hand"]["seconds"] / found["ours"]["seconds"]
            print(f"jaxlm / datatrove: {ratio:.2f} (limit: at least 0.90)")
        peaks = []
        for mb in map(int, args.memory_mb.split(",")):
            folder = os.path.join(root, f"wet{mb}")
            size = make_wet(folder, mb * 1_000_000)
            one = child("ours", folder, os.path.join(root, f"out{mb}"), tokenizer, str(args.workers))
            peaks.append(one["peak_mib"])
            print(
                f"{size / 1e6:6.0f} MB: {size / 1e6 / one['seconds']:.2f} MB/s, "
                f"peak {one['peak_mib']:.0f} MiB a process"
            )
            shutil.rmtree(folder)
        if len(peaks) > 1:
            print(f"peak, last / first: {peaks[-1] / peaks[0]:.2f} (limit: 1.25)")
    finally:
        shutil.rmtree(root)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
