"""Plant named faults one at a time in a scratch copy, run the tests, and print which test caught each: `make
bite`.

A fault is (name, file in normcore, text, replacement, tests to run). The replacement must change exactly one
place, so that a fault that no longer applies is an error and not a silent pass.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
EQUIVALENCE = "test_equivalence.py test_theorems.py test_gauge.py"
EXP_LR = "test_exp_lr.py test_group_gauge.py test_norm_scaling.py"
INVARIANCE = "test_evaluation.py test_homogeneity.py test_invariance.py"
FAULTS = [
    (
        "exponent wrong by one",
        "equivalence.py",
        "degree * scale[:-1] - scale[1:]",
        "degree * scale[:-1] - scale[:-1]",
        EQUIVALENCE,
    ),
    (
        "the other root",
        "gauge.py",
        "product + math.sqrt(discriminant)",
        "product - math.sqrt(discriminant)",
        EQUIVALENCE,
    ),
    (
        "forgotten correction",
        "equivalence.py",
        "corrections[t] = (ratio - target)",
        "corrections[t] = 0.0 * (ratio - target)",
        EQUIVALENCE,
    ),
    (
        "initial buffer forgotten",
        "equivalence.py",
        'if start == "stationary" and not',
        'if start == "moving" and not',
        EQUIVALENCE,
    ),
    ("dampening ignored", "gauge.py", "(1.0 - dampening) * weight_decay\n", "weight_decay\n", EQUIVALENCE),
    (
        "nesterov's gain inverted",
        "gauge.py",
        "kept * alpha / gain**2, gain",
        "kept * alpha * gain**2, gain",
        EQUIVALENCE,
    ),
    (
        "decoupled buffer keeps its size",
        "gauge.py",
        "momentum, 1.0, 1.0 - decrease",
        "momentum, 1.0, 1.0",
        EQUIVALENCE,
    ),
    (
        "TEXP-- keeps its weight decay",
        "theorems.py",
        "decays * rates / rates[0], np",
        "decays, np",
        EQUIVALENCE,
    ),
    (
        "buffer shift has the wrong sign",
        "wd_free_run.py",
        "- ratio * theta)",
        "+ ratio * theta)",
        EQUIVALENCE,
    ),
    ("no gauge reset", "gauge.py", "return 0.5 * math.sqrt", "return 0.0 * math.sqrt", EQUIVALENCE),
    ("eps not co-scaled", "norm_scaling.py", "eps * scale**2", "eps", EXP_LR),
    (
        "running variance scaled once",
        "norm_scaling.py",
        "variance.mul_(ratio**2)",
        "variance.mul_(ratio)",
        EXP_LR,
    ),
    (
        "buffer not converted at detach",
        "group_gauge.py",
        "if self.ratio != 0.0:\n            held",
        "if False:\n            held",
        EXP_LR,
    ),
    ("rebase by 2 where 4 is due", "group_gauge.py", '"exp_avg_sq": 2', '"exp_avg_sq": 1', EXP_LR),
    (
        "a skipped step advances",
        "exp_lr.py",
        "self._skipped = found_inf is not None and bool(found_inf.item())",
        "self._skipped = False",
        EXP_LR,
    ),
    ("the group is not given back", "group_gauge.py", "self.group.update(self._saved)", "pass", EXP_LR),
    ("AdamW's eps not scaled", "group_gauge.py", 'group["eps"] * self.x', 'group["eps"]', EXP_LR),
    (
        "a parameter without gradient drifts",
        "group_gauge.py",
        "multiply(params, 1.0 / alpha)",
        "pass",
        EXP_LR,
    ),
    ("kappa missing from the saved state", "group_gauge.py", '"ratio": self.ratio,', '"ratio": 0.0,', EXP_LR),
    (
        "rebase forgets the weights",
        "group_gauge.py",
        'multiply(self.group["params"], 1.0 / factor)',
        "pass",
        EXP_LR,
    ),
    (
        "a zero gradient counts",
        "invariance.py",
        "if math.isnan(cosine) or math.isnan(largest)",
        "if math.isnan(largest)",
        INVARIANCE,
    ),
    (
        "tested where it stands only",
        "invariance.py",
        "_verdict(c, here[n], there[n])",
        "_verdict(c, here[n], here[n])",
        INVARIANCE,
    ),
    (
        "tested in eval mode",
        "invariance.py",
        "untouched(model, train=True)",
        "untouched(model, train=False)",
        INVARIANCE,
    ),
    ("gradients are not given back", "evaluation.py", "parameter.grad = grad", "pass", INVARIANCE),
    (
        "momentum forgotten",
        "rates.py",
        "lr * weight_decay / (1.0 - momentum)",
        "lr * weight_decay",
        "test_rates.py",
    ),
    (
        "equilibrium of the continuum",
        "equilibrium.py",
        "(2 * (1 + memory) - h))) ** 0.5",
        "(2 * (1 + memory)))) ** 0.5",
        "test_equilibrium.py",
    ),
    ("rho without the chord", "balance.py", "(2 - chord) * norm_sq", "2 * norm_sq", "test_balance.py"),
    (
        "P and Q swapped",
        "catapult.py",
        "p, q = (1.0 - r) ** 2 * p",
        "p, q = (1.0 + r) ** 2 * p",
        "test_catapult.py",
    ),
    (
        "near-edge sign",
        "catapult_laws.py",
        "2 - delta - 2 * delta**2 / 3)",
        "2 - delta + 2 * delta**2 / 3)",
        "test_catapult_laws.py",
    ),
    (
        "a damaged checkpoint is trusted",
        "lab/checkpoints.py",
        "if hashlib.sha256(body).digest() != digest:",
        "if False:",
        "test_lab_checkpoints.py",
    ),
    (
        "generators are not restored",
        "lab/resume.py",
        'torch.set_rng_state(states["cpu"])',
        "pass",
        "test_lab_resume.py",
    ),
    (
        "a foreign run is continued",
        "lab/checkpoints.py",
        "if different:",
        "if False:",
        "test_lab_checkpoints.py",
    ),
    (
        "decay by a fixed amount",
        "lab/train_stack.py",
        "w.mul_(1 - lr * weight_decay)",
        "w.mul_(1 - weight_decay)",
        "test_lab_train_stack.py",
    ),
    ("kernel not over m", "lab/wide.py", "m * classes) / m", "m * classes)", "test_lab_wide.py"),
    ("loss not halved", "lab/descend.py", "(2 * output.shape[1])", "output.shape[1]", "test_lab_descend.py"),
    ("the pull along the valley", "lab/valley.py", "keep * y + pull * x", "keep * y", "test_lab_valley.py"),
]


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
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-q",
            "-p",
            "no:cacheprovider",
            *(f"tests/{test}" for test in tests.split()),
        ]
        environment = {**os.environ, "PYTHONPATH": folder, "OMP_NUM_THREADS": "1"}
        output = subprocess.run(
            command, cwd=scratch, env=environment, capture_output=True, text=True, check=False
        ).stdout
    caught = re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
    return caught and caught[1]


def main() -> None:
    """Print a line a fault; exit 1 if one gets through."""
    missed = 0
    for fault in FAULTS:
        test = catch(*fault)
        missed += test is None
        print(f"{'caught' if test else 'MISSED':7} {fault[0]:40} {test or ''}", flush=True)
    print(f"{len(FAULTS) - missed} of {len(FAULTS)} faults caught")
    sys.exit(missed > 0)


if __name__ == "__main__":
    main()
