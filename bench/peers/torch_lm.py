"""The peer in PyTorch: the same models, written as its users write them, with AdamW and clipping.

    python bench/peers/torch_lm.py S float32 [--compile] [--seconds=10]

Attention is `scaled_dot_product_attention`; bfloat16 is autocast; AdamW is the fused one, torch's fastest on a CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from shapes import BETAS, CLIP_NORM, LEARNING_RATE, SHAPES, WEIGHT_DECAY, Shape, hand_over, measure  # noqa: E402


class RMSNorm(nn.Module):
    """As in Llama."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return F.rms_norm(x, (x.shape[-1],), self.weight, 1e-6)


def rope(x, cos, sin):
    """Rotates channel i with i + H // 2; x is [B, N, T, H]."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, s: Shape):
        super().__init__()
        self.s, self.head = s, s.width // s.num_heads
        norm = RMSNorm if s.llama else lambda dim: nn.LayerNorm(dim, bias=False)
        self.norm1, self.norm2 = norm(s.width), norm(s.width)
        self.qkv = nn.Linear(s.width, (s.num_heads + 2 * s.num_kv_heads) * self.head, bias=False)
        self.out = nn.Linear(s.width, s.width, bias=False)
        self.up = nn.Linear(s.width, s.mlp, bias=False)
        self.gate = nn.Linear(s.width, s.mlp, bias=False) if s.llama else None
        self.down = nn.Linear(s.mlp, s.width, bias=False)

    def forward(self, x, cos, sin):
        s, (B, T, D) = self.s, x.shape
        N, K, H = s.num_heads, s.num_kv_heads, self.head
        q, k, v = self.qkv(self.norm1(x)).split([N * H, K * H, K * H], dim=-1)
        q, k, v = (part.view(B, T, -1, H).transpose(1, 2) for part in (q, k, v))
        if s.llama:
            q, k = rope(q, cos, sin), rope(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=N != K)
        x = x + self.out(y.transpose(1, 2).reshape(B, T, D))
        h = self.norm2(x)
        if self.gate is None:
            h = F.gelu(self.up(h), approximate="tanh")
        else:
            h = F.silu(self.gate(h)) * self.up(h)
        return x + self.down(h)


class Decoder(nn.Module):
    """Embeddings, blocks, final norm, tied head; returns the loss."""

    def __init__(self, s: Shape):
        super().__init__()
        self.s = s
        self.embedding = nn.Embedding(s.vocab_size, s.width)
        self.positions = None if s.llama else nn.Embedding(s.seq_len, s.width)
        self.blocks = nn.ModuleList(Block(s) for _ in range(s.num_layers))
        self.norm = RMSNorm(s.width) if s.llama else nn.LayerNorm(s.width, bias=False)
        angles = torch.outer(
            torch.arange(s.seq_len).float(),
            10_000.0 ** -torch.linspace(0, 1, s.width // s.num_heads // 2 + 1)[:-1],
        )
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens, targets):
        x = self.embedding(tokens)
        if self.positions is not None:
            x = x + self.positions(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        logits = F.linear(self.norm(x), self.embedding.weight)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))


def main() -> None:
    """Prints one measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("dtype", choices=("float32", "bfloat16"))
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--seconds", type=float, default=10.0)
    args = parser.parse_args()
    s = SHAPES[args.shape]
    torch.manual_seed(0)
    torch.set_num_threads(os.cpu_count() or 1)
    model = Decoder(s).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True
    )
    run = torch.compile(model) if args.compile else model
    autocast = (
        torch.autocast("cpu", dtype=torch.bfloat16) if args.dtype == "bfloat16" else contextlib.nullcontext()
    )

    def step() -> float:
        rows = torch.randint(0, s.vocab_size, (s.batch_size, s.seq_len + 1))
        with autocast:
            loss = run(rows[:, :-1], rows[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    hand_over(measure(s, step, args.seconds))


if __name__ == "__main__":
    main()
