"""From FilterConfig to the steps of a datatrove pipeline, cheapest first.

```
address -> language -> Gopher's quality -> Gopher's repetition -> C4 -> FineWeb -> personal data
```

Each document is judged by the rules of its own language, as `metadata["language"]` says. The order is FineWeb's but
for Gopher's two, which are exchanged: what is kept is the same, and the longest and the emptiest documents go before
their n-grams are counted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from datatrove.data import Document
from datatrove.pipeline.filters.c4_filters import END_PUNCTUATION

from jaxlm.corpus.raw.document import Account
from jaxlm.corpus.raw.filter_config import FilterConfig
from jaxlm.corpus.raw.language import LanguageStep
from jaxlm.corpus.raw.personal_data import PersonalDataStep
from jaxlm.corpus.raw.quality import ENDS, C4Quality, FineWebQuality, GopherQuality
from jaxlm.corpus.raw.repetition import Repetition
from jaxlm.corpus.raw.steps import AccountedStep, FilterStep, Verdict
from jaxlm.corpus.raw.stop_words import STOP_WORDS
from jaxlm.corpus.raw.url_filter import UrlFilter
from jaxlm.corpus.raw.words import UNSPACED, UnicodeWords, word_pattern

HALF_WORDS = 2
"""In languages without spaces a word of ours is about half a word: limits that count words are this many times as
high, and n-grams as long."""
_LARGE_TEXT = 1 << 20


class _Rule(Protocol):
    def filter(self, doc: Document) -> Verdict: ...


class RuleStep(FilterStep):
    """A rule that differs between languages: made once for each."""

    def __init__(self, name: str, make: Callable[[str], _Rule], words: UnicodeWords, account: Account):
        super().__init__(name, self._decide, account, family=name.partition("_")[0])
        self._make = make
        self._words = words
        self._rules: dict[str, _Rule] = {}

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_rules": {}}

    def _decide(self, document: Document) -> Verdict:
        language = str(document.metadata.get("language") or "en")
        if language not in self._rules:
            self._rules[language] = self._make(language)
        rule = self._rules[language]
        verdict = rule.filter(document)
        self.after(rule, language, verdict)
        if len(document.text) > _LARGE_TEXT:
            self._words.forget()
        return verdict

    def after(self, rule: _Rule, language: str, verdict: Verdict) -> None:
        """What is counted besides."""


class _AddressStep(FilterStep):
    def drop(self, document: Document, reason: str, example: str | None = None) -> None:
        super().drop(document, reason, example or document.metadata["url"])


class _GopherStep(RuleStep):
    def after(self, rule: _Rule, language: str, verdict: Verdict) -> None:
        if verdict is True and language not in STOP_WORDS:
            self.account.changed[f"no_stop_words_known_{language}"] += 1


class _C4Step(RuleStep):
    def after(self, rule: _Rule, language: str, verdict: Verdict) -> None:
        if verdict is True and isinstance(rule, C4Quality):
            for name, count in rule.removed.items():
                self.account.changed[f"c4_line_{name}"] += count


def build_filters(
    config: FilterConfig,
    account: Account,
    *,
    cache_dir: str | None = None,
    say: Callable[[str], None] = print,
) -> list[AccountedStep]:
    """The steps that the config asks for. They share the account, also when they are copied or pickled together.

    Args:
      cache_dir: for the hashes of blocked hosts; see UrlFilter.
      say: takes one line about each rule that works less than fully here.

    Errors: UserError where a step cannot work here: before any document is read.
    """
    words = UnicodeWords()
    rules = _Rules(config, words)
    steps: list[AccountedStep] = []
    if config.url:
        address = UrlFilter(config.url_block_list, cache_dir)
        address.check()
        steps.append(_AddressStep("url", address.filter, account))
    identify = LanguageStep(config, account)
    identify.identifier.check()
    steps.append(identify)
    if config.gopher_quality:
        steps.append(_GopherStep("gopher_quality", rules.gopher, words, account))
        lacking = sorted(set(identify.languages) - STOP_WORDS.keys())
        if lacking and config.stop_words:
            say(
                f"Filters: no list of stop words for {', '.join(lacking)}: that rule of Gopher's is left out for them."
            )
    if config.gopher_repetition:
        steps.append(RuleStep("gopher_repetition", rules.repetition, words, account))
    if config.c4:
        steps.append(_C4Step("c4", rules.c4, words, account))
    if config.fineweb:
        steps.append(RuleStep("fineweb", rules.fineweb, words, account))
    if config.personal_data:
        steps.append(PersonalDataStep(account))
    return steps


class _Rules:
    """Language -> the rules with their limits in that language."""

    def __init__(self, config: FilterConfig, words: UnicodeWords):
        self.config = config
        self.words = words

    def gopher(self, language: str) -> GopherQuality:
        factor = HALF_WORDS if language in UNSPACED else 1
        stop_words = STOP_WORDS.get(language, frozenset())
        return GopherQuality(
            min_doc_words=self.config.min_words * factor or None,
            max_doc_words=self.config.max_words * factor or None,
            min_avg_word_length=3 if factor == 1 else None,
            max_avg_word_length=10 if factor == 1 else None,
            min_stop_words=self.config.stop_words if stop_words else None,
            stop_words=list(stop_words),
            language=self.words,  # type: ignore[arg-type]  # load_word_tokenizer takes an instance
        )

    def repetition(self, language: str) -> Repetition:
        factor = HALF_WORDS if language in UNSPACED else 1
        return Repetition(
            top_n_grams=tuple((n * factor, share) for n, share in ((2, 0.2), (3, 0.18), (4, 0.16))),  # type: ignore[arg-type]
            dup_n_grams=tuple((n * factor, (20 - n) / 100) for n in range(5, 11)),  # type: ignore[arg-type]
            language=self.words,  # type: ignore[arg-type]
        )

    def c4(self, language: str) -> C4Quality:
        unspaced = language in UNSPACED
        return C4Quality(
            ends=END_PUNCTUATION if language == "en" else ENDS,
            filter_no_terminal_punct=self.config.c4_terminal_punctuation,
            min_num_sentences=self.config.min_sentences or -1,
            min_words_per_line=3 * HALF_WORDS if unspaced else 3,
            count_words=_count if unspaced else None,
            language=self.words,
        )

    def fineweb(self, language: str) -> FineWebQuality:
        factor = HALF_WORDS if language in UNSPACED else 1
        return FineWebQuality(
            short_line_length=30 // factor,
            new_line_ratio=0.3 / factor,
            language=self.words,  # type: ignore[arg-type]
        )


def _count(line: str) -> int:
    return len(word_pattern().findall(line))
