"""CorpusConfig: from raw files to shards. Imports no JAX, and none of the packages of the extra `corpus`."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from jaxlm.config import check_choice, from_config_dict, to_config_dict
from jaxlm.config_flags import parse_config_flags
from jaxlm.corpus.raw.filter_config import DecontaminateConfig, FilterConfig, evaluation_sets
from jaxlm.data.config import EVAL_SPLITS, TokenizerConfig
from jaxlm.types import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

FORMATS = ("auto", "warc", "wikipedia", "text", "epub", "jsonl", "json", "csv", "tsv", "parquet")
DOCUMENTS = ("file", "chapter", "paragraph", "line")
EXTRACTORS = ("resiliparse", "trafilatura")
EXECUTORS = ("local", "slurm", "ray")
MAX_HASHES = 1 << 14
"""Of a phrase, for signatures. FineWeb took 112; the time of a build grows with them."""
_TIME_LIMIT = re.compile(r"(\d+-)?\d+(:\d{1,2}){0,2}")
MAX_BUCKETS = 256
"""Each is two files of every unit."""


@dataclass(frozen=True)
class RawSourceConfig:
    """One named source: `sources.<name>.<field>`."""

    path: str = ""
    """Files, folders, globs, lists of paths (`*.paths.gz`), `hf://datasets/...`, several with commas between; below
    `root`, unless absolute or with a scheme such as https://."""
    format: str = "auto"
    """By the name of each file, or `warc` (WET too), `wikipedia`, `text`, `epub`, `jsonl`, `json`, `csv`, `tsv`,
    `parquet`."""
    weight_tokens: float = 1.0
    """Share of the tokens of a run, for the epochs of the report. Weights are normalised to 1."""
    order: int = 0
    """Of two copies the one stays whose source comes first: lower numbers, then names by the alphabet."""
    document: str = "file"
    """What one document of a text file or book is: `file`, `chapter`, `paragraph` or `line`."""
    text_key: str = "text"
    """Key or column of the text in records."""
    score_key: str = "score"
    """Key or column of the score, for `min_score`."""
    min_score: float | None = None
    """Records with a lower score are dropped: WebText took links of 3 and more (Radford et al. 2019, section 2.1)."""
    links: str | None = None
    """A list of links (with scores, for `min_score`): documents of other addresses are dropped."""
    disambiguation: bool = False
    """Whether Wikipedia's pages that only list the meanings of a word are kept."""
    filter: bool = True
    """Whether the rules of quality in `filters` apply; False for text that was chosen by hand, such as books. Languages
    and personal data always do."""

    def __post_init__(self):
        if not self.path:
            raise UserError("sources.<name>.path is empty: give a file, a folder, a glob or a list of paths.")
        for name in ("text_key", "score_key"):
            if not getattr(self, name):
                raise UserError(f"sources.<name>.{name} is empty: name a key or column.")
        if self.links == "":
            raise UserError("sources.<name>.links is empty: give a list of links, or None for no list.")
        if not self.weight_tokens >= 0:
            raise UserError(f"sources.<name>.weight_tokens={self.weight_tokens} must not be negative.")
        check_choice("sources.<name>.format", self.format, FORMATS)
        check_choice("sources.<name>.document", self.document, DOCUMENTS)


@dataclass(frozen=True)
class DedupConfig:
    """Which copies go: `dedup.<field>`. Of two documents the one of the earlier source, file and place stays."""

    exact: bool = True
    """Documents of the same text."""
    minhash: bool = True
    """Documents that share most of their phrases (MinHash with banding; Broder 1997; Lee et al. 2022,
    arXiv:2107.06499)."""
    ngram_words: int = 5
    """Words in a phrase."""
    num_buckets: int = 14
    """Groups of hashes: equal hashes in one of them make two documents copies of each other."""
    hashes_per_bucket: int = 8
    """Two documents that share a part s of their phrases are found with probability 1 - (1 - s**hashes)**buckets: with
    14 and 8, 0.92 at s = 0.8, and 0.5 at s = 0.72."""
    across_sources: bool = True
    """Whether copies are looked for in all sources together, or in each by itself."""
    memory_gib: float = 1.0
    """About as much is held at once while signatures are compared; more of them are compared in several passes."""

    def __post_init__(self):
        for name in ("ngram_words", "num_buckets", "hashes_per_bucket"):
            if getattr(self, name) < 1:
                raise UserError(f"dedup.{name}={getattr(self, name)} must be at least 1.")
        if self.num_buckets > MAX_BUCKETS or self.num_buckets * self.hashes_per_bucket > MAX_HASHES:
            raise UserError(
                f"dedup.num_buckets={self.num_buckets} with dedup.hashes_per_bucket={self.hashes_per_bucket} would "
                f"take hours for a few megabytes: at most {MAX_BUCKETS} buckets and {MAX_HASHES:,} hashes in all. 14 "
                "and 8 are usual."
            )
        if not self.memory_gib > 0:
            raise UserError(f"dedup.memory_gib={self.memory_gib} must be positive.")


