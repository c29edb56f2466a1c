"""Time the curvature tools against other packages, where these can be imported: `python benchmarks/curvature_peers.py`.

Install them in an environment of their own (curvlinops-for-pytorch, pyhessian, hessian-eigenthings) beside this project.
neural-tangents needs a second one, with an old jax: `--neural-tangents PYTHON` names its interpreter, which runs
`neural_tangents_worker.py` on the same weights, in turn with ours.
"""

import argparse
import copy
import importlib.util
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from curvature import mlp, ratios, resnet8, seconds, show
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from normcore.curvature.hessian import hessian_top_eigenvalue
from normcore.curvature.hessian_operator import HessianOperator
from normcore.curvature.ntk import ntk_top_eigenvalue


def by_curvlinops(model: nn.Module, x: Tensor, outputs: int = 10) -> float:
    """The NTK's top eigenvalue as that of the generalised Gauss-Newton matrix of nn.MSELoss, times K/2."""
    from curvlinops import GGNLinearOperator

    parameters = [p for p in model.parameters() if p.requires_grad]
    data = [(x, torch.zeros(len(x), outputs))]
    operator = GGNLinearOperator(model, nn.MSELoss(), parameters, data, check_deterministic=False)
    scipy_operator = operator.to_scipy()
    return float(eigsh(scipy_operator, k=1, which="LA", tol=1e-4, return_eigenvectors=False)[0]) * outputs / 2


def by_pyhessian(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """The sharpness by power iteration; it puts the model into eval mode."""
    from pyhessian import hessian

    return float(
        hessian(model, nn.CrossEntropyLoss(), data=(x, y), cuda=False).eigenvalues(maxIter=100, tol=1e-4)[0][
            0
        ]
    )


def compare_ntk(name: str, model: nn.Module, x: Tensor, repeats: int) -> None:
    """The same eigenvalue, both ways."""
    theirs, ours = by_curvlinops(model, x), ntk_top_eigenvalue(model, x).value
    print(f"{name}: relative difference {abs(theirs / ours - 1):.1e}")
    fast: Callable[[], object] = lambda: ntk_top_eigenvalue(model, x)  # noqa: E731
    show("  curvlinops GGN + eigsh / this", ratios(lambda: by_curvlinops(model, x), fast, repeats))


def compare_sharpness() -> None:
    """BatchNorm in train mode, double precision."""
    torch.manual_seed(0)
    model = resnet8(nn.BatchNorm2d).double()
    x, y = torch.randn(16, 3, 16, 16).double(), torch.randint(10, (16,))
    ours = hessian_top_eigenvalue(model, cross_entropy, (x, y), tol=1e-4)
    differences = HessianOperator(model, cross_entropy, (x, y), "finite_difference")
    quotient = float(ours.vector @ (differences @ ours.vector))
    print(
        f"sharpness in train mode: this {ours.value:.6f}, first-order differences {quotient:.6f} "
        f"(their error {differences.error:.0e})"
    )
    their_model = copy.deepcopy(model)
    theirs = by_pyhessian(their_model, x, y)
    print(
        f"  pyhessian {theirs:.6f}; it left the model in {'train' if their_model.training else 'eval'} mode"
    )
    their_seconds = seconds(lambda: by_pyhessian(their_model, x, y))
    our_seconds = seconds(lambda: hessian_top_eigenvalue(model, cross_entropy, (x, y), tol=1e-4))
    print(f"  {their_seconds:.2f} s, this {our_seconds:.2f} s")


def compare_products(repeats: int) -> None:
    """One Hessian product of hessian-eigenthings against one of ours, GroupNorm, and what it does to a BatchNorm."""
    from hessian_eigenthings import HessianOperator as Theirs

    x, y = torch.randn(64, 3, 32, 32), torch.randint(10, (64,))

    def theirs_of(model: nn.Module, method: str) -> object:
        return Theirs(model, [(x, y)], lambda m, batch: cross_entropy(m(batch[0]), batch[1]), method=method)

    model = resnet8(lambda c: nn.GroupNorm(4, c))
    vector = hessian_top_eigenvalue(model, cross_entropy, (x, y)).vector
    exact = HessianOperator(model, cross_entropy, (x, y), "jvp_grad") @ vector
    for method, name in (("autograd", "double_backward"), ("finite_difference", "finite_difference")):
        ours, theirs = HessianOperator(model, cross_entropy, (x, y), name), theirs_of(model, method)
        off = [float((p - exact).norm() / exact.norm()) for p in (theirs.matvec(vector), ours @ vector)]
        pairs = ratios(lambda t=theirs: t.matvec(vector), lambda o=ours: o @ vector, repeats)
        show(f"  hessian-eigenthings {method} product / this", pairs)
        print(
            f"    errors on the top eigenvector: {off[0]:.0e}, this {off[1]:.0e} (estimated {ours.error:.0e})"
        )
    batch_norm = resnet8(nn.BatchNorm2d)
    before = {n: b.clone() for n, b in batch_norm.named_buffers()}
    theirs_of(batch_norm, "autograd").matvec(torch.randn(sum(p.numel() for p in batch_norm.parameters())))
    moved = sum(not torch.equal(b, before[n]) for n, b in batch_norm.named_buffers())
    print(
        f"  it moves {moved} of {len(before)} buffers of a net with BatchNorm by one product; this moves none"
    )


def compare_neural_tangents(python: str, repeats: int) -> None:
    """The structured kernel of the MLP and its top eigenvalue, in turn."""
    model, x = mlp(), torch.randn(128, 784)
    layers = [m for m in model if isinstance(m, nn.Linear)]
    named = {f"w{i}": m.weight for i, m in enumerate(layers)} | {
        f"b{i}": m.bias for i, m in enumerate(layers)
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "net.npz"
        np.savez(file, x=x.numpy(), **{name: p.detach().numpy() for name, p in named.items()})
        script = str(Path(__file__).with_name("neural_tangents_worker.py"))
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        with subprocess.Popen([python, script, str(file)], text=True, **pipes) as worker:
            worker.stdout.readline()

            def ask() -> tuple[float, float]:
                worker.stdin.write("again\n")
                worker.stdin.flush()
                took, value = map(float, worker.stdout.readline().split())
                return took, value

            ours = ntk_top_eigenvalue(model, x)
            print(f"neural-tangents: relative difference {abs(ask()[1] / ours.value - 1):.1e}")
            pairs = [(ask()[0], seconds(lambda: ntk_top_eigenvalue(model, x))) for _ in range(repeats)]
            worker.stdin.close()
    show("  structured kernel and eigsh, compiled before / this", pairs)


def main() -> None:
    """Print what can be compared here."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--neural-tangents", metavar="PYTHON", help="interpreter of its environment")
    python = parser.parse_args().neural_tangents
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if python:
        compare_neural_tangents(python, 9)
    if importlib.util.find_spec("hessian_eigenthings"):
        compare_products(5)
    if importlib.util.find_spec("curvlinops"):  # the slow part
        compare_ntk("MLP 784-512-512-10, 128 inputs", mlp(), torch.randn(128, 784), 5)
        group_norm = resnet8(lambda c: nn.GroupNorm(4, c))
        compare_ntk("ResNet-8 (GroupNorm), 64 images", group_norm, torch.randn(64, 3, 32, 32), 2)
    if importlib.util.find_spec("pyhessian"):
        compare_sharpness()


if __name__ == "__main__":
    main()
