// Panels, controls and read-outs for the interactive figures: SVG by hand, no library, no request.
(function (normcore) {
  "use strict";
  const SVG = "http://www.w3.org/2000/svg";
  let count = 0;  // of ids

  function add(parent, name, attributes = {}, text = "") {
    const inSvg = name === "svg" || parent.namespaceURI === SVG;
    const node = inSvg ? document.createElementNS(SVG, name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text) node.textContent = text;
    parent.append(node);
    return node;
  }

  // ---- numbers as text

  const superscript = (n) => String(n).replace("-", "⁻").replace(/\d/g, (c) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[c]);

  // A number from its logarithm to base 10, which need not fit into a float.
  function decimal(log10, digits = 3) {
    if (log10 === -Infinity || (log10 > -3.5 && log10 < 5)) return number(10 ** log10, digits);
    const whole = Math.floor(log10);
    const [mantissa, carry] = (10 ** (log10 - whole)).toExponential(digits - 1).split("e").map(Number);
    return (mantissa === 1 ? "" : `${mantissa} · `) + `10${superscript(whole + carry)}`;
  }

  function number(value, digits = 3) {
    if (value === Infinity) return "∞";
    const size = Math.abs(value);
    if (size !== 0 && (size < 10 ** -3.5 || size >= 1e15)) return decimal(Math.log10(size), digits);
    const whole = size >= 10 ** (digits - 1);
    const text = whole ? Math.round(value).toLocaleString("en-US") : String(Number(value.toPrecision(digits)));
    return text.replace("-", "−");
  }

  // ---- axes

  // Round values between two ends; with `whole`, integers.
  function ticks(min, max, most, whole = false) {
    const raw = (max - min) / most, power = 10 ** Math.floor(Math.log10(raw));
    let step = power * [1, 2, 5, 10].find((c) => c * power >= raw * (1 - 1e-9));
    if (whole) step = Math.max(1, Math.round(step));
    const first = Math.ceil(min / step - 1e-9), last = Math.floor(max / step + 1e-9);
    return Array.from({ length: last - first + 1 }, (_, i) => (first + i) * step);
  }

  // The same on an axis of logarithms: decades, or 1, 2 and 5 times them, or the round values of a short axis.
  function decades(min, max, most) {
    if (max - min < 1) return ticks(10 ** min, 10 ** max, most).map(Math.log10);
    if (max - min > 2) return ticks(min, max, most, true);
    const tens = Array.from({ length: Math.ceil(max) - Math.floor(min) }, (_, k) => Math.floor(min) + k);
    return tens.flatMap((k) => [1, 2, 5].map((c) => k + Math.log10(c))).filter((v) => v >= min && v <= max);
  }

  function marks(axis, most) {
    if (axis.ticks) return axis.ticks;  // [value, text] pairs
    const values = axis.log ? decades(axis.min, axis.max, most) : ticks(axis.min, axis.max, most, axis.whole);
    return values.map((v) => [v, axis.log ? decimal(v, 2) : number(v)]);
  }

  // A panel in a box of pixels; axes {x, y} with min, max, label, and log (values are log10), whole or ticks.
  function panel(svg, box, axes) {
    const id = `nc-clip-${count++}`;
    add(add(svg, "clipPath", { id }), "rect", { x: box.x, y: box.y, width: box.w, height: box.h });
    const px = (x) => box.x + ((x - axes.x.min) / (axes.x.max - axes.x.min)) * box.w;
    const py = (y) => box.y + box.h - ((y - axes.y.min) / (axes.y.max - axes.y.min)) * box.h;
    const right = box.x + box.w, bottom = box.y + box.h;
    for (const [v, text] of marks(axes.y, box.h / 30)) {
      add(svg, "line", { class: "grid", x1: box.x, x2: right, y1: py(v), y2: py(v) });
      add(svg, "text", { class: "tick", x: box.x - 7, y: py(v) + 4, "text-anchor": "end" }, text);
    }
    for (const [v, text] of marks(axes.x, Math.max(2, box.w / 64))) {
      add(svg, "line", { class: "grid", x1: px(v), x2: px(v), y1: box.y, y2: bottom });
      add(svg, "text", { class: "tick", x: px(v), y: bottom + 17, "text-anchor": "middle" }, text);
    }
    add(svg, "path", { class: "frame", d: `M${box.x} ${box.y}V${bottom}H${right}` });
    add(svg, "text", { class: "title", x: box.x, y: box.y - 11 }, axes.y.label);
    add(svg, "text", { class: "title", x: right, y: bottom + 35, "text-anchor": "end" }, axes.x.label);
    const inside = add(svg, "g", { "clip-path": `url(#${id})` });
    const path = (points) => "M" + points.map(([x, y]) => `${px(x).toFixed(2)} ${py(y).toFixed(2)}`).join("L");
    return {
      px, py, box,
      line: (points, kind) => add(inside, "path", { class: `line ${kind}`, d: path(points) }),
      area: (points, kind) => add(inside, "path", { class: `area ${kind}`, d: path(points) + "Z" }),
      dot: (x, y, kind, r) => add(svg, "circle", { class: `dot ${kind}`, cx: px(x), cy: py(y), r }),
      label: (x, y, text, kind, { anchor = "start", dx = 0, dy = 0 } = {}) =>
        add(svg, "text", { class: `label ${kind}`, x: px(x) + dx, y: py(y) + dy, "text-anchor": anchor }, text),
    };
  }

  // An svg as wide as its host, and boxes for panels: beside each other, or stacked where it is narrow.
  function sheet(host, label, panels, height) {
    const width = host.clientWidth, across = width / panels >= 205 ? panels : 1;
    const cell = width / across, tall = (height * panels) / across;
    const size = { viewBox: `0 0 ${width} ${tall}`, width, height: tall };
    const svg = add(host, "svg", { ...size, role: "img", "aria-label": label });
    const boxes = Array.from({ length: panels }, (_, i) => ({
      x: (i % across) * cell + 50, y: Math.floor(i / across) * height + 28, w: cell - 74, h: height - 74,
    }));
    return { svg, boxes };
  }

  // ---- controls: a number to type and a slider to drag, for one quantity

  const SCALES = {
    linear: { to: (v) => v, from: (s) => s },
    log: { to: Math.log10, from: (s) => Number((10 ** s).toPrecision(3)) },
    count: { to: Math.log10, from: (s) => Math.round(Number((10 ** s).toPrecision(3))) },
    nines: { to: (v) => -Math.log10(1 - v), from: (s) => Number((1 - (10 ** -s).toPrecision(2)).toFixed(6)) },
  };

  function control(form, spec, changed) {
    const scale = SCALES[spec.scale || "linear"], id = `nc-control-${count++}`;
    const box = add(form, "div", { class: "control" });
    add(box, "label", { for: id }, spec.label);
    const slider = add(box, "input", {
      type: "range", "aria-label": spec.label, "data-control": spec.name,
      min: scale.to(spec.min), max: scale.to(spec.max), step: spec.scale ? 0.01 : spec.step,
    });
    const step = spec.scale === "count" ? 1 : spec.step || "any";
    const field = add(box, "input", { id, type: "number", min: spec.min, max: spec.max, step });
    field.value = spec.value;
    const say = () => slider.setAttribute("aria-valuetext", field.value);
    const follow = () => {
      if (field.value !== "") slider.value = scale.to(Number(field.value));
      say();
    };
    field.addEventListener("input", () => { follow(); changed(); });
    slider.addEventListener("input", () => {
      const value = scale.from(Number(slider.value));
      field.value = value > 0 && value < 1e-3 ? value.toExponential() : value;  // as short as its field
      say();
      changed();
    });
    // A finger that begins on a slider and scrolls the page has moved it already, and the browser takes the finger away.
    let held;
    slider.addEventListener("pointerdown", () => { held = [slider.value, field.value]; });
    slider.addEventListener("pointercancel", () => { [slider.value, field.value] = held; say(); changed(); });
    follow();
    return () => (field.value === "" ? NaN : Number(field.value));
  }

  // ---- a figure: {name, label, controls, compute(values), draw(canvas, state), read(state)}

  function build(host, spec) {
    for (const child of [...host.children]) child.hidden = true;  // the text that stands there without scripts
    const form = add(host, "div", { class: "controls", role: "group", "aria-label": spec.label });
    const reads = spec.controls.map((one) => [one.name, control(form, one, update)]);
    const canvas = add(host, "div", { class: "canvas" });
    const told = add(host, "div", { class: "told", role: "status", "aria-live": "polite" });
    const warning = add(told, "p", { class: "warning" });
    const tiles = new Map();
    let width = 0;

    function tile(name) {
      const box = add(told, "div", { class: "tile" });
      add(box, "span", { class: "name" }, name);
      return { value: add(box, "span", { class: "value" }), note: add(box, "span", { class: "note" }) };
    }

    function update() {
      host.classList.remove("stale");
      warning.textContent = "";
      try {
        const state = spec.compute(Object.fromEntries(reads.map(([name, read]) => [name, read()])));
        canvas.replaceChildren();
        spec.draw(canvas, state);
        for (const [name, value, note = ""] of spec.read(state)) {
          if (!tiles.has(name)) tiles.set(name, tile(name));
          const shown = tiles.get(name);
          if (shown.value.textContent !== value) shown.value.textContent = value;
          if (shown.note.textContent !== note) shown.note.textContent = note;
        }
      } catch (error) {
        if (!(error instanceof RangeError)) throw error;
        host.classList.add("stale");
        warning.textContent = error.message;
      }
    }

    new ResizeObserver(() => {
      if (canvas.clientWidth !== width) {
        width = canvas.clientWidth;
        update();
      }
    }).observe(canvas);
    width = canvas.clientWidth;
    update();
  }

  normcore.figure = (spec) =>
    document.addEventListener("DOMContentLoaded", () => {
      for (const host of document.querySelectorAll(`[data-figure="${spec.name}"]`)) build(host, spec);
    });
  normcore.draw = { decimal, number, panel, sheet, superscript };
})((window.normcore = window.normcore || {}));
