// The exponential rate that equals Step Decay with weight decay: how fast it grows, and where floats end it.
(function (normcore) {
  "use strict";
  const forms = normcore.closedForms, { number, decimal, panel, sheet } = normcore.draw;
  const LN10 = Math.log(10);

  function compute({ lr, decay, momentum, steps, drop, first, second, epochs }) {
    if (!Number.isInteger(steps) || steps < 1) throw new RangeError("steps in an epoch must be a whole number ≥ 1");
    for (const value of [first, second, epochs]) {
      if (!Number.isInteger(value) || value < 1) throw new RangeError("epochs must be whole numbers ≥ 1");
    }
    if (!(drop >= 1)) throw new RangeError("the rate must be divided by a number ≥ 1");
    const drops = [...new Set([first, second])].sort((a, b) => a - b).filter((epoch) => epoch < epochs);
    const starts = [0, ...drops], ends = [...drops, Infinity];
    const phases = starts.map((start, i) => [lr / drop ** i, (ends[i] - start) * steps]);
    const schedule = forms.texp(phases, decay, momentum);
    return {
      schedule, steps, epochs,
      float32: forms.firstBeyond(schedule, forms.LIMITS.float32),
      bfloat16: forms.firstBeyond(schedule, forms.LIMITS.bfloat16),
      growth: phases.map(([rate]) => forms.logGrowth(rate, decay, momentum, steps)),
      product: lr * decay,
      critical: forms.criticalProduct(momentum),
    };
  }

  function corners({ schedule, steps, epochs }, log) {
    return schedule.flatMap((phase) => {
      const end = Math.min(phase.end, epochs * steps);
      return [[phase.start / steps, log(phase, phase.start)], [end / steps, log(phase, end)]];
    });
  }

  function drawing(canvas, state) {
    const label = "Learning rate against epoch, with and without weight decay.";
    const { svg, boxes: [box] } = sheet(canvas, label, 1, 380);
    const rate = corners(state, (phase, t) => forms.logRateIn(phase, t) / LN10);
    const decayed = corners(state, (phase) => Math.log10(phase.lr));
    const top = Math.max(...rate.map(([, y]) => y)), bottom = Math.min(...decayed.map(([, y]) => y));
    const limit = Math.log10(forms.LIMITS.float32), room = Math.max(top - bottom, 1);
    const reached = limit < top + 0.3 * room;
    const plot = panel(svg, box, {
      x: { min: 0, max: state.epochs, label: "epoch" },
      y: { min: bottom - 0.08 * room, max: Math.max(top, reached ? limit : top) + 0.12 * room, log: true,
        label: "learning rate" },
    });
    if (reached) {
      plot.line([[0, limit], [state.epochs, limit]], "theory");
      plot.label(0, limit, "largest float32", "theory", { dx: 8, dy: -6 });
    }
    plot.line(decayed, "decay");
    plot.line(rate, "exponential dashed");
    const end = state.float32 / state.steps;
    if (end < state.epochs) plot.dot(end, limit, "theory", 5);
    const [[x0, y0], [x, y]] = rate.slice(-2), place = { anchor: "end", dx: -4, dy: -9 };
    plot.label(x, decayed.at(-1)[1], "with weight decay", "decay", place);
    const steep = plot.py(y0) - plot.py(y) > 0.4 * (plot.px(x) - plot.px(x0));
    if (steep) plot.label((x + x0) / 2, (y + y0) / 2, "without", "exponential", { anchor: "end", dx: -12 });
    else plot.label(x, y, "without weight decay", "exponential", place);
  }

  function ending({ float32, bfloat16, steps, epochs }) {
    if (float32 === Infinity) return ["never", "the rate does not grow"];
    const epoch = Math.floor(float32 / steps) + 1, late = epoch > epochs ? ", after the run" : "";
    return [number(float32), `in epoch ${number(epoch)}${late}; bfloat16 in step ${number(bfloat16)}`];
  }

  function read(state) {
    const last = state.epochs * state.steps - 1;
    const [first, ...later] = state.growth.map((growth) => `×\u00a0${decimal(growth / LN10, 5)}`);
    return [
      ["rate in the last step", decimal(forms.logRate(state.schedule, last) / LN10), "without weight decay"],
      ["growth an epoch", first, later.map((growth) => `then ${growth}`).join(", ")],
      ["lr × weight decay", decimal(Math.log10(state.product)),
        `${number(100 * state.product / state.critical)} % of the critical ${number(state.critical)}`],
      ["it leaves float32 in step", ...ending(state)],
    ];
  }

  normcore.figure({
    name: "schedule",
    label: "Settings of the schedule",
    controls: [
      { name: "lr", label: "learning rate", value: 0.1, min: 0.001, max: 10, scale: "log" },
      { name: "decay", label: "weight decay", value: 5e-4, min: 1e-6, max: 0.1, scale: "log" },
      { name: "momentum", label: "momentum", value: 0.9, min: 0, max: 0.999, scale: "nines" },
      { name: "steps", label: "steps in an epoch", value: 391, min: 1, max: 100000, scale: "count" },
      { name: "drop", label: "divide the rate by", value: 10, min: 1, max: 100, scale: "log" },
      { name: "first", label: "after epoch", value: 80, min: 1, max: 1000, scale: "count" },
      { name: "second", label: "and after epoch", value: 120, min: 1, max: 1000, scale: "count" },
      { name: "epochs", label: "epochs in all", value: 300, min: 1, max: 1000, scale: "count" },
    ],
    compute, draw: drawing, read,
  });
})(window.normcore);
