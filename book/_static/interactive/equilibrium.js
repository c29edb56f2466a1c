// Norm, angle and effective rate of a normalized net after learning rate and weight decay were changed.
(function (normcore) {
  "use strict";
  const forms = normcore.closedForms, { number, panel, sheet } = normcore.draw;
  const POINTS = 160;

  function compute({ lr, decay, momentum, gradient, ratioLr, ratioDecay }) {
    for (const ratio of [ratioLr, ratioDecay]) {
      if (!(ratio > 0 && ratio < Infinity)) throw new RangeError("the factors must be numbers > 0");
    }
    const before = forms.equilibrium(lr, decay, momentum, gradient);
    const after = forms.equilibrium(lr * ratioLr, decay * ratioDecay, momentum, gradient);
    const far = Math.log1p(Math.abs(ratioDecay / ratioLr - 1));  // e-folds that a far start adds
    const span = (4 + far) * after.relaxationSteps, start = -span / 6;
    const at = (t) => forms.transient(t, ratioLr, ratioDecay, lr, decay, momentum, gradient);
    const times = Array.from({ length: POINTS + 1 }, (_, i) => (span * i) / POINTS);
    return { before, after, now: at(0), start, span, curve: times.map((t) => [t, at(t)]) };
  }

  const QUANTITIES = [
    ["norm", "norm of the weights"], ["effectiveLr", "effective rate"], ["angle", "angle a step, rad"],
  ];

  function drawing(canvas, state) {
    const label = "Norm, effective rate and angle per step against the step, before and after the change.";
    const { svg, boxes } = sheet(canvas, label, 3, 270);
    QUANTITIES.forEach(([key, title], i) => {
      const points = state.curve.map(([t, values]) => [t, Math.log10(values[key])]);
      const before = Math.log10(state.before[key]), after = Math.log10(state.after[key]);
      const all = [before, after, ...points.map(([, y]) => y)];
      const low = Math.min(...all), high = Math.max(...all), pad = Math.max(0.12 * (high - low), 0.15);
      const plot = panel(svg, boxes[i], {
        x: { min: state.start, max: state.span, label: "step" },
        y: { min: low - pad, max: high + pad, log: true, label: title },
      });
      plot.line([[0, low - pad], [0, high + pad]], "guide");
      plot.label(0, low - pad, "change", "guide", { dx: 4, dy: -5 });
      plot.line([[state.start, before], [0, before], ...points], "decay");
      plot.line([[0, after], [state.span, after]], "theory");
      const room = points.at(-1)[1] < after + 1e-9 && points[POINTS / 2][1] < after;
      plot.label(state.span, after, "new equilibrium", "theory", { anchor: "end", dx: -2, dy: room ? -8 : 17 });
    });
  }

  function read({ before, now, after }) {
    const told = QUANTITIES.map(([key, title]) => [
      title, `${number(before[key])} → ${number(after[key])}`,
      `${number(now[key])} right after the change`,
    ]);
    const constant = "steps: the time constant of the norm's fourth power";
    return [...told, ["1/(4 × intrinsic rate)", number(after.relaxationSteps), constant]];
  }

  normcore.figure({
    name: "equilibrium",
    label: "Settings before the change, and the change",
    controls: [
      { name: "lr", label: "learning rate", value: 0.1, min: 0.001, max: 10, scale: "log" },
      { name: "decay", label: "weight decay", value: 5e-4, min: 1e-6, max: 0.1, scale: "log" },
      { name: "momentum", label: "momentum", value: 0.9, min: 0, max: 0.99, scale: "nines" },
      { name: "gradient", label: "squared gradient S", value: 1, min: 0.01, max: 100, scale: "log" },
      { name: "ratioLr", label: "then the rate times", value: 0.1, min: 0.01, max: 100, scale: "log" },
      { name: "ratioDecay", label: "and the decay times", value: 1, min: 0.01, max: 100, scale: "log" },
    ],
    compute, draw: drawing, read,
  });
})(window.normcore);
