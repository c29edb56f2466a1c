"""A model as a function of its trainable parameters, fixed at one moment: no call touches the model.

Parameters and buffers are copied; work is done on the copies, in the modes the modules are in, so that batch
statistics, running statistics, gradients and random state of the model stay as they are.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from normcore.checks import checked_count, require_module, require_type
from normcore.curvature.operator import default_tolerance

EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)

Result = TypeVar("Result")


class Snapshot:
    """Holds leaf copies of the trainable parameters; `run` works with the model at any values of them."""

    def __init__(self, model: nn.Module, seed: int = 0) -> None:
        require_module(model)
        self.model, self.seed = model, checked_count("seed", seed, least=0)
        named, buffers = dict(model.named_parameters()), dict(model.named_buffers())
        self.leaves = {n: p.detach().clone().requires_grad_() for n, p in named.items() if p.requires_grad}
        if not any(p.numel() for p in self.leaves.values()):
            raise ValueError("model must have a trainable parameter, got none with requires_grad=True")
        self._fixed = {n: p.detach().clone() for n, p in named.items() if not p.requires_grad}
        self._buffers = {n: b.detach().clone() for n, b in buffers.items()}
        # a tied one has one name, many places
        first = {id(t): n for n, t in [*named.items(), *buffers.items()]}
        stores: list[Any] = [store for m in model.modules() for store in (m._parameters, m._buffers)]
        self._places = [(s, key, first[id(t)]) for s in stores for key, t in s.items() if t is not None]
        kinds = {(p.dtype, p.device) for p in self.leaves.values()}
        if len(kinds) > 1 or not next(iter(kinds))[0].is_floating_point:
            raise ValueError(
                f"trainable parameters must share one real dtype and device, got {sorted(map(str, kinds))}"
            )
        self.dtype, self.device = next(iter(kinds))
        self.size = sum(p.numel() for p in self.leaves.values())
        owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
        embeddings = [(n, m) for n, m in model.named_modules() if isinstance(m, EMBEDDINGS)]
        if any(m.sparse and m.weight.requires_grad for _, m in embeddings):
            raise ValueError(
                "model must not have an Embedding with sparse=True: its gradients have no derivatives"
            )
        alone = [(n, m) for n, m in embeddings if owners[id(m.weight)] == 1]
        own = [(f"{n}.weight".lstrip("."), m.padding_idx) for n, m in alone]
        self._padded = [(name, row) for name, row in own if row is not None and name in self.leaves]

    @property
    def tensors(self) -> list[Tensor]:
        """The leaves, in the order of `named_parameters`."""
        return list(self.leaves.values())

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Within this context random draws repeat and are given back, and attention can be derived twice."""
        cuda = [self.device] if self.device.type == "cuda" else []
        exact = full_precision() if cuda else nullcontext()
        with torch.random.fork_rng(devices=cuda), sdpa_kernel(SDPBackend.MATH), torch.enable_grad(), exact:
            torch.default_generator.manual_seed(self.seed)  # torch.manual_seed would seed every GPU's as well
            for device in cuda:
                torch.cuda.default_generators[device.index or 0].manual_seed(self.seed)
            yield

    def run(self, work: Callable[[nn.Module], Result], values: Mapping[str, Tensor] | None = None) -> Result:
        """work(model) while the model holds the leaves, or other values of them, and its buffers as they were.

        Derivatives belong inside: under activation checkpointing the backward pass runs parts of the model again,
        with whatever it holds at that moment.
        """
        held = {**self._fixed, **{n: b.clone() for n, b in self._buffers.items()}, **(values or self.leaves)}
        kept = [(store, key, store[key]) for store, key, _ in self._places]
        with self.quiet():
            try:
                for store, key, name in self._places:
                    store[key] = held[name]
                return work(self.model)
            finally:
                for store, key, tensor in kept:
                    store[key] = tensor

    def call(self, inputs: Any, values: Mapping[str, Tensor] | None = None) -> Any:
        """The model's output, without a graph."""
        return self.run(torch.no_grad()(lambda model: model(inputs)), values)

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """A flat vector in the shapes of the parameters, by name."""
        pieces = flat.to(self.device, self.dtype).split([p.numel() for p in self.tensors])
        return {n: v.view_as(p) for (n, p), v in zip(self.leaves.items(), pieces, strict=True)}

    def nearby(self) -> dict[str, Tensor]:
        """Other values of the leaves, about a tenth of a weight away in random directions."""
        flat = flatten(self.tensors).detach()
        generator = torch.Generator().manual_seed(self.seed)
        draw = torch.randn(self.size, generator=generator, dtype=torch.float64).to(flat)
        return self.named(flat + 0.1 * (flat.abs().mean() or 1.0) * draw)

    def without_padding(self, flat: Tensor) -> Tensor:
        """The vector with 0 on the padding rows of embeddings, which torch's gradients treat as constants."""
        flat = flat.clone() if self._padded else flat
        for name, row in self._padded:
            self.named(flat)[name][row] = 0.0
        return flat

    def chunks(self, x: Any, chunk_size: int) -> list[Tensor]:
        """The inputs in chunks, after checking that samples do not interact in the model."""
        checked_count("chunk_size", chunk_size)
        require_type("x", x, Tensor, "one tensor, a row a sample, when chunk_size is given")
        if any(uses_batch_statistics(m) for m in self.model.modules()):
            raise ValueError(
                f"chunk_size must be None while a BatchNorm uses batch statistics, got {chunk_size}"
            )
        chunks = list(x.split(chunk_size))
        if len(chunks) > 1:
            ends = chunks[0], chunks[-1]
            apart = [self.call(end) for end in ends]
            joint = self.call(torch.cat(ends))
            require_type("model's output", joint, Tensor, "one tensor when chunk_size is given")
            tol = default_tolerance(self.dtype)
            same = [len(out) == len(end) for out, end in zip(apart, ends, strict=True)]
            alike = all(same) and torch.allclose(torch.cat(apart), joint, tol, tol * float(joint.abs().max()))
            if not alike:
                raise ValueError(f"samples must not interact when chunk_size={chunk_size}, got some that do")
        return chunks


