// The plane of momentum and lr × weight decay: where the exponential rate exists, and how fast it grows.
(function (normcore) {
  "use strict";
  const forms = normcore.closedForms, { number, decimal, panel, sheet } = normcore.draw;
  const FACTORS = [1.01, 1.1, 2, 10, 1e3, 1e9, 1e27];
  const NINES = Array.from({ length: 301 }, (_, i) => i / 100);
  const momentumAt = (nines) => 1 - 10 ** -nines;

  function compute({ lr, decay, momentum, steps }) {
    if (!(steps >= 1)) throw new RangeError("steps in an epoch must be a number ≥ 1");
    const product = lr * decay, critical = forms.criticalProduct(momentum);
    if (!(product > 0)) throw new RangeError("rate and decay must be numbers > 0");
    const exists = product <= critical;
    const growth = exists ? forms.logGrowth(lr, decay, momentum, steps) : NaN;
    const alpha = exists ? forms.growthFactor(lr, decay, momentum) : NaN;
    return { product, critical, momentum, steps, exists, growth, alpha, kappa: decay / (alpha - momentum) };
  }

  function drawing(canvas, state) {
    const label = "Contours of the growth per epoch in the plane of momentum and lr times weight decay.";
    const { svg, boxes: [box] } = sheet(canvas, label, 1, 420);
    const own = [-Math.log10(1 - state.momentum), Math.log10(state.product)];
    const low = Math.min(-7, Math.floor(own[1])), high = Math.max(0.5, own[1] + 0.3);
    const right = Math.max(3, own[0] + 0.1);
    const plot = panel(svg, box, {
      x: { min: 0, max: right, label: "momentum",
        ticks: [[0, "0"], [Math.log10(2), "0.5"], [1, "0.9"], [2, "0.99"], [3, "0.999"]] },
      y: { min: low, max: high, log: true, label: "lr × weight decay" },
    });
    const line = NINES.concat(right).map((x) => [x, Math.log10(forms.criticalProduct(momentumAt(x)))]);
    plot.area([...line, [right, high], [0, high]], "beyond");
    for (const factor of FACTORS) {
      const points = NINES.map((x) => [x, Math.log10(forms.productOfGrowth(factor, state.steps, momentumAt(x)))])
        .filter(([, y]) => !Number.isNaN(y));  // there alpha would be the smaller root
      if (points.length < 2 || points[0][1] > -0.15 || points[0][1] < low + 0.1) continue;
      plot.line(points, "exponential thin");
      const [x, y] = points[0];
      plot.label(x, y, `× ${decimal(Math.log10(factor))}`, "exponential", { dx: 5, dy: -5 });
    }
    plot.line(line, "theory");
    plot.label(right, high, "complex roots: no constant growth", "theory bare", { anchor: "end", dx: -8, dy: 20 });
    plot.line([[own[0], low], [own[0], own[1]], [0, own[1]]], "guide");
    plot.dot(...own, "decay", 6);
    const side = own[0] > 0.7 * right ? { anchor: "end", dx: -11 } : { dx: 11 };
    plot.label(...own, "your values", "decay", { ...side, dy: 4 });
  }

  function read({ product, critical, steps, exists, growth, alpha, kappa }) {
    const share = `${number(100 * product / critical)} % of the critical point`;
    const given = [["lr × weight decay", decimal(Math.log10(product)), share],
      ["critical point", decimal(Math.log10(critical)), "(1 − √momentum)²"]];
    if (!exists) {
      return [["growth an epoch", "–", "no real root: nc.equivalent_schedule corrects the buffer as it goes"],
        ...given, ["root α", "–"]];
    }
    const doubling = `doubles in ${number((Math.LN2 / growth) * steps)} steps`;
    return [["growth an epoch", `× ${decimal(growth / Math.LN10, 5)}`, doubling],
      ...given, ["root α", number(alpha, 8), `buffer starts at −${number(kappa)} × the weights`]];
  }

  normcore.figure({
    name: "plane",
    label: "Your own values",
    controls: [
      { name: "lr", label: "learning rate", value: 0.1, min: 0.001, max: 10, scale: "log" },
      { name: "decay", label: "weight decay", value: 5e-4, min: 1e-6, max: 1, scale: "log" },
      { name: "momentum", label: "momentum", value: 0.9, min: 0, max: 0.999, scale: "nines" },
      { name: "steps", label: "steps in an epoch", value: 391, min: 1, max: 100000, scale: "count" },
    ],
    compute, draw: drawing, read,
  });
})(window.normcore);
