"""Plant named faults one at a time in a scratch copy, run the tests, and print which test caught each.

`make bite` plants all, `python tests/bite.py WORD ...` those with one of the words in their name or file. What was
caught stands in _build/bite and is not planted again while the fault, its file and its tests are the same.

A fault is (name, file in normcore, text, replacement, tests to run). The replacement must change exactly one
place, so that a fault that no longer applies is an error and not a silent pass.
"""

import hashlib
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import hypothesis  # noqa: F401  what every fault's tests import is imported once: they run in forks
import pytest
import scipy.stats  # noqa: F401
import torch

ROOT = Path(__file__).parent.parent
EQUIVALENCE = "equivalence/test_schedule.py equivalence/test_theorems.py equivalence/test_gauge.py"
EXP_LR = "equivalence/test_optimizer.py equivalence/test_group_gauge.py equivalence/test_norm_layers.py"
PRACTICE = "equivalence/test_practice.py::"
INVARIANCE = "invariance/test_probing.py invariance/test_degrees.py invariance/test_report.py"
SYMMETRIES = "invariance/test_symmetries.py"
FAULTS = [
    (
        "exponent wrong by one",
        "equivalence/schedule.py",
        "degree * scale[:-1] - scale[1:]",
        "degree * scale[:-1] - scale[:-1]",
        EQUIVALENCE,
    ),
    (
        "the other root",
        "equivalence/gauge.py",
        "product + math.sqrt(discriminant)",
        "product - math.sqrt(discriminant)",
        EQUIVALENCE,
    ),
    (
        "forgotten correction",
        "equivalence/schedule.py",
        "corrections[t] = (ratio - target)",
        "corrections[t] = 0.0 * (ratio - target)",
        EQUIVALENCE,
    ),
    (
        "initial buffer forgotten",
        "equivalence/schedule.py",
        'if start == "stationary" and not',
        'if start == "moving" and not',
        EQUIVALENCE,
    ),
    (
        "dampening ignored",
        "equivalence/gauge.py",
        "(1.0 - dampening) * weight_decay\n",
        "weight_decay\n",
        EQUIVALENCE,
    ),
    (
        "nesterov's gain inverted",
        "equivalence/gauge.py",
        "kept * alpha / gain**2, gain",
        "kept * alpha * gain**2, gain",
        EQUIVALENCE,
    ),
    (
        "decoupled buffer keeps its size",
        "equivalence/gauge.py",
        "momentum, 1.0, 1.0 - decrease",
        "momentum, 1.0, 1.0",
        EQUIVALENCE,
    ),
    (
        "TEXP-- keeps its weight decay",
        "equivalence/theorems.py",
        "decays * rates / rates[0], np",
        "decays, np",
        EQUIVALENCE,
    ),
    (
        "buffer shift has the wrong sign",
        "equivalence/schedule.py",
        "- ratio * theta)",
        "+ ratio * theta)",
        EQUIVALENCE,
    ),
    (
        "no gauge reset",
        "equivalence/gauge.py",
        "return 0.5 * math.sqrt",
        "return 0.0 * math.sqrt",
        EQUIVALENCE,
    ),
    ("eps not co-scaled", "equivalence/norm_layers.py", "* ratio**self.power", "", EXP_LR),
    (
        "running variance scaled once",
        "equivalence/norm_layers.py",
        "values.mul_(ratio**degree)",
        "values.mul_(ratio)",
        EXP_LR,
    ),
    (
        "buffer not converted at detach",
        "equivalence/group_gauge.py",
        "self._shift(self.ratio * self.x**2)",
        "pass",
        EXP_LR,
    ),
    (
        "rebase by 2 where 4 is due",
        "equivalence/group_gauge.py",
        '"exp_avg_sq": 2',
        '"exp_avg_sq": 1',
        EXP_LR,
    ),
    (
        "a skipped step advances",
        "equivalence/optimizer.py",
        "skipped = found_inf is not None and bool(found_inf.item())",
        "skipped = False",
        EXP_LR,
    ),
    (
        "the group is not given back",
        "equivalence/group_gauge.py",
        "self.group.update(self._saved)",
        "pass",
        EXP_LR,
    ),
    (
        "AdamW at the rate of SGD",
        "equivalence/group_gauge.py",
        "product = x_next if rule.decoupled else self.x * x_next",
        "product = self.x * x_next",
        EXP_LR,
    ),
    (
        "a parameter without gradient drifts",
        "equivalence/group_gauge.py",
        "multiply(params, 1.0 / alpha)",
        "pass",
        EXP_LR,
    ),
    (
        "kappa missing from the saved state",
        "equivalence/group_gauge.py",
        '"ratio": self.ratio,',
        '"ratio": 0.0,',
        EXP_LR,
    ),
    (
        "rebase forgets the weights",
        "equivalence/group_gauge.py",
        'multiply(self.group["params"], 1.0 / factor)',
        "pass",
        EXP_LR,
    ),
    (
        "gradients arrive as they are",
        "equivalence/group_gauge.py",
        "return grad / self.x",
        "return grad",
        PRACTICE + "test_gradients_are_ordinary_for_whoever_looks",
    ),
    (
        "the trial's verdict is not heard",
        "equivalence/co_scaling.py",
        "if gap > max(allowed, 10 * noise if noise < HIDES else 0.0):",
        "if False:",
        PRACTICE + "test_what_does_not_follow_is_refused_at_the_first_forward_pass",
    ),
    (
        "a fresh bias hides in the trial",
        "equivalence/co_scaling.py",
        "if param.requires_grad and _hides(param):",
        "if False:",
        PRACTICE + "test_a_fresh_bias_outside_the_group_is_refused_though_it_is_zero",
    ),
    (
        "the eps of half precision is guessed",
        "equivalence/norm_layers.py",
        "torch.promote_types(z.dtype, torch.float32)",
        "z.dtype",
        PRACTICE + "test_rms_norm_in_half_precision_keeps_its_function",
    ),
    (
        "a layer's own weights keep their eps",
        "equivalence/norm_layers.py",
        "else [(2, 0.5), (1, 0.5)]",
        "else []",
        PRACTICE + "test_weights_that_a_layer_standardises",
    ),
    (
        "a step without its argument",
        "lab/training/loop.py",
        "    if needed:\n",
        "    if False:\n",
        "lab/training/test_loop.py",
    ),
    (
        "sets of long rows are searched on all tokens",
        "invariance/report.py",
        "joint_groups(evaluate.on_short_rows(), free, seed)",
        "joint_groups(evaluate, free, seed)",
        SYMMETRIES,
    ),
    (
        "attached twice",
        "equivalence/optimizer.py",
        'if any(id(p) in GAUGE_OF for p in group["params"]):',
        "if False:",
        PRACTICE + "test_attaching_twice_is_refused",
    ),
    (
        "a step that raised is not undone",
        "equivalence/step_hooks.py",
        "self.undo()\n                raise",
        "raise",
        PRACTICE + "test_a_step_that_raises_leaves_nothing_changed",
    ),
    (
        "half a state is taken",
        "equivalence/optimizer.py",
        "if mixed and any(map(is_moved, before.values())):",
        "if False:",
        PRACTICE + "test_half_a_state_is_refused",
    ),
    (
        "an average of converted weights",
        "equivalence/optimizer.py",
        "        self._to_weight_decay()\n        try:",
        "        try:",
        PRACTICE + "test_averages_of_weights_and_the_run_beside_them",
    ),
    (
        "what has no effect counts as invariant",
        "invariance/report.py",
        "if effect <= self.floor:",
        "if effect < 0.0:",
        INVARIANCE,
    ),
    (
        "eps that matters is not told",
        "invariance/report.py",
        '"yes but for eps" if blurred',
        '"yes" if blurred',
        INVARIANCE,
    ),
    (
        "tested where it stands only",
        "invariance/report.py",
        "points = evaluate.nearby(names, seed)",
        "points = 2 * ({name: t.detach().clone() for name, t in evaluate.tensors.items()},)",
        INVARIANCE,
    ),
    (
        "tested in eval mode",
        "invariance/degrees.py",
        "untouched(model, train=True)",
        "untouched(model, train=False)",
        INVARIANCE,
    ),
    (
        "tied weights come apart",
        "invariance/probing.py",
        "if p not in twins:",
        "if True:",
        INVARIANCE,
    ),
    (
        "a state that is no buffer goes unnoticed",
        "invariance/probing.py",
        "if change > bound and self.distance({}, base) > bound:",
        "if False:",
        INVARIANCE,
    ),
    (
        "a literal eps stays",
        "invariance/degrees.py",
        'bound.arguments["eps"] = NO_EPS',
        "pass",
        SYMMETRIES,
    ),
    (
        "one point for all equations",
        "invariance/symmetries.py",
        "min(count, max(1, sum(output.numel() for output in live) // 2))",
        "99",
        SYMMETRIES,
    ),
    (
        "a symmetry is not verified",
        "invariance/symmetries.py",
        "if _verified(evaluate, a, rows, base, floor)",
        "if True",
        SYMMETRIES,
    ),
    (
        "embeddings decay",
        "invariance/report.py",
        'NO_DECAY = ("elementwise", "table")',
        'NO_DECAY = ("elementwise",)',
        "invariance/test_groups.py",
    ),
    ("gradients are not given back", "invariance/probing.py", "parameter.grad = grad", "pass", INVARIANCE),
    (
        "momentum forgotten",
        "norm_dynamics/rates.py",
        "lr * weight_decay / (1.0 - momentum)",
        "lr * weight_decay",
        "norm_dynamics/test_rates.py",
    ),
    (
        "equilibrium of the continuum",
        "norm_dynamics/equilibrium.py",
        "(2 * (1 + m) - h))) ** 0.5",
        "(2 * (1 + m)))) ** 0.5",
        "norm_dynamics/test_equilibrium.py",
    ),
    (
        "rho without the chord",
        "norm_dynamics/readings.py",
        "(2 - chord) * norm_sq",
        "2 * norm_sq",
        "norm_dynamics/test_balance.py",
    ),
    (
        "a step counts for each of its hooks",
        "equivalence/step_hooks.py",
        "if self.depth == 0:",
        "if True:",
        "norm_dynamics/test_monitor.py",
    ),
    (
        "a run that diverged spoils its means",
        "norm_dynamics/readings.py",
        "values.isfinite().all(dim=1)",
        "turn.isfinite()",
        "norm_dynamics/test_readings.py",
    ),
    (
        "every chunk counts by its length",
        "curvature/hessian_operator.py",
        "total += share * part(",
        "total += len(x) / sum(len(a) for _, a, _ in self._chunks) * part(",
        "curvature/test_hessian.py",
    ),
    (
        "one copy of a multiple eigenvalue",
        "curvature/operator.py",
        "row.copy_(result.vector.flatten())",
        "row.zero_()",
        "curvature/test_lanczos.py",
    ),
    (
        "P and Q swapped",
        "catapult/warm_up.py",
        "p, q = (1.0 - r) ** 2 * p",
        "p, q = (1.0 + r) ** 2 * p",
        "catapult/test_warm_up.py",
    ),
    (
        "near-edge sign",
        "catapult/warm_up.py",
        "2 - delta - 2 * delta**2 / 3)",
        "2 - delta + 2 * delta**2 / 3)",
        "catapult/test_laws.py",
    ),
    (
        "a damaged checkpoint is trusted",
        "lab/training/checkpoint.py",
        "if hashlib.sha256(content).digest() != digest:",
        "if False:",
        "lab/training/test_checkpoint.py",
    ),
    (
        "generators are not restored",
        "lab/training/checkpoint.py",
        'torch.set_rng_state(state["generators"]["cpu"])',
        "pass",
        "lab/training/test_resume.py",
    ),
    (
        "a foreign run is continued",
        "lab/training/checkpoint.py",
        "if different:",
        "if False:",
        "lab/training/test_resume.py",
    ),
    (
        "a diverged run keeps its readings",
        "lab/training/probes.py",
        "values[step >= end] = np.nan",
        "pass",
        "lab/training/test_history.py",
    ),
    (
        "a GPU is waited for at every step",
        "lab/training/probes.py",
        'if loss.device.type == "cpu":',
        "if True:",
        "lab/training/test_history.py",
    ),
    (
        "closures of one source are one experiment",
        "lab/training/checkpoint.py",
        "thing.__kwdefaults__, held",
        "thing.__kwdefaults__",
        "lab/training/test_checkpoint.py",
    ),
    (
        "two writers of one file do not wait",
        "experiments/stored.py",
        "fcntl.flock(handle, fcntl.LOCK_EX)",
        "pass",
        "experiments/test_stored.py",
    ),
    (
        "decay by a fixed amount",
        "lab/stacks/descend.py",
        "kept = 1 - lr * weight_decay",
        "kept = 1 - weight_decay",
        "lab/stacks/test_descend.py",
    ),
    (
        "kernel not over m",
        "lab/stacks/stack.py",
        "m * classes) / m",
        "m * classes)",
        "lab/stacks/test_stack.py",
    ),
    (
        "loss not halved",
        "lab/stacks/descend.py",
        "(2 * output.shape[1])",
        "output.shape[1]",
        "lab/stacks/test_stack.py",
    ),
    (
        "a lost run moves on",
        "lab/stacks/descend.py",
        "torch.where(moves, g, 0.0)",
        "g",
        "lab/stacks/test_descend.py",
    ),
    (
        "rates on the processor",
        "lab/stacks/descend.py",
        "dtype=weight.dtype, device=weight.device",
        "dtype=weight.dtype",
        "test_device.py",
    ),
    (
        "an image for each run, or the same for all",
        "lab/stacks/stack.py",
        "common_fits and own_fits and runs > 1",
        "False",
        "lab/stacks/test_stack.py",
    ),
    (
        "a negative weight decay is refused",
        "lab/training/loop.py",
        '"weight_decay": {},',
        '"weight_decay": {"least": 0.0},',
        "lab/training/test_pairs.py",
    ),
    (
        "the pull along the valley",
        "lab/toys.py",
        "keep * y + pull * x",
        "keep * y",
        "lab/toys/test_valley.py",
    ),
]


