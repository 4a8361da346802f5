"""FilterConfig and DecontaminateConfig: which documents of raw sources are kept. Imports no JAX."""

from __future__ import annotations

from dataclasses import dataclass

from jaxlm.config import check_choice
from jaxlm.corpus.raw.language_codes import short_code
from jaxlm.types import UserError

CONTAMINATED = ("drop", "cut")


@dataclass(frozen=True)
class FilterConfig:
    """Rules that a page of the web passes before it is trained on, as in FineWeb (Penedo et al. 2024,
    arXiv:2406.17557, section 3): `filters.<field>`."""

    languages: str = ""
    """Keep only documents in one of these, by ISO 639 code, separated by commas: `en,bn`. Empty: every language."""
    language_threshold: float = 0.65
    """Of `languages`: how sure the identifier must be, from 0 to 1."""
    language_model: str | None = None
    """A fastText model on this machine (lid.176.bin, lid.176.ftz) that identifies languages; unset: py3langid."""
    url: bool = True
    """Drop pages whose address is on datatrove's block lists or has their words."""
    url_block_list: str | None = None
    """A text file of hosts and addresses to drop too, one a line; `#` starts a comment."""
    gopher_quality: bool = True
    """Number and length of words, symbols, bullets, ellipses, stop words (Rae et al. 2021, arXiv:2112.11446, A.1.1)."""
    min_words: int = 50
    """Of `gopher_quality`; 0: no limit. Twice as many characters in languages without spaces."""
    max_words: int = 100_000
    """Of `gopher_quality`; 0: no limit, which books need."""
    stop_words: int = 2
    """Of `gopher_quality`: different stop words a document must have; 0: none."""
    gopher_repetition: bool = True
    """Repeated lines, paragraphs and n-grams (as above, table A1)."""
    c4: bool = True
    """Removes lines with few words, `javascript` or a notice on cookies; drops pages with `{`, lorem ipsum or few
    sentences (Raffel et al. 2020, arXiv:1910.10683, section 2.2)."""
    c4_terminal_punctuation: bool = False
    """Of `c4`: removes lines that end in no mark of a sentence's end too, as C4 did. FineWeb does not."""
    min_sentences: int = 5
    """Of `c4`, counted in the lines that are kept; 0: no limit."""
    fineweb: bool = True
    """Lines that end in no punctuation, short lines, repeated lines, lists (FineWeb, section 3)."""
    personal_data: bool = False
    """Replaces addresses of e-mail and public IP addresses."""

    def __post_init__(self):
        for code in language_codes(self.languages):
            if not (code.isascii() and code.isalpha() and code.islower() and len(code) in (2, 3)):
                raise UserError(
                    f"filters.languages={self.languages!r}: {code!r} is no ISO 639 code, which has two or three small "
                    "letters. Write en,bn; leave it empty to keep every language."
                )
        if not 0.0 <= self.language_threshold <= 1.0:
            raise UserError(f"filters.language_threshold={self.language_threshold} must be in [0, 1].")
        for name in ("min_words", "max_words", "stop_words", "min_sentences"):
            if getattr(self, name) < 0:
                raise UserError(f"filters.{name}={getattr(self, name)} must not be negative; 0 turns it off.")
        if self.max_words and self.min_words > self.max_words:
            raise UserError(
                f"filters.min_words={self.min_words} is above filters.max_words={self.max_words}: no document would "
                "be left."
            )
        for name in ("language_model", "url_block_list"):
            if getattr(self, name) == "":
                raise UserError(f"filters.{name} is empty: give a file, or leave it at its default.")
        if self.url_block_list is not None and not self.url:
            raise UserError("filters.url_block_list would be ignored: filters.url=False. Set it to True.")


@dataclass(frozen=True)
class DecontaminateConfig:
    """Training documents that hold text of evaluation sets (Brown et al. 2020, arXiv:2005.14165, appendix C):
    `decontaminate.<field>`."""

    evaluation: str = ""
    """Files or folders of the evaluation sets, separated by commas, each as `path` or `name=path`: .txt, and records
    (.json, .jsonl, .csv, .tsv, .parquet) of which every text is taken. Empty: nothing is compared."""
    num_words: int = 13
    """Length of the n-grams: this many words of a document that stand so in an evaluation set contaminate it. A text
    of fewer words is matched whole; see min_words."""
    min_words: int = 8
    """Evaluation texts of fewer words are not matched: they are said everywhere."""
    contaminated: str = "drop"
    """`drop` the document, or `cut` out the match with window_chars on each side and keep the rest, as for GPT-3."""
    window_chars: int = 200
    """Of `cut`; pieces shorter than this are dropped."""
    max_pieces: int = 10
    """Of `cut`: a document that falls into more is dropped."""

    def __post_init__(self):
        check_choice("decontaminate.contaminated", self.contaminated, CONTAMINATED)
        for name in ("num_words", "min_words", "max_pieces"):
            if getattr(self, name) < 1:
                raise UserError(f"decontaminate.{name}={getattr(self, name)} must be at least 1.")
        if self.window_chars < 0:
            raise UserError(f"decontaminate.window_chars={self.window_chars} must not be negative.")
        if self.min_words > self.num_words:
            raise UserError(
                f"decontaminate.min_words={self.min_words} is above decontaminate.num_words={self.num_words}: n-grams "
                "of texts that are long enough would be left out."
            )
        evaluation_sets(self.evaluation)


def language_codes(languages: str) -> tuple[str, ...]:
    """The codes in `FilterConfig.languages`, of two letters where there is one: `eng` is `en`."""
    parts = (part.strip() for part in languages.split(",")) if languages.strip() else ()
    return tuple(short_code(part) if part.islower() else part for part in parts)


def evaluation_sets(evaluation: str) -> dict[str, str]:
    """Name -> path of the sets in `DecontaminateConfig.evaluation`; a set without a name has that of its path."""
    sets: dict[str, str] = {}
    for item in filter(None, (item.strip() for item in evaluation.split(","))):
        name, equals, path = item.partition("=")
        name, path = (name.strip(), path.strip()) if equals else (item, item)
        if not name or not path:
            raise UserError(f"decontaminate.evaluation: {item!r} must be a path, or name=path.")
        if name in sets:
            raise UserError(
                f"decontaminate.evaluation names {name!r} twice: give each set a name of its own, name=path."
            )
        sets[name] = path
    return sets
