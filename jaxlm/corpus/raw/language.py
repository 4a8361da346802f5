"""The language of a document, identified with what is installed: nothing is downloaded.

By default py3langid, whose model lies in its wheel. Measured on Django's translations into 73 languages, 2026-11;
share of pieces identified, averaged over all of them, also those that an identifier does not know:

| identifier                   | 50 characters | 200   | 1,000 | speed at 1,000 |
|------------------------------|---------------|-------|-------|----------------|
| py3langid 0.4.0              | 0.880         | 0.903 | 0.908 | 2.6 MB/s       |
| fastText lid.176.ftz         | 0.793         | 0.895 | 0.925 | 5.3 MB/s       |
| resiliparse 2.0.1            | 0.473         | 0.802 | 0.849 | 46 MB/s        |
| lingua 2.1.1                 | 0.737         | 0.746 | 0.751 | 0.6 MB/s       |
| lingua 2.1.1 (low accuracy)  | 0.697         | 0.746 | 0.751 | 0.4 MB/s       |

English, German and Bengali texts are identified without a mistake by the first two at every length. Of pieces of 3,000
characters, looking at 768 identifies no more than at 512. So of a longer document that much is looked at, in three
pieces from its start, end and middle, and their scores are averaged: an English menu above a Bengali page costs a
third. At filters.language_threshold=0.65 that leaves 98% of the documents whose language is found.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Iterator
from typing import Any

from datatrove.data import Document
from datatrove.utils.lid import LID

from jaxlm.corpus.raw.document import Account
from jaxlm.corpus.raw.filter_config import FilterConfig, language_codes
from jaxlm.corpus.raw.language_codes import short_code
from jaxlm.corpus.raw.steps import AccountedStep
from jaxlm.types import UserError

SAMPLE_CHARS = 512
UNKNOWN = "und"
"""ISO 639 code of a text that is in no language, or in none that can be told."""
_NO_LANGUAGE = ("zxx", "und", "unknown")
_SURE = 0.9
"""Where the start and the end of a document are in the same language for so sure, the middle is not looked at."""
_GUESS = 0.3
"""Less sure than that is `und`: of texts in a language, one in three hundred of 50 characters, none of 150."""


def windows(text: str) -> list[str]:
    """What is looked at: all of a short text; of a longer one, pieces from its start, end and middle, cut between words
    where there are spaces."""
    if len(text) <= SAMPLE_CHARS:
        return [" ".join(text.split())]
    width = SAMPLE_CHARS // 3
    last = len(text) - width
    return [_window(text, start, width) for start in (0, last, last // 2)]


def _window(text: str, start: int, width: int) -> str:
    words = text[start : start + width].split()
    # A word cut in two at the edge misleads; one of a script without spaces is the whole window.
    return " ".join(words[1:-1] if len(words) > 4 else words)


class LanguageIdentifier(LID):
    """py3langid, or a fastText model from a file. Opened at the first document, in each process."""

    def __init__(self, model_file: str | None = None, languages: list[str] | None = None):
        super().__init__(languages)
        self.model_file = model_file
        self._model: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_model": None}

    def check(self) -> None:
        """UserError where the identifier cannot work here."""
        self._open()
        known: Any = getattr(self._model, "labels", None)
        known = known() if callable(known) else known
        unknown = sorted(set(self.languages or ()) - {short_code(label) for label in known or ()})
        if unknown and known:
            raise UserError(
                f"filters.languages has {', '.join(unknown)}, which the identifier does not know. It knows "
                f"{', '.join(sorted({short_code(label) for label in known}))}."
            )

    def _open(self) -> Any:
        if self._model is None:
            self._model = _open_fasttext(self.model_file) if self.model_file else _open_py3langid()
        return self._model

    def identify(self, text: str) -> tuple[str, float]:
        """(ISO 639 code or `und`, how sure from 0 to 1) of a text: the mean over its windows."""
        scores: dict[str, float] = {}
        looked_at = 0
        for piece in windows(text):
            looked_at += 1
            if piece:
                code, score = self._identify(piece)
                scores[code] = scores.get(code, 0.0) + score
            if looked_at == 2 and len(scores) == 1 and sum(scores.values()) > 2 * _SURE:
                break
        code, score = max(scores.items(), key=lambda item: item[1], default=(UNKNOWN, 0.0))
        score = min(1.0, score / looked_at)
        return (UNKNOWN if code in _NO_LANGUAGE or score < _GUESS else code), score

    def _identify(self, piece: str) -> tuple[str, float]:
        model = self._open()
        if not self.model_file:
            code, score = model.classify(piece)
            return short_code(code), float(score)
        labels, scores = model.predict(piece, k=1)
        return (short_code(labels[0]), float(scores[0])) if len(labels) else (UNKNOWN, 0.0)

    def predict(self, doc: Document) -> tuple[tuple[str, Any], dict[str, float]]:
        """datatrove's interface: the best pair, and the scores of `languages` (of the best alone without them)."""
        code, score = self.identify(doc.text)
        names = self.languages or [code]
        return (code, score), {name: score if name == code else 0.0 for name in names}


@functools.cache
def _open_py3langid() -> Any:
    """Read once in a process: unpacking it takes most of a second."""
    try:
        from py3langid.langid import MODEL_FILE
        from py3langid.langid import LanguageIdentifier as Py3langid
    except ImportError:
        raise UserError(
            "Identifying languages needs py3langid: pip install 'jaxlm[corpus]', or give a fastText model that lies "
            "on this machine as filters.language_model."
        ) from None
    return Py3langid.from_model_file(MODEL_FILE, norm_probs=True)


def _open_fasttext(path: str) -> Any:
    try:
        fasttext = importlib.import_module("fasttext")
    except ImportError:
        raise UserError(
            f"filters.language_model={path!r} needs fastText: pip install fasttext-predict, or leave it unset for "
            "py3langid."
        ) from None
    if not os.path.isfile(path):
        raise UserError(
            f"filters.language_model={path!r} is not a file. Nothing is downloaded: put it there."
        )
    try:
        return fasttext.load_model(path)
    except (ValueError, RuntimeError, MemoryError) as error:
        raise UserError(f"filters.language_model={path!r} is no fastText model: {error}.") from None


class LanguageStep(AccountedStep):
    """Writes `language` and `language_score` in a document's metadata, and drops those in no language asked for.

    A language that the source states is taken as it is, in the code of two letters where it has one; `und` and the like
    state none.
    """

    def __init__(self, config: FilterConfig, account: Account | None = None):
        super().__init__("language", account)
        self.languages = frozenset(language_codes(config.languages))
        self.threshold = config.language_threshold
        self.identifier = LanguageIdentifier(config.language_model, sorted(self.languages) or None)

    def apply(self, document: Document) -> Iterator[Document]:
        """See AccountedStep."""
        stated = short_code(str(document.metadata.get("language") or UNKNOWN))
        is_code = stated.isascii() and stated.isalpha() and stated not in _NO_LANGUAGE
        code, score = (
            (stated, 1.0) if is_code and len(stated) in (2, 3) else self.identifier.identify(document.text)
        )
        document.metadata["language"] = code
        document.metadata["language_score"] = score
        if self.languages and code not in self.languages:
            self.drop(document, "other", self._shown(document, code, score))
        elif self.languages and score < self.threshold:
            self.drop(document, "unsure", self._shown(document, code, score))
        else:
            yield document

    def _shown(self, document: Document, code: str, score: float) -> str:
        return f"{code} {score:.2f}: {' '.join(document.text[:120].split())}"
