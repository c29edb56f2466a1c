"""Readings of a run, from raw norms to running means, without leaving the device; and the balance they are held against.

A raw reading is what the optimizer's step leaves behind: for each tensor |w_t|, |g_t|, |w_{t+1}| and
|w_{t+1} - w_t|. Readings wait in a list and are worked up many at a time, so that a step pays for the norms only.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from normcore.checks import checked, numbers, require, require_range, require_type
from normcore.norm_dynamics.equilibrium import (
    decay_per_step,
    equilibrium,
    half_chord_square,
    time_to_equilibrium,
)
from normcore.norm_dynamics.rates import Number, Rates, apply, common, intrinsic_lr, look_up, plain

ROWS = ("norm_before", "grad", "norm", "moved")
"""The squares kept of the last reading, in this order."""
MEANS = ("moved", "expected", "signal")
"""Running means: |dw|^2, what it would be at equilibrium, and S = |g|^2 |w|^2 (AdamW: the squared update)."""
KEPT = ("last", "sums", "weight")
"""The tables of a state."""
WAITING = 256
"""Raw readings that may wait."""


class Raw(NamedTuple):
    """One raw reading."""

    norms: Tensor
    """(4 tensors + 2,): the four norms of each tensor, then the gradients' factor and 1 if the step did nothing."""
    rates: tuple[Rates | None, ...]
    """Hyper-parameters of each group."""
    scales: tuple[tuple[float, float], ...]
    """Of each group, x before and after the step: the ordinary weights are x times those in the optimizer."""


