// The closed forms behind the interactive figures: those of normcore, with which tests/test_interactive.py compares
// them. A classic script, since a page opened from a file may not import: `normcore.closedForms`, in node a module.
(function (home) {
  "use strict";

  function require(holds, message) {
    if (!holds) throw new RangeError(message);
  }

  // From these values on a number is infinite once it is rounded to the format.
  const LIMITS = { float32: (2 - 2 ** -24) * 2 ** 127, bfloat16: (2 - 2 ** -8) * 2 ** 127 };

  // ---- Part I: weight decay as an exponential rate

  function criticalProduct(momentum) {
    require(momentum >= 0 && momentum < 1, "momentum must be in [0, 1)");
    return (1 - Math.sqrt(momentum)) ** 2;
  }

  // 1 - alpha, alpha the larger root of x^2 - (1 + momentum - lr wd) x + momentum (normcore.growth_factor).
  function shrinking(lr, weightDecay, momentum) {
    const product = lr * weightDecay, critical = criticalProduct(momentum);
    require(lr > 0 && lr < Infinity, "the learning rate must be a number > 0");
    require(weightDecay >= 0 && weightDecay < Infinity, "weight decay must be a number ≥ 0");
    require(product <= critical,
      "Beyond the critical point lr × weight decay = (1 − √momentum)² no constant growth exists: " +
      "the roots are complex. Lower the rate, the decay or the momentum.");
    const discriminant = (critical - product) * ((1 + Math.sqrt(momentum)) ** 2 - product);
    return 2 * product / (1 - momentum + product + Math.sqrt(discriminant));
  }

  const growthFactor = (lr, weightDecay, momentum) => 1 - shrinking(lr, weightDecay, momentum);

  // ln of the factor by which the exponential rate grows in so many steps: alpha^(-2 steps).
  const logGrowth = (lr, weightDecay, momentum, steps) =>
    -2 * steps * Math.log1p(-shrinking(lr, weightDecay, momentum));

  // The phases of TEXP (normcore.texp) for [[lr, steps], ...]; the last may have Infinity steps.
  function texp(phases, weightDecay, momentum) {
    let start = 0, logScale = 0;
    return phases.map(([lr, steps]) => {
      require(steps >= 1, "each phase must have a step");
      const logAlpha = Math.log1p(-shrinking(lr, weightDecay, momentum));
      const phase = { start, end: start + steps, lr, logAlpha, logScale };
      [start, logScale] = [start + steps, logScale + steps * logAlpha];
      return phase;
    });
  }

  // ln lr~_t = ln lr_t - ln x_t - ln x_{t+1} within a phase, in which x shrinks by alpha a step.
  const logRateIn = (phase, t) =>
    Math.log(phase.lr) - 2 * (phase.logScale + (t - phase.start) * phase.logAlpha) - phase.logAlpha;

  const logRate = (schedule, t) => logRateIn(schedule.find((phase) => t < phase.end), t);

  // The first step whose rate reaches the limit; Infinity where none does.
  function firstBeyond(schedule, limit) {
    for (const phase of schedule) {
      const left = Math.log(limit) - logRateIn(phase, phase.start);
      const step = left <= 0 ? phase.start : phase.start + Math.ceil(left / (-2 * phase.logAlpha));
      if (step < phase.end) return step;
    }
    return Infinity;
  }

  // The product lr wd at which the rate grows by a factor in so many steps: (1-alpha)(1-momentum/alpha);
  // NaN where that alpha would be the smaller root.
  function productOfGrowth(factor, steps, momentum) {
    const logAlpha = -Math.log(factor) / (2 * steps), alpha = Math.exp(logAlpha);
    return momentum <= alpha * alpha ? -Math.expm1(logAlpha) * (1 - momentum / alpha) : NaN;
  }

  // ---- Part II: the equilibrium of norm, effective rate and angle (normcore.equilibrium, "sgd")

  function equilibrium(lr, weightDecay, momentum, gradSqNorm = 1) {
    require(momentum >= 0 && momentum < 1, "momentum must be in [0, 1)");
    require(lr > 0 && lr < Infinity, "the learning rate must be a number > 0");
    require(weightDecay > 0 && weightDecay < Infinity, "weight decay must be a number > 0");
    require(gradSqNorm > 0 && gradSqNorm < Infinity, "the squared gradient must be a number > 0");
    const h = lr * weightDecay, m = momentum;
    require(h < 1 + m, "lr × weight decay must be below 1 + momentum: beyond, a step turns the weights right round.");
    const square = Math.sqrt(lr * gradSqNorm * (1 + m) / (weightDecay * (1 - m) * (2 * (1 + m) - h)));
    return {
      norm: Math.sqrt(square),
      effectiveLr: lr / (1 - m) / square,
      angle: 2 * Math.asin(Math.sqrt(h / (1 + m) / 2)),
      relaxationSteps: (1 - m) / (4 * h),
    };
  }

  // e(t)/e_before after lr is multiplied by r and weight decay by q (normcore.relaxation).
  function relaxation(t, r, q, lr, weightDecay, momentum) {
    if (t < 0) return 1;
    const x = 4 * lr * weightDecay / (1 - momentum) * t * r * q;
    return (Math.exp(-x) / r ** 2 - Math.expm1(-x) / (r * q)) ** -0.5;
  }

  // Norm, effective rate and angle t steps after the change; the tangent of the angle goes with the effective rate.
  function transient(t, r, q, lr, weightDecay, momentum, gradSqNorm = 1) {
    const before = equilibrium(lr, weightDecay, momentum, gradSqNorm);
    if (t < 0) return before;
    const after = equilibrium(lr * r, weightDecay * q, momentum, gradSqNorm);
    const ratio = relaxation(t, r, q, lr, weightDecay, momentum);
    return {
      norm: before.norm * Math.sqrt(r / ratio),
      effectiveLr: before.effectiveLr * ratio,
      angle: Math.atan(Math.tan(after.angle) * ratio / Math.sqrt(r * q)),
    };
  }

  // ---- Part III: the catapult in two numbers (normcore.catapult.simulate with label 0 and input 1)

  const SEPARATE = 1e-3;  // as in normcore.catapult: below it the output has its own recursion

  function catapult(output, curvature, lr, width, steps) {
    require(lr > 0 && lr < Infinity, "the rate must be a number > 0");
    require(width >= 1 && width < Infinity, "the width must be a number ≥ 1");
    const a = lr * curvature, perOutput = lr / Math.sqrt(width), s = perOutput * output;
    require(2 * Math.abs(s) <= a * (1 + 1e-12), "no weights have this output and curvature");
    let p = Math.max(a / 2 + s, 0), q = Math.max(a / 2 - s, 0), r = perOutput * output;
    const outputs = [output], curvatures = [a];
    for (let t = 1; t <= steps; t++) {
      const next = (1 - (p + q) + r * r) * r;
      p = (1 - r) * (1 - r) * p;
      q = (1 + r) * (1 + r) * q;
      const split = (p - q) / 2;
      r = Math.abs(split) > SEPARATE * (p + q) ? split : next;
      if (!Number.isFinite(r) || !Number.isFinite(p + q)) p = q = r = Infinity;
      outputs.push(r / perOutput);
      curvatures.push(p + q);
    }
    const rises = a > 2 + s * s && s !== 0;
    const phase = s === 0 ? "lazy" : a >= 4 ? "divergent" : rises ? "catapult" : "lazy";
    return { outputs, curvatures, phase };  // curvatures are eta lambda_t
  }

  // Steps of the flight, ln n / (2 ln(a - 1)) (normcore.catapult.duration).
  const duration = (a, width) => Math.log(width) / (2 * Math.log(a - 1));

  // eta lambda at the end of a catapult just above 2 (normcore.catapult.final_curvature).
  const finalCurvature = (a) => 2 - (a - 2) - 2 * (a - 2) ** 2 / 3;

  const forms = {
    LIMITS, criticalProduct, growthFactor, logGrowth, texp, logRate, logRateIn, firstBeyond, productOfGrowth,
    equilibrium, relaxation, transient, catapult, duration, finalCurvature,
  };
  if (typeof module !== "undefined") module.exports = forms;
  else home.closedForms = forms;
})(typeof window === "undefined" ? {} : (window.normcore = window.normcore || {}));
