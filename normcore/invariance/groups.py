"""Parameter groups for any torch optimizer, tagged by scale invariance."""

from typing import Any

from torch import nn

from normcore.invariance.report import InvarianceReport


def param_groups(model: nn.Module, report: InvarianceReport, **options: Any) -> list[dict[str, Any]]:
    """Make parameter groups: tensors invariant alone, each group invariant jointly, and the rest.

    Inert tensors, such as biases in front of a BatchNorm, go with the first. Joint groups of gains and shifts
    alone (a BatchNorm in front of another) stay with the rest: nobody decays them, and eval mode tells them apart.

    Args:
        model: the model of the report.
        report: from `scale_invariance`.
        **options: hyper-parameters to put into every group (lr, weight_decay, momentum, ...).

    Returns:
        Dicts with "params", "name" and "scale_invariant" (True for all but the last), every trainable
        parameter in exactly one; empty groups are left out.

    Raises:
        ValueError: the report is of another model.

    Example:
        >>> import torch
        >>> from normcore.invariance.report import scale_invariance
        >>> net = nn.Sequential(nn.Linear(4, 8, bias=False), nn.LayerNorm(8), nn.Linear(8, 2))
        >>> batch = torch.randn(16, 4), torch.randint(2, (16,))
        >>> report = scale_invariance(net, nn.functional.cross_entropy, batch)
        >>> [(g["name"], g["scale_invariant"], len(g["params"])) for g in param_groups(net, report, lr=0.1)]
        [('scale_invariant', True, 1), ('rest', False, 4)]

    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if set(parameters) != set(report.tensors):
        odd = sorted(set(parameters) ^ set(report.tensors))
        raise ValueError(f"report must be of this model, got one that differs in {odd}")
    # an inert bias in front of a norm must keep the scale of its weight, or their sum would have none
    alone = [*report.invariant, *report.inert] if report.invariant else []
    sets = {"scale_invariant": alone}
    taken = set(alone)
    for name, verdict in report.groups.items():
        has_matrix = any(parameters[n].dim() > 1 for n in verdict.names)
        if verdict.verdict == "yes" and has_matrix and not taken & set(verdict.names):
            sets[name] = list(verdict.names)
            taken |= set(verdict.names)
    groups: list[dict[str, Any]] = [
        _group(name, True, [parameters[n] for n in names], options) for name, names in sets.items()
    ]
    groups.append(_group("rest", False, [p for name, p in parameters.items() if name not in taken], options))
    return [group for group in groups if group["params"]]


def _group(name: str, invariant: bool, params: list[Any], options: dict[str, Any]) -> dict[str, Any]:
    return {"params": params, "name": name, "scale_invariant": invariant, **options}
