"""A TokenStore that lives in memory, for tests of what is built on it."""

import numpy as np


class MemoryStore:
    """Documents as lists of ids, or as lengths: then token i of the store is i + 1, so no two are alike."""

    def __init__(self, documents=None, *, lengths=None):
        if documents is not None:
            lengths = [len(document) for document in documents]
            self.tokens = np.concatenate(
                [np.zeros(0, np.int32), *(np.asarray(d, np.int32) for d in documents)]
            )
        else:
            self.tokens = np.arange(1, sum(lengths) + 1, dtype=np.int32)
        self.document_ends = np.cumsum(np.asarray(lengths, np.int64), dtype=np.int64)
        self.num_documents = len(lengths)
        self.num_tokens = len(self.tokens)
        self.num_bytes = 3 * self.num_tokens
        self.manifest = {"sha256": "0" * 64}

    def read(self, start, stop):
        return self.tokens[start:stop]

    def read_rows(self, starts, lengths):
        assert np.all(np.asarray(starts) >= 0)
        assert np.all(np.asarray(starts) + lengths <= self.num_tokens)
        return [self.tokens[a : a + n] for a, n in zip(starts.tolist(), lengths.tolist(), strict=True)]
