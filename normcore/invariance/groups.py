"""Parameter groups for any torch optimizer, tagged by scale invariance."""

from collections.abc import Collection
from typing import Any

from torch import nn

from normcore.checks import require_type
from normcore.invariance.probing import checked_parameters
from normcore.invariance.report import InvarianceReport

OWN = ("params", "name", "scale_invariant")
NO_DECAY = ("elementwise", "table")


def param_groups(
    model: nn.Module, report: InvarianceReport, *, no_decay: bool | Collection[str] = False, **options: Any
) -> list[dict[str, Any]]:
    """Make parameter groups: tensors invariant alone, each group invariant jointly, and the rest.

    Inert tensors go with the rest, but for a bias added to what an invariant weight of its own module makes: it goes
    with that weight, whose scale it must keep. Joint groups of gains and shifts alone (a BatchNorm in front
    of another) stay with the rest: nobody decays them, and eval mode tells them apart.

    Args:
        model: the model of the report.
        report: from `scale_invariance`.
        no_decay: True takes gains, shifts and biases, single tokens and embeddings out of every group into one without
            weight decay, by what they do (`TensorVerdict.role`) and not by their names; or only those of the
            roles named, "elementwise" or "table". A joint group that loses a member is no longer invariant, and
            not tagged.
        **options: hyper-parameters to put into every group (lr, weight_decay, momentum, ...).

    Returns:
        Dicts with "params", "name" and "scale_invariant" (True for all but "no_decay" and "rest"), every trainable
        parameter in exactly one; empty groups are left out.

    Raises:
        TypeError: model is not a module.
        ValueError: the report is of another model; an option that is computed here; no_decay names another role.

    Example:
        >>> import torch
        >>> from normcore.invariance.report import scale_invariance
        >>> net = nn.Sequential(nn.Linear(4, 8, bias=False), nn.LayerNorm(8), nn.Linear(8, 2))
        >>> batch = torch.randn(16, 4), torch.randint(2, (16,))
        >>> report = scale_invariance(net, nn.functional.cross_entropy, batch)
        >>> [(g["name"], g["scale_invariant"], len(g["params"])) for g in param_groups(net, report, lr=0.1)]
        [('scale_invariant', True, 1), ('rest', False, 4)]
        >>> groups = param_groups(net, report, no_decay=True, weight_decay=0.1)
        >>> [(g["name"], g["weight_decay"], len(g["params"])) for g in groups]
        [('scale_invariant', 0.1, 1), ('no_decay', 0.0, 3), ('rest', 0.1, 1)]

    """
    parameters = checked_parameters(model)
    require_type("report", report, InvarianceReport, "an InvarianceReport")
    require_type("no_decay", no_decay, bool | Collection, "a bool or roles")
    if set(parameters) != set(report.tensors):
        odd = sorted(set(parameters) ^ set(report.tensors))
        raise ValueError(f"report must be of this model, got one that differs in {odd}")
    if set(OWN) & set(options):
        raise ValueError(f"options must leave {', '.join(OWN)} alone, got {sorted(set(OWN) & set(options))}")
    roles = (NO_DECAY if no_decay else ()) if isinstance(no_decay, bool) else tuple(no_decay)
    if isinstance(no_decay, str) or not all(role in NO_DECAY for role in roles):
        raise ValueError(f"no_decay must be a bool or roles among {NO_DECAY}, got {no_decay!r}")
    bare = {name for name, verdict in report.tensors.items() if verdict.role in roles}
    # an invariant matrix that is standardised before it multiplies looks elementwise
    bare -= {n for n in report.invariant if report.tensors[n].role != "table" and parameters[n].dim() > 1}
    sets = {"scale_invariant": (set(report.invariant) | _shifts_of(model, report)) - bare}
    for name, verdict in report.groups.items():
        members = set(verdict.names)
        has_matrix = any(parameters[n].dim() > 1 for n in members)
        if verdict.verdict.startswith("yes") and has_matrix and not members & bare.union(*sets.values()):
            sets[name] = members
    sets |= {"no_decay": bare, "rest": set(parameters) - bare.union(*sets.values())}
    groups = [
        {
            "params": [p for name, p in parameters.items() if name in names],
            "name": key,
            "scale_invariant": key not in ("no_decay", "rest"),
            **options,
        }
        for key, names in sets.items()
        if names
    ]
    for group in groups:
        if group["name"] == "no_decay":
            group["weight_decay"] = 0.0
    return groups


def _shifts_of(model: nn.Module, report: InvarianceReport) -> set[str]:
    """The inert biases in modules that own an invariant weight: their sum must keep its scale."""
    names = {p: name for name, p in model.named_parameters()}
    owned = [{names[p] for p in module.parameters(recurse=False)} for module in model.modules()]
    return {name for own in owned if own & set(report.invariant) for name in own & set(report.inert)}
