"""DataConfig, SourceConfig, TokenizerConfig, InstructConfig, ClassifyConfig: what a run reads. Imports no JAX."""

from __future__ import annotations

from dataclasses import dataclass, field

from jaxlm.config import check_choice
from jaxlm.types import UserError

ON_EXHAUSTED = ("repeat", "stop", "error")
PACKINGS = ("concat", "best_fit", "pad")
EVAL_SPLITS = ("hash", "tail")
INVALID_UTF8 = ("strict", "replace", "skip")
DOCUMENTS = ("file", "paragraph", "line")
TOKENIZER_KINDS = ("bpe", "unigram", "char")
TRAIN_ON = ("answers", "last_answer")
TASKS = ("single_label", "multi_label", "regression")
POOLINGS = ("last", "mean")


@dataclass(frozen=True)
class SourceConfig:
    """One named source of text in the mixture: `data.sources.<name>.<field>`."""

    path: str = ""
    """A file, folder or glob (.txt, .jsonl[.gz|.zst], .parquet, .arrayrecord), a folder made by `jaxlm corpus build`,
    or `embedded:topics`, `:docstrings`, `:comments`, `:licences`: English prose that ships with Python."""
    weight_tokens: float = 1.0
    """Share of the *tokens* trained on, not of documents. Weights are normalised to 1, with a warning."""
    on_exhausted: str | None = None
    """When every token has been seen once: `repeat` (a new order each epoch), `stop` the run, or `error`. Must be
    chosen where the plan passes one epoch."""
    max_epochs: float | None = None
    """A plan that reads the source more often than this is refused before training."""
    text_key: str = "text"
    """Key (JSONL) or column (Parquet) that holds the text."""
    document: str = "file"
    """What one document of a .txt file is: the whole file, a paragraph (blank line between) or a line."""
    columns: str = "auto"
    """Of records (instruct, classify): the name of a column map, `auto` (the one that fits the first record), or a map
    of your own: `instruction=question,output=answer`; as JSON where a value is a text with {column}s in it."""
    eval_path: str | None = None
    """Held-out text or records in a file of their own; unset: data.eval_fraction of `path`."""

    def __post_init__(self):
        if not self.path:
            raise UserError("data.sources.<name>.path is empty: give a file, a folder or embedded:topics.")
        if not self.weight_tokens >= 0:
            raise UserError(f"data.sources.<name>.weight_tokens={self.weight_tokens} must not be negative.")
        if self.on_exhausted is not None:
            check_choice("data.sources.<name>.on_exhausted", self.on_exhausted, ON_EXHAUSTED)
        if self.max_epochs is not None and self.max_epochs <= 0:
            raise UserError(f"data.sources.<name>.max_epochs={self.max_epochs} must be positive.")
        check_choice("data.sources.<name>.document", self.document, DOCUMENTS)
        for name in ("columns", "eval_path"):
            if getattr(self, name) == "":
                raise UserError(f"data.sources.<name>.{name} is empty: leave it at its default.")


@dataclass(frozen=True)
class DataConfig:
    """The mixture and how it becomes batches: `data.<field>`."""

    sources: dict[str, SourceConfig] = field(default_factory=dict)
    seq_len: int = 256
    """Tokens of a row: what the model sees at once."""
    global_batch_size: int = 8
    """Sequences in the batch of one step, over all hosts and microbatches."""
    packing: str | None = None
    """`concat`: documents end to end, cut every seq_len tokens. `best_fit`: whole documents where they fit, fewest
    truncations (Ding et al. 2024, arXiv:2404.10830). Documents in a row never see each other. `pad`: one record a row.
    Unset: concat to pretrain, best_fit to instruct, pad to classify."""
    length_window_steps: int = 16
    """Of `pad`: among the rows of this many steps, those of similar length share a batch, which is as wide as its
    longest row needs, up to seq_len; 1: rows come as they are drawn."""
    eval_fraction: float = 0.02
    """Share held out of every source for evaluation; never trained on."""
    eval_split: str = "hash"
    """`hash`: whole documents, chosen by the hash of their text (stable when files are added). `tail`: the last
    part of every document, as is done anyway with a source that is one document."""
    invalid_utf8: str = "strict"
    """`strict`: an error that names file and line. `replace` with U+FFFD, or `skip` the document: counted."""
    cache_dir: str | None = None
    """Where raw sources are tokenised to, once; unset: $JAXLM_CACHE or ~/.cache/jaxlm."""

    def __post_init__(self):
        if self.packing is not None:
            check_choice("data.packing", self.packing, PACKINGS)
        if self.length_window_steps < 1:
            raise UserError(f"data.length_window_steps={self.length_window_steps} must be at least 1.")
        check_choice("data.eval_split", self.eval_split, EVAL_SPLITS)
        check_choice("data.invalid_utf8", self.invalid_utf8, INVALID_UTF8)
        if self.seq_len < 2:
            raise UserError(
                f"data.seq_len={self.seq_len} must be at least 2: a target needs a token before it."
            )
        if self.global_batch_size < 1:
            raise UserError(f"data.global_batch_size={self.global_batch_size} must be at least 1.")
        if not 0.0 <= self.eval_fraction < 1.0:
            raise UserError(f"data.eval_fraction={self.eval_fraction} must be in [0, 1).")