@dataclass(frozen=True)
class ExecutorConfig:
    """Where the work is done: `executor.<field>`. The result is the same anywhere."""

    kind: str = "local"
    """`local`: processes of this machine. `slurm`: arrays of jobs, each stage behind the one before; the output must
    lie where all machines reach it. `ray`: tasks of the cluster that $RAY_ADDRESS names."""
    workers: int | None = None
    """Tasks at a time; unset: as many as there are processors here, and no limit on a cluster."""
    partition: str = ""
    """Of Slurm."""
    time_limit: str = "24:00:00"
    """Of a task, hours:minutes:seconds."""
    memory_gib: int = 4
    """Of a task."""
    setup: str = ""
    """Shell command that each Slurm job runs first: `source /shared/venv/bin/activate`."""

    def __post_init__(self):
        check_choice("executor.kind", self.kind, EXECUTORS)
        if self.workers is not None and self.workers < 1:
            raise UserError(f"executor.workers={self.workers} must be at least 1.")
        if self.kind == "slurm" and not self.partition:
            raise UserError(
                "executor.partition is empty: name a partition of the cluster (`sinfo` lists them)."
            )
        if not _TIME_LIMIT.fullmatch(self.time_limit):
            raise UserError(
                f"executor.time_limit={self.time_limit!r} is no time of Slurm's: write hours:minutes:seconds, 24:00:00."
            )
        if self.memory_gib < 1:
            raise UserError(f"executor.memory_gib={self.memory_gib} must be at least 1.")


@dataclass(frozen=True)
class CorpusConfig:
    """A corpus, whole: its shards are a function of this and of the raw files."""

    root: str = "."
    """Folder that relative paths are below."""
    sources: dict[str, RawSourceConfig] = field(default_factory=dict)
    strict: bool = False
    """Whether what cannot be read is an error; else it is skipped, and counted with its place and reason."""
    extractor: str = "resiliparse"
    """Of the main text of a web page: `resiliparse` or `trafilatura`."""
    max_document_bytes: int = 16 << 20
    """A longer page or record is skipped as a fault."""
    filters: FilterConfig = field(default_factory=FilterConfig)
    decontaminate: DecontaminateConfig = field(default_factory=DecontaminateConfig)
    dedup: DedupConfig = field(default_factory=DedupConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """Without a path, one is trained on the corpus of the first build, each source by its weight; later builds into the
    same output keep it, so that tokens that are there already stay as they are."""
    eval_fraction: float = 0.02
    """Share held out of every source for evaluation; by the hash of a document's text, so that it stays where it is
    when files are added."""
    eval_split: str = "hash"
    """`hash`: whole documents. `tail`: the last part of every document."""
    budget_tokens: float = 0.0
    """Tokens that a run is to be trained on, for the epochs of the report; 0: none is planned."""
    unit_mib: int = 64
    """About so much of the input is one unit of work, where a file can be cut or small files gathered."""
    shard_tokens: int = 16 << 20
    """About so many tokens in a shard."""
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)

    @property
    def names(self) -> list[str]:
        """The sources, by their `order`."""
        return sorted(self.sources, key=lambda name: (self.sources[name].order, name))

    def __post_init__(self):
        check_choice("extractor", self.extractor, EXTRACTORS)
        check_choice("eval_split", self.eval_split, EVAL_SPLITS)
        if not 0.0 <= self.eval_fraction < 1.0:
            raise UserError(f"eval_fraction={self.eval_fraction} must be in [0, 1).")
        for name in ("max_document_bytes", "unit_mib", "shard_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1.")
        if not self.budget_tokens >= 0:
            raise UserError(f"budget_tokens={self.budget_tokens} must not be negative.")


def default_config() -> Any:
    """A locked ConfigDict of every key with type and default; `sources` is empty and open to new names."""
    return to_config_dict(CorpusConfig())


def parse(argv: list[str]) -> ConfigDict:
    """The config of `--config=NAME --config.key=value ...`. Errors: UserError, one line."""
    return parse_config_flags(argv, CorpusConfig)


def resolve(config: ConfigDict) -> CorpusConfig:
    """The frozen config; UserError for what cannot be built."""
    cfg = from_config_dict(CorpusConfig, config)
    if not cfg.sources:
        raise UserError("The config has no source: add one with --config.sources.NAME.path=PATH.")
    if not any(source.weight_tokens for source in cfg.sources.values()):
        raise UserError(
            "sources.<name>.weight_tokens is 0 of every source: a run would read nothing. Give one a weight."
        )
    return cfg


def decontamination(cfg: CorpusConfig) -> DecontaminateConfig:
    """With paths that can be opened."""
    sets = evaluation_sets(cfg.decontaminate.evaluation)
    named = {name: ",".join(paths_of(cfg.root, path)) for name, path in sets.items()}
    return replace(cfg.decontaminate, evaluation=",".join(f"{name}={path}" for name, path in named.items()))


def paths_of(root: str, paths: str) -> list[str]:
    """The paths of a source or of evaluation sets, as they can be opened."""
    if not paths:
        return []
    known = os.path.join(root, paths)
    names = [paths] if os.path.exists(known) else [part.strip() for part in paths.split(",") if part.strip()]
    return [name if "://" in name else os.path.normpath(os.path.join(root, name)) for name in names]
