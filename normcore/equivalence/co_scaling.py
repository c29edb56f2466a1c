"""Keep a model's function as it is while some of its weights are rescaled, and prove by trial that it is.

A norm layer's scale is the product over the rescaled groups of (1/x_g)^{d_g}, with d_g the degree of homogeneity of
its input in the weights of group g. A trial measures the degrees: the weights of a group are halved, which is exact in
binary floats, each layer is co-scaled by what its own input shows, and the outputs must be those of before.
"""

import functools
import math
import warnings
import weakref
from collections.abc import Callable, Mapping, Set
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.hooks import RemovableHandle

from normcore.equivalence.group_gauge import GroupGauge, is_moved
from normcore.equivalence.norm_layers import ORDINARY, NormLayer, Run, input_norm, norm_layers
from normcore.invariance.probing import tensors_in, untouched
from normcore.invariance.report import scale_invariance
from normcore.sharded import is_sharded, parts, reshard

ROUNDINGS, COARSE = 8, 0.02
"""By how many roundings of its own precision a right model's outputs may differ, but never by more than COARSE. (Most
do not differ at all: halving is exact.)"""

HIDES = 1e-3
"""A trainable tensor smaller than this (a fresh bias, a gain of 0) hides what it does, and gets other values for the
trial: such as it will have later."""

CO_SCALED: weakref.WeakValueDictionary[int, "CoScaling"] = weakref.WeakValueDictionary()
"""id of a norm layer -> who sets its eps, as long as that lives."""


class Watch:
    """A hook that stays behind when its module is copied or pickled: in the copy it does nothing."""

    def __init__(self, call: Callable[..., None] | None = None) -> None:
        self.call = call

    def __call__(self, *arguments: Any) -> None:
        """Pass on."""
        if self.call is not None:
            self.call(*arguments)

    def __reduce__(self) -> Any:
        return Watch, ()


def warn_if_not_invariant(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    batch: tuple[Any, Any],
    gauges: dict[int, GroupGauge],
) -> set[int]:
    """Warn about tagged groups under whose common scaling the model's output changes; returns these."""
    names = {p: name for name, p in model.named_parameters()}
    other = "none of the model's"
    groups = {str(i): [names.get(p, other) for p in gauge.group["params"]] for i, gauge in gauges.items()}
    found = scale_invariance(model, loss_fn, batch, groups=groups).groups
    wrong = [int(i) for i, verdict in found.items() if verdict.verdict == "no"]
    for i in wrong:
        warnings.warn(
            f"group {i} is tagged scale_invariant=True but is not: defect {found[str(i)].defect:.3g} "
            "(0 for an invariant group)",
            stacklevel=3,
        )
    return set(wrong)