def _run_tests(scratch: Path, report: Path, tests: list[str]) -> None:
    """Run the tests against a scratch copy in this process, which ends with them."""
    out = os.open(report, os.O_WRONLY | os.O_CREAT)
    os.dup2(out, 1), os.dup2(out, 2)
    os.chdir(scratch)
    os.environ["PYTHONPATH"] = str(scratch)
    sys.path.insert(0, str(scratch))
    code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests])
    sys.stdout.flush()
    os._exit(int(code))


def catch(name: str, file: str, old: str, new: str, tests: str) -> str | None:
    """The first test that fails with the fault planted, or None."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        for part in ("normcore", "tests"):
            shutil.copytree(ROOT / part, scratch / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", scratch)
        source = (scratch / "normcore" / file).read_text()
        if source.count(old) != 1:
            raise SystemExit(
                f"fault {name!r}: {old!r} must stand once in {file}, found {source.count(old)} times"
            )
        (scratch / "normcore" / file).write_text(source.replace(old, new))
        report = scratch / "report"
        if (child := os.fork()) == 0:
            _run_tests(scratch, report, [f"tests/{test}" for test in tests.split()])
        os.waitpid(child, 0)
        output = report.read_text()
    caught = re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
    return caught and caught[1]


def remembered(fault: tuple[str, str, str, str, str]) -> Path:
    """Where the test that caught a fault is written down: a name made of the fault, its file and its tests."""
    files = [ROOT / "normcore" / fault[1], *(ROOT / "tests" / t.split("::")[0] for t in fault[4].split())]
    digest = hashlib.sha256("\0".join((*fault, *(file.read_text() for file in files))).encode())
    return ROOT / "_build" / "bite" / digest.hexdigest()[:16]


def main(words: list[str]) -> None:
    """Print a line a fault; exit 1 if one gets through."""
    chosen = [fault for fault in FAULTS if not words or any(w in f"{fault[0]} {fault[1]}" for w in words)]
    missed = 0
    torch.set_num_threads(1)
    for fault in chosen:
        note = remembered(fault)
        test = note.read_text() if note.exists() else catch(*fault)
        if test:
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(test)
        missed += test is None
        print(f"{'caught' if test else 'MISSED':7} {fault[0]:40} {test or ''}", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} faults caught")
    sys.exit(missed > 0 or not chosen)


if __name__ == "__main__":
    main(sys.argv[1:])