class Readings:
    """The last reading and the running means of each tensor and each group."""

    def __init__(
        self,
        sizes: list[int],
        horizon: int,
        device: torch.device,
        total: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Start without a reading; sizes are the numbers of tensors of the groups.

        Where norms are those of parts of the tensors, `total` adds up the squares, (..., tensors).
        """
        self.sizes, self.horizon, self.total = sizes, horizon, total
        self.dtype = torch.float32 if device.type == "mps" else torch.float64
        self.owner = np.repeat(np.arange(len(sizes)), sizes)
        rows = len(self.owner) + len(sizes)
        self.groups = np.concatenate([self.owner, np.arange(len(sizes))])
        self.last = torch.full((len(ROWS), rows), torch.nan, dtype=self.dtype, device=device)
        self.sums = torch.zeros(len(MEANS), rows, dtype=self.dtype, device=device)
        self.weight = torch.zeros(rows, dtype=self.dtype, device=device)
        self.rates: tuple[Rates | None, ...] = ()
        self.waiting: list[Raw] = []

    def add(self, raw: Raw) -> None:
        """Let a reading wait, or work up all that do."""
        self.waiting.append(raw)
        if len(self.waiting) >= WAITING:
            self.work_up()

    @torch.no_grad()
    def work_up(self) -> None:
        """Bring the waiting readings into the means: exponential ones, with the weights of all they have seen.

        With d = 1 - 1/horizon a mean is sum_i d^(n-1-i) v_i over sum_i d^(n-1-i), where i numbers the n readings
        that counted. Both sums are kept: k new ones that count multiply them by d^k and add their own, so that
        it does not matter how many come at a time.
        """
        if not self.waiting:
            return
        raws, self.waiting = self.waiting, []
        norms = torch.stack([raw.norms for raw in raws]).to(self.dtype)
        valid = norms[:, -1] == 0
        squares = self._squares(norms, raws)
        rates, turn, is_adam = (self._on_device(values) for values in self._hyper(raws))
        before, grad, after, moved = squares.unbind(dim=1)
        # The update of AdamW is out of reach, its norm is not: lr * update = -(dw + h w), and the inner product in
        # the square follows from norms, 2 <w, dw> = |w'|^2 - |w|^2 - |dw|^2.
        lr, h = rates[:, 0], rates[:, 0] * rates[:, 1]
        update = (moved + h * (after - before - moved) + h**2 * before) / lr**2
        signal = torch.where(is_adam > 0, update, grad * before)
        values = torch.stack([moved, turn * before, signal], dim=1)
        # A step without a rate says nothing, one of a run that diverged would be all that is ever heard again.
        counts = valid[:, None] & (lr > 0) & values.isfinite().all(dim=1)
        seen = counts.to(self.dtype).cumsum(0)
        weights = counts * (1.0 - 1.0 / self.horizon) ** (seen[-1] - seen)
        kept = (1.0 - 1.0 / self.horizon) ** seen[-1]
        values = torch.where(counts[:, None], values, 0.0)
        self.sums = kept * self.sums + torch.einsum("br,bmr->mr", weights, values)
        self.weight = kept * self.weight + weights.sum(0)
        # The last valid one, found without asking the device whether there is any: argmax then gives some other.
        newest = (valid * torch.arange(1, len(raws) + 1, device=valid.device)).argmax()
        self.last = torch.where(valid.any(), squares.index_select(0, newest[None])[0], self.last)
        self.rates = raws[-1].rates

    def _squares(self, norms: Tensor, raws: list[Raw]) -> Tensor:
        """(readings, 4, tensors and groups): the squares in ordinary units, groups summed."""
        tensors = len(self.owner)
        scales = np.array([raw.scales for raw in raws])[:, self.owner]  # (readings, tensors, 2)
        before, after = self._on_device(scales[..., 0]), self._on_device(scales[..., 1])
        factors = torch.stack([before, 1.0 / (before * norms[:, -2:-1]), after, after], dim=1)
        squares = (norms[:, :-2].reshape(len(raws), len(ROWS), tensors) * factors) ** 2
        if self.total is not None:
            squares = self.total(squares)
        # not by a product with zeros and ones, which would spread NaN from group to group
        groups = [part.sum(dim=2) for part in squares.split(self.sizes, dim=2)]
        return torch.cat([squares, torch.stack(groups, dim=2)], dim=2)

    def _hyper(self, raws: list[Raw]) -> tuple[Any, Any, Any]:
        """Of each reading and row: (lr, weight decay), the squared chord at equilibrium, whether it is AdamW."""
        known = [[_row(rates) for rates in raw.rates] for raw in raws]
        table = np.array(known)[:, self.groups]  # (readings, rows, 4)
        return table[..., :2].transpose(0, 2, 1), table[..., 2], table[..., 3]

    def _on_device(self, values: Any) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(values), dtype=self.dtype, device=self.last.device)

    def state(self) -> dict[str, Any]:
        """The readings as plain numbers."""
        self.work_up()
        rates = [None if rates is None else tuple(rates) for rates in self.rates]
        return {"rates": rates, **{name: getattr(self, name).tolist() for name in KEPT}}

    def load(self, state: dict[str, Any]) -> None:
        """Take them back, all or none."""
        last, sums, weight = (self._on_device(numbers(name, state[name])) for name in KEPT)
        require_type("rates", state["rates"], list | tuple, "a list")
        rates = tuple(None if rates is None else Rates(*rates) for rates in state["rates"])
        shapes = last.shape, sums.shape, weight.shape
        ours = self.last.shape, self.sums.shape, self.weight.shape
        if shapes != ours or len(rates) not in (0, len(self.sizes)):
            raise ValueError(f"{', '.join(KEPT)} must be of as many tensors, got shapes {shapes}")
        if not bool(sums.isfinite().all() & weight.isfinite().all()):
            raise ValueError("sums and weight must be finite, got NaN or infinity")
        for values in filter(None, rates):
            look_up(values.family)
            checked("rates", values[1:])
        self.last, self.sums, self.weight, self.rates, self.waiting = last, sums, weight, rates, []


@functools.lru_cache(maxsize=4096)
def _row(rates: Rates | None) -> tuple[float, float, float, float]:
    """(lr, weight decay, squared chord at equilibrium, 1 for AdamW) of a group."""
    if rates is None:
        return np.nan, np.nan, np.nan, 0.0
    chord = np.nan
    with contextlib.suppress(ValueError):  # beyond the stable range there is no equilibrium
        chord = 2 * float(half_chord_square(rates.lr, rates.weight_decay, rates.momentum, rates.family))
    return rates.lr, rates.weight_decay, chord, float(rates.family == "adamw")


MEASURED = ("norm", "grad_norm", "effective_lr", "intrinsic_lr", "angle", "rho", "grad_sq_norm")
EXPECTED = ("equilibrium_norm", "equilibrium_angle", "distance", "steps_to_equilibrium")
COLUMNS = MEASURED + EXPECTED
"""What is logged of each tensor and each group."""


def columns_of(rates: Rates | None, table: Any) -> dict[str, Any]:
    """Work out the columns of one group's rows from the squares and means of `Readings`."""
    before, grad, after, moved, mean_moved, expected, signal = table
    norm = np.sqrt(after)
    with np.errstate(divide="ignore", invalid="ignore"):
        chord = (moved - (norm - np.sqrt(before)) ** 2) / (norm * np.sqrt(before))
        angle = 2 * np.arcsin(np.sqrt(np.clip(chord, 0.0, 4.0)) / 2)
        values = {"norm": norm, "grad_norm": np.sqrt(grad), "angle": angle}
        if rates is None:
            return values
        rule = look_up(rates.family)
        kept = 1.0 if rule.power == 2 else 1.0 - rates.momentum
        values["effective_lr"] = rates.lr / kept / norm ** (rule.power // 2)
        values["grad_sq_norm"] = signal
        if rates.weight_decay > 0:
            values["rho"] = mean_moved / expected
    own = (rates.lr, rates.weight_decay)
    values["intrinsic_lr"] = intrinsic_lr(*own, 0.0 if rule.decoupled else rates.momentum)
    rows = (norm > 0) & (signal > 0) & np.isfinite(norm)
    if min(own) > 0 and np.isfinite(_row(rates)[2]) and rows.any():
        values |= {name: np.full(len(norm), np.nan) for name in EXPECTED}
        betas = {"betas": (rates.momentum, 0.0)} if rates.family == "adamw" else {}
        momentum = 0.0 if betas else rates.momentum
        options: dict[str, Any] = {"optimizer": rates.family, "grad_sq_norm": signal[rows], **betas}
        state = equilibrium(*own, momentum, **options)
        values["equilibrium_norm"][rows] = state.norm
        values["equilibrium_angle"][rows] = state.angle
        values["distance"][rows] = norm[rows] / state.norm - 1.0
        values["steps_to_equilibrium"][rows] = time_to_equilibrium(norm[rows], *own, momentum, **options)
    return values


def rho(
    lr: Number,
    weight_decay: Number,
    momentum: Number = 0.0,
    *,
    norm_sq: Number,
    grad_sq: Number | None = None,
    overlap: Number = 0.0,
    moved_sq: Number | None = None,
) -> Number:
    """Compare what the gradients add to the norm with what weight decay takes: 1 at equilibrium.

    With means over steps G = mean|g|^2, R = mean|w|^2, D = mean|w_{t+1} - w_t|^2, P = mean <g, buffer before
    the step>, h = lr*weight_decay and m = momentum, one of

        from gradients: lr (1+m) (G + 2 m P) / (weight_decay (1-m) (2(1+m) - h) R)
        from movements: (1+m) D / (2 h R)

    Without momentum the first is lr G / ((2 - h) weight_decay R). Both are exact for scale-invariant weights
    under SGD with coupled decay up to the drift of R: no noise model, no small-step limit, no constant S.
    Below 1 the norm is falling towards its equilibrium, above 1 growing. P is 0 on average for
    zero-mean noise; in a net whose gradients point the same way for a while it is not.

    Args:
        lr: learning rate, > 0 (float, array or tensor, as the others).
        weight_decay: > 0.
        momentum: in [0, 1), with no dampening and not Nesterov's.
        norm_sq: R > 0, the mean over the window of |w_t|^2, before each step.
        grad_sq: G >= 0, over the same steps; without the weight-decay term.
        overlap: P.
        moved_sq: D >= 0, in place of grad_sq.

    Returns:
        rho, of the kind that came in.

    Raises:
        ValueError: an argument breaks its condition.
        TypeError: an argument is not made of numbers, or neither or both of grad_sq and moved_sq are given.

    Example:
        >>> round(rho(0.1, 0.01, norm_sq=4.0, grad_sq=0.7996), 12)
        1.0
        >>> round(rho(0.1, 0.01, 0.9, norm_sq=4.0, moved_sq=0.008 / 1.9), 12)
        1.0

    Source: without momentum Li, Malladi & Arora (2021), arXiv 2102.12470; the forms with momentum are this
    project's, from |w_{t+1}|^2 - |w_t|^2 = D_t + m (|w_t|^2 - |w_{t-1}|^2) + m D_{t-1} - 2 h |w_t|^2.

    """
    if (grad_sq is None) == (moved_sq is None):
        given = "neither" if grad_sq is None else "both"
        raise TypeError(f"one of grad_sq and moved_sq must be given, got {given}")
    name, measured = ("grad_sq", grad_sq) if moved_sq is None else ("moved_sq", moved_sq)
    settings = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum}
    means = {"norm_sq": norm_sq, "overlap": overlap, name: measured}
    lr, weight_decay, m, norm_sq, overlap, measured = common(**settings, **means)
    decay_per_step(lr, weight_decay)
    require_range("norm_sq", norm_sq, positive=True)
    require_range(name, measured)
    require("overlap", overlap, "finite", apply("isfinite", overlap))
    chord = half_chord_square(lr, weight_decay, m, "sgd")
    if moved_sq is not None:
        return plain(measured / (2 * chord * norm_sq))
    return plain(lr * (measured + 2 * m * overlap) / (weight_decay * (1 - m) * (2 - chord) * norm_sq))
