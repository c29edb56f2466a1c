// The catapult in two numbers: the loss of gradient descent, and its path in the plane of curvature and output.
(function (normcore) {
  "use strict";
  const forms = normcore.closedForms, { number, decimal, panel, sheet, superscript } = normcore.draw;
  const OUTPUT = 1, CURVATURE = 2, MOST = 6000;  // at the start; steps

  function compute({ scaled, doublings }) {
    if (!(scaled > 0)) throw new RangeError("rate × curvature must be a number > 0");
    if (!(doublings >= 4 && doublings <= 60)) throw new RangeError("the width must be 2 to the power of 4 to 60");
    const width = 2 ** doublings, lr = scaled / CURVATURE;
    const run = forms.catapult(OUTPUT, CURVATURE, lr, width, MOST);
    const losses = run.outputs.map((f) => Math.log10(f * f / 2));
    const ceiling = losses[0] + Math.log10(width) + 6;
    const stop = losses.findIndex((loss) => loss < losses[0] - 14 || loss > ceiling);
    const shown = stop < 0 ? shorten(losses) : Math.max(stop, 12);
    const peak = losses.slice(0, shown + 1).reduce((best, loss, t) => (loss > losses[best] ? t : best), 0);
    return { ...run, losses, shown, peak, scaled, width, doublings, settled: stop > 0, lr };
  }

  // A run that crawls is shown for four times the steps to its peak.
  const shorten = (losses) => Math.min(MOST, 4 * losses.indexOf(Math.max(...losses)) + 200);

  function drawing(canvas, { losses, outputs, curvatures, shown, peak, lr, width, phase, scaled }) {
    const label = "The loss against the step, and the path of rate times curvature and scaled output.";
    const { svg, boxes: [left, right] } = sheet(canvas, label, 2, 350);
    const kind = { lazy: "control", catapult: "decay", divergent: "exponential" }[phase];
    const seen = losses.slice(0, shown + 1).map((y) => (y === -Infinity ? -400 : Math.min(y, 400)));
    const top = Math.max(...seen), low = Math.max(Math.min(...seen), losses[0] - 15);
    const time = panel(svg, left, {
      x: { min: 0, max: shown, label: "step", whole: true },
      y: { min: low, max: top + 0.12 * (top - low) + 0.5, log: true, label: "loss" },
    });
    time.line(seen.map((y, t) => [t, y]), kind);
    if (shown <= 80) seen.forEach((y, t) => time.dot(t, y, kind, 2.5));
    if (phase === "catapult") {
      time.dot(peak, losses[peak], kind, 5);
      const side = peak > shown / 2 ? { anchor: "end", dx: -10 } : { dx: 10 };
      time.label(peak, losses[peak], `peak, step ${number(peak)}`, kind, { ...side, dy: -4 });
    }
    const far = Math.max(5, Math.ceil(scaled + 0.5));
    const plane = panel(svg, right, {
      x: { min: 0, max: far, label: "rate × curvature" },
      y: { min: 0, max: far / 2, label: "scaled output, √z" },
    });
    for (const edge of [2, 4]) plane.line([[edge, 0], [edge, far / 2]], "guide");
    plane.line([[0, 0], [far, far / 2]], "theory");
    plane.label(2, far / 2, "2", "guide", { dx: 4, dy: 14 });
    plane.label(4, far / 2, "4", "guide", { dx: 4, dy: 14 });
    plane.label(0.4 * far, 0.2 * far, "no weights", "theory", { anchor: "end", dx: -8, dy: -4 });
    const scale = lr / Math.sqrt(width);
    const path = curvatures.slice(0, shown + 1).map((a, t) => [a, scale * Math.abs(outputs[t])])
      .filter(([a, z]) => a < 100 && z < 100);
    plane.line(path, `${kind} thin`);
    for (const [a, z] of path.length <= 300 ? path : []) {
      if (a < far && z < far / 2) plane.dot(a, z, kind, 2.5);
    }
    plane.dot(...path[0], kind, 5);
    plane.label(...path[0], "start", kind, { dx: 8, dy: -8 });
    if (phase !== "divergent") plane.dot(...path.at(-1), "theory", 5);
  }

  const WORDS = {
    lazy: "the loss never rises",
    catapult: "rises first, then converges flatter",
    divergent: "the curvature grows without end",
    edge: "the edge itself: bounded, and rounding decides",
  };

  function read({ phase, losses, peak, shown, curvatures, scaled, width, doublings, settled }) {
    const words = WORDS[scaled === 4 ? "edge" : phase], flies = phase === "catapult", ends = phase !== "divergent";
    const flight = `ln n / (2 ln(${number(scaled)} − 1)) = ${number(forms.duration(scaled, width))}`;
    const near = `expansion near 2: ${number(forms.finalCurvature(scaled))}`;
    const end = (flies && scaled < 2.4 ? near : "at most 2 where it converges") + (settled ? "" : "; it still moves");
    return [
      ["phase", phase, words],
      ["loss rises by", ends ? `× ${decimal(losses[peak] - losses[0])}` : "–", `width 2${superscript(doublings)}`],
      ["steps to the peak", flies ? number(peak) : "–", flies ? flight : ""],
      ["rate × curvature at the end", ends ? number(curvatures[shown], 4) : "–", ends ? end : ""],
    ];
  }

  normcore.figure({
    name: "catapult",
    label: "Rate and width of the model",
    controls: [
      { name: "scaled", label: "rate × curvature at the start", value: 2.8, min: 0.1, max: 4.6, step: 0.01 },
      { name: "doublings", label: "width, as a power of 2", value: 20, min: 4, max: 60, step: 1 },
    ],
    compute, draw: drawing, read,
  });
})(window.normcore);