def uses_batch_statistics(module: nn.Module) -> bool:
    """Whether a module does so in its present mode."""
    norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
    return norm and (module.training or module.running_mean is None)


@contextmanager
def full_precision() -> Iterator[None]:
    """Within this context float32 is not rounded to TF32 on CUDA: that moves a curvature by 0.2 percent, unseen.

    No residual shows it: it belongs to the products as they are computed.
    """
    backends: Any = torch.backends
    matmul, cudnn = backends.cuda.matmul, backends.cudnn
    new = hasattr(cudnn, "conv")  # since torch 2.9, where it is an error to ask in both ways
    name, exact = ("fp32_precision", "ieee") if new else ("allow_tf32", False)
    places = (matmul, cudnn.conv, cudnn.rnn) if new else (matmul, cudnn)
    kept = [(place, getattr(place, name)) for place in places]
    try:
        for place, _ in kept:
            setattr(place, name, exact)
        yield
    finally:
        for place, value in kept:
            setattr(place, name, value)


def flatten(tensors: Any) -> Tensor:
    """The tensors as one vector."""
    return torch.cat([t.reshape(-1) for t in tensors])


def grad(outputs: Any, inputs: list[Tensor], grad_outputs: Any = None, **options: Any) -> tuple[Tensor, ...]:
    """torch.autograd.grad with zeros for inputs without effect."""
    return torch.autograd.grad(outputs, inputs, grad_outputs, materialize_grads=True, **options)


def derivable_once(tensors: Iterable[Tensor]) -> bool:
    """Whether a part of these gradients cannot be derived again.

    autograd.grad goes around the error that torch plants behind a once_differentiable function, and gives 0 there.
    """
    ahead: list[Any] = [t.grad_fn for t in tensors if t.grad_fn is not None]
    seen = set(ahead)
    while ahead:
        node = ahead.pop()
        if node.name().endswith("Error"):
            return True
        fresh = {f for f, _ in node.next_functions if f is not None} - seen
        seen |= fresh
        ahead.extend(fresh)
    return False
