"""The loop. It knows no objective, no file and no device by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from jaxlm.train.step import Metrics, TrainState
from jaxlm.types import Batch

Hook = Callable[[int, TrainState, Metrics], None]
"""hook(step, state, metrics): called after every step with the number of steps done, metrics still on the device."""


def fit(
    state: TrainState,
    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]],
    batches: Iterator[Batch],
    hooks: Sequence[Hook],
    num_steps: int,
) -> TrainState:
    """Trains from state.step to num_steps; `batches` starts with the batch of step state.step."""
    for index in range(int(state.step), num_steps):
        state, metrics = step(state, next(batches))  # asynchronous: nothing here waits for the device
        for hook in hooks:
            hook(index + 1, state, metrics)  # a hook that wants a float pays for its own sync
    return state
