"""The README.md of an exported model: what it is, what it was trained on, how well it does, and its hashes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _data(facts: Mapping[str, Any]) -> str:
    """The mixture: weights as planned, tokens and epochs as read."""
    sources, tokens = facts["sources"], facts["tokens"]
    if not sources or not tokens:
        return "Nothing was trained here: the weights are those of the origin."
    total = sum(source["weight_tokens"] for source in sources.values()) or 1.0
    rows = []
    for name, source in sources.items():
        share = source["weight_tokens"] / total
        epochs = facts["epochs"].get(name)
        rows.append(
            (
                name,
                source["path"],
                f"{100 * share:.1f} %",
                "-" if epochs is None else f"{epochs:.2f}",
                facts["corpus_sha256"].get(name, "-")[:16],
            )
        )
    table = _table(("source", "path", "share of tokens", "epochs", "SHA-256 of its tokens"), rows)
    return f"{tokens:,} tokens in {facts['step']:,} steps.\n\n{table}"


def _evaluation(scores: Mapping[str, float]) -> str:
    if not scores:
        return "No evaluation was saved with this step."
    return _table(
        ("held-out metric", "value"), [(name, f"{value:.4f}") for name, value in sorted(scores.items())]
    )


def _labels(facts: Mapping[str, Any]) -> str:
    """Of a classifier: what its outputs mean."""
    if not facts["labels"]:
        return "\nIts only output is a number.\n"
    rows = [(str(i), name) for i, name in enumerate(facts["labels"])]
    return f"\n## Labels\n\n{facts['task']}\n\n{_table(('output', 'label'), rows)}\n"


def model_card(facts: Mapping[str, Any]) -> str:
    """Markdown with the front matter of the hub.

    Args:
      facts: name, architecture, num_params, dtype, step, tokens, epochs, sources (name -> path, weight_tokens),
        corpus_sha256, tokenizer_sha256, scores, config, origin, jaxlm; of a classifier task and labels.
    """
    origin = facts["origin"]
    start = "random weights" if not origin else f"the weights of {origin['source']}"
    made = "Trained" if facts["tokens"] else "Converted"
    is_classifier = "labels" in facts
    auto = "AutoModelForSequenceClassification" if is_classifier else "AutoModelForCausalLM"
    config = json.dumps(facts["config"], indent=2, ensure_ascii=False)
    return f"""---
library_name: transformers
pipeline_tag: {"text-classification" if is_classifier else "text-generation"}
tags:
- jaxlm
---

# {facts["name"]}

{facts["architecture"]}, {facts["num_params"]:,} parameters in {facts["dtype"]}. {made} with jaxlm {facts["jaxlm"]}
from {start}.

```python
from transformers import {auto}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{facts["name"]}")
model = {auto}.from_pretrained("{facts["name"]}")
```
{_labels(facts) if is_classifier else ""}
## Data

{_data(facts)}

## Evaluation

{_evaluation(facts["scores"])}

## Hashes

Tokenizer: SHA-256 `{facts["tokenizer_sha256"]}`. Every file of this folder stands in `artifact.json` with its size and
hash; `jaxlm artifact verify FOLDER` compares them.

## Config

```json
{config}
```
"""
