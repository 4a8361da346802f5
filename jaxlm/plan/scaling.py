"""Fits the law of loss over parameters and tokens to finished runs: L(N, D) = E + A / N^alpha + B / D^beta.

The form is that of Chinchilla's approach 3 (Hoffmann et al. 2022, arXiv:2203.15556, section 3.3). What is minimised is
theirs too: the Huber loss, delta 1e-3, of log L, which a few bad runs cannot move far. It is summed over points, not
averaged: the average of 240 losses of 1e-5 is below the tolerance at which optimizers stop, and the published
coefficients came of that (Besiroglu et al. 2024, arXiv:2404.10102).

How it is found. For fixed exponents the law is linear in E, A and B, so a grid over the two exponents alone, with a
least-squares fit in each cell, shows every basin (variable projection; arXiv:2603.22339 argues for it). The best cells
are refined in all five parameters by damped Gauss-Newton steps with Huber's weights, many at once. No start is random.

Intervals come from the Bayesian bootstrap (Rubin 1981, The Annals of Statistics 9:1): each replicate weighs the points
by exponential random numbers instead of drawing them. For many points it equals drawing; of few, no replicate loses the
points that tell the parameters apart. An interval says how well the points determine the law. It does not say whether
the law holds where there are no points, nor how far one run lies from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from jaxlm.plan.scaling_points import Points, check_points
from jaxlm.types import UserError

if TYPE_CHECKING:
    import numpy as np

DELTA = 1e-3
"""Where the Huber loss turns from quadratic to linear, in log L: about 0.1% of the loss."""
MIN_EXPONENT, MAX_EXPONENT = 0.01, 3.0
"""A fit that ends here has not found its exponent."""
MIN_FLOOR = math.exp(-8)
"""Smallest E, as a share of the lowest loss: below it, E is zero to any use."""
NUM_GRID = 24
"""Values of each exponent in the grid."""
NUM_STARTS = 12
"""Cells of the grid that are refined."""
MAX_STEPS = 500
TIGHT, LOOSE = 1e-12, 1e-7
"""Relative falls of the objective that still count as progress: for the fit, and for a replicate of the bootstrap."""
WARN_FACTORS = {"FLOPs": 100.0, "parameters": 10.0, "tokens": 10.0}
REFUSE_FACTORS = {"FLOPs": 1000.0, "parameters": 100.0, "tokens": 100.0}
"""How far beyond the points a prediction may go, as a multiple of the largest (or a share of the smallest).

Hoffmann et al. went from runs of at most 1.3e22 FLOPs to Gopher's 5.76e23, 44 times as many; of their points the
interval of the optimal N there already spans a factor of two (5.4e10 to 1.15e11). 100 times is further than that and is
said; 1000 times is refused. Along the optimum N and D each grow by about the square root, 10 and 30; a model may be
asked off the optimum, so they are refused at 100."""


class Law(NamedTuple):
    """L(N, D) = E + A / N^alpha + B / D^beta, in nats per token."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    @property
    def a(self) -> float:
        """Compute-optimal N grows as C^a."""
        return self.beta / (self.alpha + self.beta)

    @property
    def b(self) -> float:
        """Compute-optimal D grows as C^b."""
        return self.alpha / (self.alpha + self.beta)

    def loss(self, num_params: float, num_tokens: float) -> float:
        """Of a model of N parameters trained on D tokens."""
        return self.E + self.A * num_params**-self.alpha + self.B * num_tokens**-self.beta

    def optimum(self, flops: float) -> tuple[float, float]:
        """(N, D) of the lowest loss with 6 N D = C (arXiv:2203.15556, equation 4)."""
        log_G = math.log(self.alpha * self.A / (self.beta * self.B)) / (self.alpha + self.beta)
        log_N = log_G + self.a * math.log(flops / 6)
        # A replicate that found no exponents has its optimum at 1e200: kept where its powers are still numbers.
        log_N = min(max(log_N, -100.0), 100.0)
        return math.exp(log_N), flops / 6 / math.exp(log_N)


