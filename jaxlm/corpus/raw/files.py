"""The raw files of a source and the slices that are read in parallel. Imports no JAX."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RawFile:
    """One raw file. `name` is what reports and manifests show: its path below the folder that was given."""

    path: str
    name: str
    format: str
    """`warc` (WET too), `wikipedia`, `text`, `epub`, `jsonl`, `json`, `csv`, `tsv`, `parquet`."""
    compression: str
    """"", `gz`, `zst` or `bz2`."""
    num_bytes: int
    stamp: str
    """Changes when the content may have: time of change here, etag or generation in a store."""


@dataclass(frozen=True)
class RawPart:
    """A slice of a file by bytes, as it lies there; [0, num_bytes) of a file that is read as one."""

    file: RawFile
    start: int
    stop: int


@dataclass(frozen=True)
class RawOptions:
    """How raw files of one source become documents."""

    extractor: str = "resiliparse"
    """Of HTML: `resiliparse` or `trafilatura`."""
    document: str = "file"
    """What a document of a text file is: `file`, `chapter`, `paragraph` or `line`."""
    disambiguation: bool = False
    """Whether Wikipedia's pages that only list meanings are kept."""
    text_key: str = "text"
    """Key or column of the text in records."""
    url_key: str = "url"
    score_key: str = "score"
    min_score: float | None = None
    """Records (of links) below are dropped: 3 in WebText."""
    max_document_bytes: int = 16 << 20
    """A longer payload or page is skipped as a fault."""