class CoScaling:
    """The layers of a model that follow the scales of the gauges, and the trial which shows that they do.

    It takes place at the first forward pass in train mode and again in eval mode, of the outermost module that
    holds all tagged weights. Model, buffers and generators are afterwards as before. Without a model all of it is idle.
    """

    trying = False
    """Whether a trial is running, this one's or another's."""

    def __init__(
        self,
        model: nn.Module | None,
        gauges: Mapping[int, GroupGauge],
        excused: Set[int] = frozenset(),
        before_trial: Callable[[], None] = lambda: None,
    ) -> None:
        self.gauges, self.excused, self.before_trial = gauges, excused, before_trial
        self.known, self.model = model is not None, model or nn.Module()
        reshard(self.model)  # whole weights, registered after a forward pass, are not the optimizer's
        self.named: dict[Tensor, str] = {p: name for name, p in self.model.named_parameters()}
        self.layers = norm_layers(self.model)
        for layer in self.layers:
            if id(layer.module) not in CO_SCALED and ORDINARY in vars(layer.module):
                layer.set_eps(1.0)  # the model is a copy
        self._handles: dict[nn.Module, RemovableHandle] = {}
        self._waiting: list[RemovableHandle] = []
        self.watch()

    def tagged(self) -> set[Tensor]:
        """The converted weights."""
        return {p for gauge in self.gauges.values() for p in gauge.group["params"]}

    def names(self, index: int) -> list[str] | None:
        """The model's names of a group's weights."""
        return [self.named[p] for p in self.gauges[index].group["params"]] if self.known else None

    def watch(self) -> None:
        """Wait for a forward pass, of whichever module that holds all tagged weights is called."""
        self.close()
        self._modes: set[bool] = set()
        tagged, hook = self.tagged(), Watch(torch.compiler.disable(self._on_forward))
        if self.known and not tagged <= self.named.keys():
            raise ValueError("model must hold all tagged weights of the optimizer, got one without some")
        holders = [m for m in self.model.modules() if not _delegates(m) and tagged <= set(m.parameters())]
        for module in [m for m in holders if any(m.children())] or holders:
            self._handles[module] = module.register_forward_pre_hook(hook, with_kwargs=True)

    def close(self) -> None:
        """Stop waiting."""
        for handle in [*self._handles.values(), *self._waiting]:
            handle.remove()
        self._handles, self._waiting = {}, []

    def leave(self) -> None:
        """Stop waiting, and leave the layers to others."""
        self.close()
        for layer in self.layers:
            CO_SCALED.pop(id(layer.module), None)

    def _registered(self, param: Tensor) -> Tensor:
        """A weight as the model has it at the moment: FSDP registers now the shard, now the whole one."""
        owner, _, name = self.named[param].rpartition(".")
        return getattr(self.model.get_submodule(owner), name)  # type: ignore[no-any-return]

    def _on_forward(self, root: nn.Module, args: Any, kwargs: Any) -> None:
        if CoScaling.trying or root.training in self._modes:
            return
        if any(self._registered(p) is not p and not is_sharded(p) for p in self.tagged()):
            return  # a functional call, of other weights
        self.before_trial()
        CoScaling.trying = True
        try:
            self._try(functools.partial(self._run, root, args, kwargs), root)
        finally:
            CoScaling.trying = False
        self.settle()
        if all(gauge.verified for gauge in self.gauges.values()):
            self._modes.add(root.training)
            for other in [m for m in self._handles if m is not root or len(self._modes) == 2]:
                self._handles.pop(other).remove()
            self._mind_the_unmeasured()

    def _try(self, run: Callable[..., Run], root: nn.Module) -> None:
        """Halve each group and look at the outputs; raise ValueError where they change."""
        base = run()
        for index, gauge in self.gauges.items():
            halved = run(index, base)
            for layer, degree in halved.degrees.items():
                layer.degrees[index] = degree
                if degree and CO_SCALED.setdefault(id(layer.module), self) is not self:
                    raise ValueError(
                        f"norm layer {layer.name!r} must follow the weights of one ExpLR, got two: give them one optimizer"
                    )
            if index not in self.excused or halved.mixed:
                self._compare(base, halved, run, index, root)
            # a group that no layer sees may take no part in this forward pass
            seen = gauge.verified or any(halved.degrees.values())
            gauge.verified = seen or base.gap(run(index, redraw=True))[0] > 0.0

    def _compare(self, base: Run, halved: Run, run: Callable[..., Run], index: int, root: nn.Module) -> None:
        """Raise ValueError unless the two are equal up to rounding."""
        (gap, where), allowed = base.gap(halved), self._allowed(base)
        noise = base.gap(run())[0] if gap > allowed else 0.0  # some devices add in any order
        if gap > max(allowed, 10 * noise if noise < HIDES else 0.0):
            what = f"{where} changed by {gap:.2g} of its size (rounding {allowed:.1g}, twice the same {noise:.1g})"
        elif halved.mixed:
            what = halved.mixed
        else:
            return
        names = self.names(index) or []
        titles = {name: f"{name!r} ({type(module).__name__})" for name, module in root.named_modules()}
        raise ValueError(
            f"model must compute the same when the weights of tagged group {index} are halved, got {what}; "
            f"{halved.first_astray(titles)}. A module follows if it reads its eps at every call from an attribute eps, "
            "epsilon or variance_epsilon and keeps its statistics as running_mean and running_var; biases and shortcuts "
            "added to scaled weights belong into their group. Otherwise these weights need scale_invariant=False: "
            f"{', '.join(names[:6])}{', ...' * (len(names) > 6)}"
        )

    def _run(
        self,
        root: nn.Module,
        args: Any,
        kwargs: Any,
        index: int | None = None,
        base: Run | None = None,
        *,
        redraw: bool = False,
    ) -> Run:
        """One run; if the index of a group is given, with its weights halved, or drawn anew."""
        run, layers = Run(base), {layer.module: layer for layer in self.layers}
        with untouched(root), torch.no_grad(), ExitStack() as hooks:
            for name, module in root.named_modules():
                after = functools.partial(run.after, name, layers.get(module))
                hooks.enter_context(module.register_forward_hook(after, with_kwargs=True))
                if module in layers:
                    before = functools.partial(run.before, layers[module])
                    hooks.enter_context(module.register_forward_pre_hook(before, with_kwargs=True))
            for i, param in enumerate(root.parameters()):
                if param.requires_grad and _hides(param):
                    _redraw(param, seed=i)
            weights = self.gauges[index].group["params"] if index is not None else []
            for p in [self._registered(p) for p in weights]:
                if redraw:
                    _redraw(p, seed=0)
                else:
                    p.mul_(0.5)
            try:
                torch.clear_autocast_cache()  # it would keep the weights of another run
                args, kwargs = tree_map_only(Tensor, torch.clone, (args, kwargs))
                outputs = [t.clone() for t in tensors_in(root.forward(*args, **kwargs))]
            finally:
                torch.clear_autocast_cache()
                run.give_back()
            buffers = {f"buffer {n!r}": b.clone() for n, b in root.named_buffers() if b.is_floating_point()}
        run.tensors = {f"output {i}": t for i, t in enumerate(outputs)} | buffers
        return run

    def _allowed(self, run: Run) -> float:
        """How far the outputs may move by rounding."""
        tensors = [*self.tagged(), *run.tensors.values()]
        kinds = {t.dtype for t in tensors if t.is_floating_point()}
        device = tensors[0].device.type
        if torch.is_autocast_enabled(device):
            kinds.add(torch.get_autocast_dtype(device))
        return min(ROUNDINGS * max(torch.finfo(kind).eps for kind in kinds), COARSE)

    def _mind_the_unmeasured(self) -> None:
        """Have the layers that no trial has reached refuse to be called at another scale."""
        for handle in self._waiting:
            handle.remove()
        late = [layer for layer in self.layers if not self.gauges.keys() <= layer.degrees.keys()]
        self._waiting = []
        for layer in late:
            hook = Watch(torch.compiler.disable(functools.partial(self._refuse, layer)))
            self._waiting.append(layer.module.register_forward_pre_hook(hook, with_kwargs=True))

    def _refuse(self, layer: NormLayer, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Raise ValueError where the layer would compute something else than in the run with weight decay."""
        moved = any(is_moved(gauge.state()) for gauge in self.gauges.values())
        if moved and not CoScaling.trying and module is layer.module and input_norm(args, kwargs) != 0.0:
            raise ValueError(
                f"norm layer {layer.name!r} must take part in a forward pass before the first step, so that its scale "
                "can be measured, got its first call now: call the model once in a way that reaches it (in eval mode?)"
            )

    def _target(self, layer: NormLayer) -> float:
        """The factor of the layer's input relative to the run with weight decay."""
        return math.prod(self.gauges[i].x ** -degree for i, degree in layer.degrees.items())

    def settle(self) -> None:
        """Give every layer the eps of the gauges' scales; running statistics have them already."""
        for layer in self.layers:
            if any(layer.degrees.values()):
                layer.scale = self._target(layer)
                layer.set_eps(layer.scale)

    def update(self) -> None:
        """Move eps and running statistics of every layer to the present scales of the gauges."""
        for layer in self.layers:
            if (ratio := self._target(layer) / layer.scale) != 1.0:
                layer.scale_statistics(ratio)
        self.settle()

    def state(self) -> dict[str, Any] | None:
        """The degrees of each layer that follows, in the order of the groups; None before the trial."""
        rows = {layer.name: [layer.degrees.get(i, 0) for i in self.gauges] for layer in self.layers}
        tried = self.known and any(gauge.verified for gauge in self.gauges.values())
        return {"degrees": {name: row for name, row in rows.items() if any(row)}} if tried else None


def _delegates(module: nn.Module) -> bool:
    """Whether it only calls the module inside, which may be called without it, too."""
    return isinstance(module, nn.parallel.DistributedDataParallel) or hasattr(module, "_orig_mod")


def _hides(param: Tensor) -> bool:
    sizes = [float(part.abs().max()) for part in parts([param]) if part.numel()]
    return param.is_floating_point() and max(sizes, default=1.0) < HIDES


def _redraw(tensor: Tensor, seed: int) -> None:
    """Other values, of natural size, whatever the state of torch's generators."""
    for part in parts([tensor]):
        generator = torch.Generator().manual_seed(seed)
        part.copy_(0.5 * torch.randn(part.shape, generator=generator))
