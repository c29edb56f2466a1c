"""Time the curvature tools against other packages, where these can be imported: `python benchmarks/curvature_peers.py`.

Install them in an environment of their own (curvlinops-for-pytorch, pyhessian, hessian-eigenthings) beside this project.
"""

import copy
import importlib.util
from collections.abc import Callable

import torch
from curvature import mlp, ratios, resnet8, seconds, show
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from normcore.hessian import hessian_top_eigenvalue
from normcore.hessian_operator import HessianOperator
from normcore.ntk import ntk_top_eigenvalue


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


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if importlib.util.find_spec("curvlinops"):  # the slow part
        compare_ntk("MLP 784-512-512-10, 128 inputs", mlp(), torch.randn(128, 784), 3)
        compare_ntk(
            "ResNet-8 (GroupNorm), 64 images",
            resnet8(lambda c: nn.GroupNorm(4, c)),
            torch.randn(64, 3, 32, 32),
            2,
        )
    if importlib.util.find_spec("pyhessian"):
        compare_sharpness()