class Interval(NamedTuple):
    """A value and the 95% interval of its bootstrap."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Fit:
    """The law of some points."""

    points: Points
    law: Law
    objective: float
    """The minimum: summed Huber loss of log L."""
    residuals: tuple[float, ...]
    """log(L of the law) - log(L of the point), in the order of the points: about the share by which it is too high."""
    replicates: tuple[Law, ...]
    """One for each bootstrap."""

    def interval(self, quantity: Callable[[Law], float]) -> Interval:
        """The 95% interval of anything that can be computed of a Law."""
        import numpy as np

        values = [quantity(law) for law in self.replicates]
        low, high = np.percentile(values, [2.5, 97.5])
        return Interval(float(quantity(self.law)), float(low), float(high))

    @property
    def scatter(self) -> float:
        """Median absolute residual: how far a run typically lies from the law, as a share of its loss."""
        import numpy as np

        return float(np.median(np.abs(self.residuals)))


def fit_law(points: Points, num_bootstraps: int = 200, seed: int = 0) -> Fit:
    """Fits the law; the same points and seed give the same digits.

    Errors: UserError where the points cannot tell its parameters apart (`check_points`), or a number is out of range.
    """
    import numpy as np

    if num_bootstraps < 20:
        raise UserError(
            f"--bootstrap={num_bootstraps} must be at least 20: a 95% interval needs replicates in its tails. Try 200."
        )
    if seed < 0:
        raise UserError(f"--seed={seed} must not be negative.")
    check_points(points)
    data = _Data(
        np.log(points.params) - np.mean(np.log(points.params)),
        np.log(points.tokens) - np.mean(np.log(points.tokens)),
        np.log(points.loss),
    )
    grid = _grid(data)
    costs = data.huber(grid)
    best = np.argsort(costs.sum(axis=1), kind="stable")[:NUM_STARTS]
    equal = np.ones((1, len(data.y)))
    found, objective = _refine(data, grid[best], np.repeat(equal, len(best), axis=0), LOOSE)
    found, objective = _refine(data, found[np.argmin(objective)][None], equal, TIGHT)
    theta = found[0]

    draws = np.random.default_rng(seed).exponential(size=(num_bootstraps, len(data.y)))
    draws *= len(data.y) / draws.sum(axis=1, keepdims=True)
    # Two starts for each replicate: the fit to all points, and the cell of the grid that suits its weights best.
    starts = np.concatenate(
        [np.repeat(theta[None], num_bootstraps, axis=0), grid[np.argmin(draws @ costs.T, axis=1)]]
    )
    found, values = _refine(data, starts, np.concatenate([draws, draws]), LOOSE)
    first = values[:num_bootstraps] <= values[num_bootstraps:]
    chosen = np.where(first[:, None], found[:num_bootstraps], found[num_bootstraps:])

    shift_u, shift_v = float(np.mean(np.log(points.params))), float(np.mean(np.log(points.tokens)))
    return Fit(
        points,
        _law(theta, shift_u, shift_v),
        float(objective[0]),
        tuple(data.residuals(theta[None])[0].tolist()),
        tuple(_law(each, shift_u, shift_v) for each in chosen),
    )


MAX_SPREAD = 100.0
"""From end to end of the interval of the optimal N. Beyond it the points say nothing of where the optimum is."""


def check_optimum(fit: Fit, flops: float) -> None:
    """Errors: UserError where the points do not determine the best N of this budget."""
    found = fit.interval(lambda law: law.optimum(flops)[0])
    if found.high > MAX_SPREAD * found.low:
        raise UserError(
            f"--flops={flops:.3g}: these {len(fit.points.loss)} points do not determine the best model; the interval "
            f"of its N runs from {found.low:.2g} to {found.high:.2g}, more than {MAX_SPREAD:.0f} times. Add runs of "
            "more different N and D, or ask for one model with --params and --tokens."
        )


def extrapolation(points: Points, num_params: float, num_tokens: float) -> list[str]:
    """What to say of a prediction far from the points, if it is. Errors: UserError where it is too far."""
    flops = [6 * n * d for n, d in zip(points.params, points.tokens, strict=True)]
    said = []
    for name, asked, known in (
        ("FLOPs", 6 * num_params * num_tokens, flops),
        ("parameters", num_params, points.params),
        ("tokens", num_tokens, points.tokens),
    ):
        above = asked > max(known)
        edge = max(known) if above else min(known)
        factor = asked / edge if above else edge / asked
        distance = (
            f"{factor:,.0f} times {'beyond the largest' if above else 'below the smallest'} run ({edge:.3g})"
        )
        if factor > REFUSE_FACTORS[name]:
            raise UserError(
                f"{asked:.3g} {name} are {distance}: beyond {REFUSE_FACTORS[name]:,.0f} times the law is a guess, "
                "whatever its interval says. Ask for less, or add larger runs."
            )
        if factor > WARN_FACTORS[name]:
            said.append(
                f"{asked:.3g} {name} are {distance}: the interval does not cover that the law may bend there."
            )
    return said


def doubts(fit: Fit) -> list[str]:
    """What is wrong with the fit itself; each with its reason."""
    law, said = fit.law, []
    for name, what, value in (("alpha", "parameters", law.alpha), ("beta", "tokens", law.beta)):
        found = fit.interval(lambda law, name=name: getattr(law, name))
        if not _is_inside(value):
            said.append(
                f"{name} ended at the edge of its range ({value:.3g}): the points do not show how the loss falls with "
                f"{what}. Vary them more."
            )
        elif not (_is_inside(found.low) and _is_inside(found.high)):
            said.append(
                f"the interval of {name} reaches the edge of its range ({found.low:.3g} to {found.high:.3g}): the "
                f"points hardly show how the loss falls with {what}. Vary them more."
            )
    if law.E < 0.01 * min(fit.points.loss):
        said.append(
            "E ended at zero: the points do not show the floor of the loss, so predictions far out are too low. Add "
            "larger or longer runs."
        )
    if len(fit.points.loss) < 12:
        said.append(
            f"{len(fit.points.loss)} points for five parameters: so few always lie close to some such law, and the "
            "intervals are too narrow. Add runs."
        )
    return said


def _is_inside(exponent: float) -> bool:
    return MIN_EXPONENT * 1.001 < exponent < MAX_EXPONENT * 0.999


class _Data(NamedTuple):
    """Centred logs of N and D, and log L: [n] each.

    A fit is a vector (log E, log A', log B', alpha, beta), where A' and B' are the terms at the geometric mean of N and
    of D: nearly uncorrelated with the exponents, unlike A and B.
    """

    u: np.ndarray
    v: np.ndarray
    y: np.ndarray

    def terms(self, theta: np.ndarray) -> np.ndarray:
        """Logs of the three terms: [fits, 3, n]."""
        import numpy as np

        e, a, b, alpha, beta = (column[:, None] for column in theta.T)
        return np.stack([e + 0 * self.u, a - alpha * self.u, b - beta * self.v], axis=1)

    def residuals(self, theta: np.ndarray) -> np.ndarray:
        """[fits, n]"""
        import numpy as np

        return np.logaddexp.reduce(self.terms(theta), axis=1) - self.y

    def huber(self, theta: np.ndarray) -> np.ndarray:
        """Loss of each point: [fits, n]."""
        import numpy as np

        size = np.abs(self.residuals(theta))
        return np.where(size <= DELTA, 0.5 * size**2, DELTA * (size - 0.5 * DELTA))

    def gauss_newton(self, theta: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gradient [fits, 5] and positive Hessian [fits, 5, 5] of the weighted Huber loss (its quadratic bound)."""
        import numpy as np

        terms = self.terms(theta)
        total = np.logaddexp.reduce(terms, axis=1)
        share = np.exp(terms - total[:, None])
        residual = total - self.y
        slopes = np.concatenate([share, -share[:, 1:2] * self.u, -share[:, 2:3] * self.v], axis=1)
        weighted = slopes * (weights * DELTA / np.maximum(np.abs(residual), DELTA))[:, None]
        return (weighted @ residual[:, :, None])[:, :, 0], weighted @ slopes.transpose(0, 2, 1)


