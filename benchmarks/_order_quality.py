"""Statistics of how far a shuffle is from a fair one, for the benchmark and the tests.

A *draw* is a function from a seed to an order of `range(n)`. Each statistic calls it with the seeds 0, 1 and so on, so
that the result is reproducible. P-values are under the hypothesis of a fair shuffle; z-values are in standard errors of
the mean.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch

from helios.data.ordering import Permutation

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    Order: TypeAlias = npt.NDArray[np.int64]
    Draw: TypeAlias = Callable[[int], Order]


def helios_draw(n: int) -> Draw:
    """Return the draw of Helios' order of `range(n)`, in epoch 0."""
    positions = np.arange(n)
    return lambda seed: Permutation(n, seed, 0)(positions)


def torch_draw(n: int) -> Draw:
    """Return the draw of `torch.randperm(n)`."""
    return lambda seed: torch.randperm(n, generator=torch.Generator().manual_seed(seed)).numpy()


def orders_p(draw: Draw, n: int, draws: int) -> float:
    """Return the p-value of all n! orders being equally likely (Pearson's chi-square test)."""
    cells = {order: cell for cell, order in enumerate(itertools.permutations(range(n)))}
    counts = np.zeros(len(cells))
    for seed in range(draws):
        counts[cells[tuple(draw(seed).tolist())]] += 1
    expected = draws / len(cells)
    return chi_square_p(float(((counts - expected) ** 2 / expected).sum()), len(cells) - 1)


def position_bias_p(draw: Draw, n: int, draws: int, cells: int = 16) -> float:
    """Return the p-value of every index being equally likely at every position (Pearson's chi-square test).

    Positions and indices are divided into `cells` groups each. A permutation's table of positions against indices has
    fixed margins, so that Pearson's statistic is, on average, n / (n - 1) times its degrees of freedom.
    """
    cells = min(cells, n)
    part = np.arange(n) * cells // n
    counts = np.zeros((cells, cells))
    for seed in range(draws):
        np.add.at(counts, (part, part[draw(seed)]), 1)
    sizes = np.bincount(part)
    expected = draws * np.outer(sizes, sizes) / n
    return chi_square_p(float(((counts - expected) ** 2 / expected).sum()) * (n - 1) / n, (cells - 1) ** 2)


def gaps_p(draw: Draw, n: int, draws: int, cells: int = 64) -> float:
    """Return the p-value of the step from an index to the next one, modulo n, being equally likely 1, 2, ..., n - 1."""
    cells = min(cells, n - 1)
    part = np.arange(n - 1) * cells // (n - 1)
    counts = np.zeros(cells)
    for seed in range(draws):
        counts += np.bincount(part[np.diff(draw(seed)) % n - 1], minlength=cells)
    expected = draws * np.bincount(part)
    return chi_square_p(float(((counts - expected) ** 2 / expected).sum()), cells - 1)


def serial_correlation_z(draw: Draw, n: int, draws: int, lag: int = 1) -> float:
    """Return the z-value of the mean correlation of indices `lag` positions apart, under a fair shuffle."""
    centred = (draw(seed) - (n - 1) / 2 for seed in range(draws))
    values = [float((x[:-lag] * x[lag:]).sum() / (x * x).sum()) for x in centred]
    return _z(values, -(n - lag) / (n * (n - 1)))


def batch_mix_z(draw: Draw, n: int, draws: int, batch: int = 64, classes: int = 10) -> float:
    """Return the z-value of the variance of the number of samples of one class in a batch, under a fair shuffle.

    The class is the first of `classes` equal blocks of the data, as in a dataset that is sorted by its labels. With a
    fair shuffle, its number in a batch has the hypergeometric distribution.
    """
    members = n // classes
    share = members / n
    variance = batch * share * (1 - share) * (n - batch) / (n - 1)
    whole = n // batch * batch
    counts = ((draw(seed)[:whole] < members).reshape(-1, batch).sum(axis=1) for seed in range(draws))
    return _z([float(((count - batch * share) ** 2).mean()) for count in counts], variance)


def chi_square_p(statistic: float, degrees: int) -> float:
    """Return the probability that a chi-square variable with `degrees` degrees of freedom exceeds `statistic`."""
    a, x = torch.tensor([degrees / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(a, x))


def _z(values: list[float], expected: float) -> float:
    return float((np.mean(values) - expected) / (np.std(values, ddof=1) / math.sqrt(len(values))))
