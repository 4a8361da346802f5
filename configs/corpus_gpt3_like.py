"""Five corpora like those of GPT-3, with its weights (arXiv:2005.14165, table 2.2), from raw files to shards.

    jaxlm corpus build --config=corpus_gpt3_like --config.root=data --output=corpora
    jaxlm train --config=pretrain_corpus:corpora --workdir=runs/corpus

Below `root`: `raw/` with web archives (WARC and WET) and a dump of Wikipedia, `pretrain/` with JSON lines of crawled
pages, pages behind well-liked links, and two collections of books. Point each source at files of your own with
`--config.sources.NAME.path=...`: a folder, a glob, a list such as `wet.paths.gz`, several with commas between.

What is pretrained text already (books, pages behind links, Wikipedia) is only freed of copies; crawled pages also pass
the filters. Sources are in the order in which copies stay: a page of the crawl that is also in Wikipedia goes.

Hardware: any; on a cluster, `--config.executor.kind=slurm` or `ray`. Result: not run on a whole snapshot; what one
takes is in docs/corpus.md.
"""

from jaxlm.corpus.raw import config

WEIGHTS = {
    "wikipedia": 3,
    "books1": 8,
    "books2": 8,
    "webtext2": 22,
    "common_crawl": 60,
}  # percent of the tokens


def get_config():
    cfg = config.default_config()
    paths = {
        "wikipedia": "raw/*pages-articles*.xml.bz2",
        "books1": "pretrain/books1.jsonl",
        "books2": "pretrain/books2.jsonl",
        "webtext2": "pretrain/webtext2.jsonl",
        "common_crawl": "raw/*.warc.gz, raw/*.wet.gz, pretrain/common_crawl.jsonl",
    }
    for order, (name, weight) in enumerate(WEIGHTS.items()):
        is_crawl = name == "common_crawl"
        cfg.sources[name] = dict(path=paths[name], weight_tokens=weight, order=order, filter=is_crawl)
    cfg.tokenizer.vocab_size = 8192
    cfg.eval_fraction = 0.02
    cfg.budget_tokens = 2e6
    return cfg