def _grid(data: _Data) -> np.ndarray:
    """For each pair of exponents the best E, A', B': [NUM_GRID^2, 5]."""
    import numpy as np

    exponents = np.geomspace(0.03, 2.0, NUM_GRID)
    alpha, beta = (axis.ravel() for axis in np.meshgrid(exponents, exponents))
    columns = np.stack(
        [0 * alpha[:, None] + 0 * data.u, -alpha[:, None] * data.u, -beta[:, None] * data.v], axis=1
    )
    # Divided by L, so that residuals are of log L to first order; five rounds of Huber's weights.
    design = np.exp(columns - data.y)
    weights = np.ones_like(design[:, 0])
    least = MIN_FLOOR * math.exp(float(np.min(data.y)))
    solution = np.zeros((len(alpha), 3))
    for _ in range(5):
        weighted = design * weights[:, None]
        hessian = weighted @ design.transpose(0, 2, 1)
        hessian += 1e-9 * np.trace(hessian, axis1=1, axis2=2)[:, None, None] * np.eye(3)
        solution = np.linalg.solve(hessian, weighted.sum(axis=2)[:, :, None])[:, :, 0]
        residual = (solution[:, None] @ design)[:, 0] - 1
        weights = DELTA / np.maximum(np.abs(residual), DELTA)
    return np.column_stack([np.log(np.maximum(solution, least)), alpha, beta])


