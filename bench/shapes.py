"""The shapes that speed is measured on, how a measurement is taken, and the JSON line it is handed over in.

Imports neither JAX nor torch, so that the time from process start to first step is each side's own.
"""

from __future__ import annotations

import json
import resource
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple


class Shape(NamedTuple):
    """A model and its batch."""

    llama: bool
    """RMSNorm, RoPE, SwiGLU; else GPT: LayerNorm, learned positions, GELU (tanh). Both tied, without biases."""
    num_layers: int
    width: int
    num_heads: int
    num_kv_heads: int
    mlp: int
    seq_len: int
    batch_size: int
    vocab_size: int

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.seq_len

    @property
    def flops_per_token(self) -> float:
        """6 per parameter in a product, and 12 L d T of attention: the whole table, not its causal half."""
        head = self.width // self.num_heads
        attention = 2 * self.width * self.width + 2 * self.width * self.num_kv_heads * head
        mlp = (3 if self.llama else 2) * self.width * self.mlp
        weights = self.num_layers * (attention + mlp) + self.vocab_size * self.width
        return 6.0 * weights + 12.0 * self.num_layers * self.width * self.seq_len


SHAPES = {
    "XS": Shape(False, 4, 128, 4, 4, 512, 64, 12, 65),
    "S": Shape(False, 6, 384, 6, 6, 1536, 256, 32, 65),
    "S8": Shape(False, 6, 384, 6, 6, 1536, 256, 8, 65),
    "M": Shape(False, 12, 768, 12, 12, 3072, 1024, 4, 50304),
    "L": Shape(True, 30, 576, 9, 3, 1536, 512, 4, 49152),
}
"""XS: nanoGPT's CPU run. S: its character-level Shakespeare (S8: batch 8). M: GPT-2 124M. L: SmolLM2-135M."""

LEARNING_RATE, BETAS, WEIGHT_DECAY, CLIP_NORM = 6e-4, (0.9, 0.95), 0.1, 1.0


class Measured(NamedTuple):
    """What one process found out."""

    tokens_per_s: float
    """By the median step."""
    start_s: float
    """From the start of the process to the end of its first step, compilation included."""
    peak_rss_bytes: int
    first_loss: float
    last_loss: float


def measure(shape: Shape, step: Callable[[], float], seconds: float) -> Measured:
    """Times steps for about this long, at least three, after the first (which compiles) and one to warm up.

    step() trains on one batch and returns the loss as a Python float: every step waits for its result.
    """
    import psutil

    first_loss = step()
    start_s = time.time() - psutil.Process().create_time()
    step()
    times, loss, begin = [], first_loss, time.perf_counter()
    while len(times) < 3 or time.perf_counter() - begin < seconds:
        before = time.perf_counter()
        loss = step()
        times.append(time.perf_counter() - before)
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Measured(shape.tokens_per_step / statistics.median(times), start_s, rss, first_loss, loss)


def hand_over(measured: Measured) -> None:
    """Prints a measurement as the last line of a process."""
    print(json.dumps(measured._asdict()), flush=True)
