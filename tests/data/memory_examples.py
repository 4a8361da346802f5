"""An ExampleStore that lives in memory."""

import numpy as np
from memory_store import MemoryStore


class MemoryExamples(MemoryStore):
    """Examples as lists of ids; `trained`: for each id whether it is trained on; `labels`: one for each example."""

    def __init__(self, documents, trained=None, labels=None):
        super().__init__(documents)
        trained = [[0] + [1] * (len(d) - 1) for d in documents] if trained is None else trained
        self.trained = np.concatenate([np.zeros(0, bool), *(np.asarray(t, bool) for t in trained)])
        firsts = np.concatenate([[0], self.document_ends[:-1]]).astype(int)
        self.num_trained = int(self.trained.sum() - self.trained[firsts].sum())
        self._labels = labels

    def read_trained(self, starts, lengths):
        return [self.trained[a : a + n] for a, n in zip(starts.tolist(), lengths.tolist(), strict=True)]

    def labels(self, names):
        return np.array([names.index(label) for label in self._labels], np.int32)