def _refine(
    data: _Data, theta: np.ndarray, weights: np.ndarray, tolerance: float
) -> tuple[np.ndarray, np.ndarray]:
    """Descends from each start, [fits, 5], under its weights, [fits, n], until none falls; (fits, objectives)."""
    import numpy as np

    low = np.array([float(np.min(data.y)) + math.log(MIN_FLOOR), -50, -50, MIN_EXPONENT, MIN_EXPONENT])
    high = np.array([50, 50, 50, MAX_EXPONENT, MAX_EXPONENT])
    theta = np.clip(theta, low, high)
    objective = (weights * data.huber(theta)).sum(axis=1)
    damping = np.full(len(theta), 1e-3)
    quiet = np.zeros(len(theta), int)
    diagonal = np.arange(5)
    for _ in range(MAX_STEPS):
        busy = np.flatnonzero(quiet < 5)
        if not len(busy):
            break
        gradient, hessian = data.gauss_newton(theta[busy], weights[busy])
        hessian[:, diagonal, diagonal] *= 1 + damping[busy, None]
        hessian[:, diagonal, diagonal] += 1e-12
        step = np.linalg.solve(hessian, -gradient[:, :, None])[:, :, 0]
        tried = np.clip(theta[busy] + step, low, high)
        value = (weights[busy] * data.huber(tried)).sum(axis=1)
        fell = objective[busy] - value
        better = fell > 0
        quiet[busy] = np.where(fell > tolerance * objective[busy], 0, quiet[busy] + 1)
        damping[busy] = np.clip(damping[busy] * np.where(better, 0.3, 4.0), 1e-9, 1e9)
        theta[busy[better]], objective[busy[better]] = tried[better], value[better]
    return theta, objective


def _law(theta: np.ndarray, shift_u: float, shift_v: float) -> Law:
    e, a, b, alpha, beta = theta.tolist()
    return Law(math.exp(e), math.exp(a + alpha * shift_u), math.exp(b + beta * shift_v), alpha, beta)