@dataclass(frozen=True)
class TokenizerConfig:
    """Which tokenizer: `tokenizer.<field>`."""

    path: str | None = None
    """A sentencepiece .model file, a tokenizer.json, or a folder with either: of a Hugging Face model, a run or a
    corpus. Unset: one is trained on the run's own sources, once, into the cache."""
    kind: str = "bpe"
    """Of a tokenizer that is trained: `bpe`, `unigram` or `char`, all with byte fallback."""
    vocab_size: int = 4096
    """Of a tokenizer that is trained; `char` takes as many as there are characters."""

    def __post_init__(self):
        if self.path == "":
            raise UserError(
                "tokenizer.path is empty: give a .model file, a tokenizer.json or a folder, or None to train one."
            )
        check_choice("tokenizer.kind", self.kind, TOKENIZER_KINDS)
        if self.vocab_size < 260:
            raise UserError(
                f"tokenizer.vocab_size={self.vocab_size} must be at least 260: 256 bytes and the special tokens."
            )


@dataclass(frozen=True)
class InstructConfig:
    """How dialogues are written and what of them is learnt: `instruct.<field>`, for objective=instruct."""

    template: str = "auto"
    """`auto`: the tokenizer's chat template, else `alpaca`. `chat`: that of the tokenizer. `alpaca`. Or the path of a
    Jinja file."""
    train_on: str = "answers"
    """`answers`: every turn of the assistant, and the token that ends it. `last_answer`: only the last."""
    train_on_prompt: bool = False
    """Learn the rest of the dialogue too; never padding."""
    strict: bool = False
    """A record that leaves nothing to learn (an answer that is empty, or cut away) is an error; else it is counted and
    dropped."""

    def __post_init__(self):
        check_choice("instruct.train_on", self.train_on, TRAIN_ON)
        if not self.template:
            raise UserError(
                "instruct.template is empty: give auto, chat, alpaca or the path of a Jinja file."
            )


@dataclass(frozen=True)
class ClassifyConfig:
    """What a text is sorted into: `classify.<field>`, for objective=classify."""

    task: str = "single_label"
    """`single_label`: one of two or more labels. `multi_label`: any number of them. `regression`: a number."""
    labels: str | None = None
    """Names in their order, separated by commas; unset: those of the training data, sorted."""
    pooling: str = "last"
    """What the head reads of a text: the state of its `last` token, or the `mean` over its tokens."""
    class_weights: str | None = None
    """`balanced` (each label has the same weight in all), or a weight for each: `ham=1,spam=3`. Unset: 1."""
    label_smoothing: float = 0.0
    """Share of the target that is spread evenly over all labels."""

    def __post_init__(self):
        check_choice("classify.task", self.task, TASKS)
        check_choice("classify.pooling", self.pooling, POOLINGS)
        if not 0.0 <= self.label_smoothing < 1.0:
            raise UserError(f"classify.label_smoothing={self.label_smoothing} must be in [0, 1).")
        if self.task == "regression":
            for name, value in (("labels", self.labels), ("class_weights", self.class_weights)):
                if value is not None:
                    raise UserError(
                        f"classify.{name}={value!r} would be ignored: classify.task='regression' has no labels. Unset "
                        "it."
                    )
            if self.label_smoothing:
                raise UserError(
                    f"classify.label_smoothing={self.label_smoothing} would be ignored: classify.task='regression' has "
                    "no labels. Unset it."
                )
