"""Steps of a datatrove pipeline that keep our account of what they drop and change.

```
documents -> step(documents, rank, world_size) -> documents
                  \\-> Account: dropped by reason, changed by kind, with examples
```
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import get_filter_result

from jaxlm.corpus.raw.document import Account

EXAMPLE_CHARS = 200
"""Of the text of a dropped document, in the account."""
Verdict = bool | tuple[bool, str]
"""Whether a document is kept; with the reason where it is not. As datatrove's filters answer."""


class AccountedStep(PipelineStep):
    """A step that writes in an account; a subclass says in `apply` what becomes of a document.

    Args:
      family: what its reasons start with, where that is not its name.
    """

    type = "filter"

    def __init__(self, name: str, account: Account | None = None, family: str | None = None):
        self.name = name  # datatrove reads it in its own __init__
        self.family = family or name
        super().__init__()
        self.account = Account() if account is None else account

    def __repr__(self) -> str:
        return self.name

    def apply(self, document: Document) -> Iterator[Document]:
        """Yields what is left of the document, in pieces."""
        raise NotImplementedError

    def run(
        self, data: Iterable[Document] | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Document]:
        """Yields what is left of each document, in order."""
        for document in data or ():
            with self.track_time():  # datatrove's statistics say it
                left = list(self.apply(document))
            yield from left

    def drop(self, document: Document, reason: str, example: str | None = None) -> None:
        """Counts a document under `<family of the step>_<reason>`."""
        shown = " ".join(document.text[:EXAMPLE_CHARS].split()) if example is None else example
        self.account.drop(reason_name(self.family, reason), f"{document.id}: {shown}")


class FilterStep(AccountedStep):
    """Keeps the documents that a rule keeps. The rule is `filter` of a datatrove filter, or any function like it."""

    def __init__(
        self,
        name: str,
        rule: Callable[[Document], Verdict],
        account: Account | None = None,
        family: str | None = None,
    ):
        super().__init__(name, account, family)
        self.rule = rule

    def apply(self, document: Document) -> Iterator[Document]:
        kept, reason = get_filter_result(self.rule(document))
        if kept:
            yield document
        else:
            self.drop(document, reason or "dropped")


def reason_name(family: str, reason: str) -> str:
    """`gopher` and `dup_line_frac` -> `gopher_dup_line_frac`; a reason that says its family stays as it is."""
    return reason if reason.startswith(f"{family}_") else f"{family}_{reason}"
