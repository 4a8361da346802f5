"""Stand-ins for a model and a tokenizer, small enough to know every probability by hand."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

DECAY = 0.5


def history_lm(table_VV, *, decay=DECAY, num_positions=None):
    """A model whose next-token logits are sum over s <= t of decay^(t - s) * table[token_s].

    decay=0 is a bigram model. The cache holds token ids by slot, so wrong slots, positions or masks change the logits.
    `lm.traces` counts how often extend was traced: one per compiled shape and function.
    """
    V = len(table_VV)
    traces = []

    def mix(tokens_BS, positions_BT):
        S = tokens_BS.shape[1]
        age_BTS = positions_BT[:, :, None] - jnp.arange(S)[None, None]
        weight_BTS = jnp.where(age_BTS >= 0, jnp.power(jnp.float32(decay), age_BTS), 0.0)
        return jnp.einsum("BTS,BSV->BTV", weight_BTS, jax.nn.one_hot(tokens_BS, V))

    def extend(params, tokens_BT, positions_BT, cache_BS):
        traces.append(tokens_BT.shape + cache_BS.shape[1:])
        cache_BS = cache_BS.at[jnp.arange(len(cache_BS))[:, None], positions_BT].set(tokens_BT)
        return mix(cache_BS, positions_BT), cache_BS

    def hidden(params, batch, dropout_key=None):
        return mix(batch["tokens"], batch["positions"])

    def init_cache(batch_size, max_len):
        return jnp.full((batch_size, max_len), V - 1, jnp.int32)

    axes, params = {"table": ("embed", "vocab")}, {"table": jnp.asarray(table_VV, jnp.float32)}
    if num_positions is not None:
        axes["positions"] = ("positions", "embed")
        params["positions"] = jnp.zeros((num_positions, 1))
    lm = SimpleNamespace(
        head_place=None,
        arrange=lambda batch: batch,
        init=lambda key: params,
        hidden=hidden,
        hidden_with_router=None,
        head=lambda params, x_XD: jnp.matmul(x_XD, params["table"]),
        axes=axes,
        head_keys=("table",),
        init_cache=init_cache,
        extend=extend,
        traces=traces,
    )
    return lm, params


def history_logits(table_VV, tokens, decay=DECAY):
    """The same in numpy, one row, after its last token."""
    weights = [decay ** (len(tokens) - 1 - s) for s in range(len(tokens))]
    return sum(w * np.asarray(table_VV[token], np.float64) for w, token in zip(weights, tokens))


def random_table(vocab_size, seed=0, scale=1.0):
    return np.random.default_rng(seed).normal(size=(vocab_size, vocab_size)).astype(np.float32) * scale


class ByteTokenizer:
    """Ids 0 and 1 are BOS and EOS; id 2 + b is byte b; then come words of several characters, longest match first."""

    def __init__(self, words=(), bos_id=0):
        self.bos_id, self.eos_id, self.pad_id, self.sha256 = bos_id, 1, 1, "0" * 64
        self.prefix_ids, self.stop_ids = () if bos_id is None else (bos_id,), (1,)
        self.bytes = [b"", b""] + [bytes([b]) for b in range(256)] + [word.encode() for word in words]
        self.vocab_size = len(self.bytes)

    def encode(self, text):
        data, ids = text.encode(), []
        while data:
            best = max(
                range(2, self.vocab_size), key=lambda i: data.startswith(self.bytes[i]) * len(self.bytes[i])
            )
            ids.append(best)
            data = data[len(self.bytes[best]) :]
        return ids

    encode_markup = encode

    def decode(self, ids):
        return b"".join(self.bytes[i] for i in ids).decode("utf-8", "replace")

    def piece(self, token_id):
        return ("<s>", "</s>")[token_id] if token_id < 2 else self.bytes[token_id].decode("utf-8", "replace")
