// What a reader would stumble over on a page; `pages.py` calls look(width, medium) in the browser.

const THEME = ".search-button__kbd-shortcut, .theme-switch"; // its own: the hint of a key at 1.5 : 1, an icon without a name

const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d", { willReadFrequently: true });
const colours = new Map();

function rgba(text) {
  if (!colours.has(text)) {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = text;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    colours.set(text, [r, g, b, a / 255]);
  }
  return colours.get(text);
}

const over = ([r, g, b, a], below) => [r, g, b].map((part, i) => a * part + (1 - a) * below[i]).concat(1);

function luminance(colour) {
  const [r, g, b] = colour.slice(0, 3).map((part) => (part / 255 <= 0.04045 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

function contrast(one, other) {
  const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
}

function ground(element) {
  const layers = [];
  for (let one = element; one; one = one.parentElement) {
    layers.push(rgba(getComputedStyle(one).backgroundColor));
    if (layers.at(-1)[3] === 1) break;
  }
  return layers.reduceRight((below, layer) => over(layer, below), [255, 255, 255, 1]);
}

function opacity(element) {
  let product = 1;
  for (let one = element; one; one = one.parentElement) product *= getComputedStyle(one).opacity;
  return product;
}

function ratio(element) {
  const style = getComputedStyle(element), below = ground(element);
  const [r, g, b, a] = rgba(element.closest("svg") ? style.fill : style.color);
  return contrast(over([r, g, b, a * opacity(element)], below), below);
}

function needed(element) {
  const style = getComputedStyle(element), size = parseFloat(style.fontSize);
  return size >= 24 || (size >= 18.66 && style.fontWeight >= 700) ? 3 : 4.5;
}

function shown(element) {
  const box = element.getBoundingClientRect();
  return box.width > 1 && box.height > 1 && element.checkVisibility({ visibilityProperty: true });
}

function called(element) {
  return [element.tagName.toLowerCase(), ...element.classList].join(".") + (element.id ? `#${element.id}` : "");
}

/** What a screen reader can call an element. */
function names(element) {
  const drawn = [...element.querySelectorAll("img, svg")].map((one) => one.alt ?? one.ariaLabel);
  return [element.ariaLabel, element.title, element.placeholder, element.textContent, ...[...(element.labels ?? [])].map((one) => one.textContent), ...drawn];
}

/** Elements that hold text of their own; a formula is one. */
function texts() {
  const found = new Set(document.querySelectorAll("mjx-container"));
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const parent = walker.currentNode.parentElement;
    if (walker.currentNode.data.trim() && !parent.closest("script, style, noscript, mjx-container, select")) found.add(parent);
  }
  return [...found].filter(shown);
}

/** Opens what is folded, so that it is seen too, and folds it again. */
async function look(width, medium) {
  const folded = [...document.querySelectorAll("details:not([open])")], hidden = [...document.querySelectorAll(".toggle-hidden")];
  for (const one of folded) one.open = true;
  for (const one of hidden) one.classList.remove("toggle-hidden");
  await new Promise((done) => setTimeout(done, 150));
  const tall = document.documentElement.scrollHeight;
  const faults = looked(width, medium);
  for (const one of folded) one.open = false;
  for (const one of hidden) one.classList.add("toggle-hidden");
  return { faults, tall, title: document.title };
}

function looked(width, medium) {
  const faults = new Map();
  const tell = (kind, element, more = "") => {
    const key = `${kind}: ${called(element)}${more}`, words = element.textContent.trim().replace(/\s+/g, " ").slice(0, 40);
    const [count, first] = faults.get(key) ?? [0, words];
    faults.set(key, [count + 1, first]);
  };
  const style = (one) => getComputedStyle(one);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)].filter(shown);
  const wide = (one) => one.scrollWidth > one.clientWidth + 1;
  const article = document.querySelector("article") ?? document.querySelector("main") ?? document.body;
  const scrolling = (one) => ["auto", "scroll"].includes(style(one).overflowX);

  const beyond = document.documentElement.scrollWidth;
  if (beyond > width + 1) {
    const free = (one) => !one || (style(one).overflowX === "visible" && style(one).position !== "fixed" && free(one.parentElement));
    const out = all("body *").filter((one) => one.getBoundingClientRect().right > width + 1 && free(one.parentElement));
    tell("sideways", out.filter((one) => style(one).position !== "fixed").at(-1) ?? document.body, ` ${beyond} > ${width}`);
  }
  if (medium === "print" || width > 1000) {
    for (const one of all("pre", article)) if (wide(one)) tell("cut code", one, ` ${one.scrollWidth} > ${one.clientWidth}`);
  }
  if (medium === "print") {
    for (const one of all("table, img, svg, mjx-container", article)) {
      if (one.getBoundingClientRect().right > width + 1) tell("cut", one);
    }
  } else {
    for (const one of all("*", article)) {
      if (!wide(one) || !scrolling(one)) continue;
      if (one.tabIndex < 0 || !one.role || !one.ariaLabel) tell("not reachable", one, ` ${one.scrollWidth} > ${one.clientWidth}`);
    }
  }
  for (const one of all("span.math")) {
    if (one.querySelector("mjx-container")?.getBoundingClientRect().width > one.clientWidth + 1) tell("cut", one);
  }
  for (const one of all("main *:not(span.math, mjx-container, mjx-container *)")) {
    if (["hidden", "clip"].includes(style(one).overflowX) && wide(one)) tell("cut", one, ` ${one.scrollWidth} > ${one.clientWidth}`);
  }
  for (const one of all(".bd-sidebar-secondary :is(a, code)")) if (one.getBoundingClientRect().right > width + 1) tell("cut", one);
  for (const one of all("mjx-container, mjx-container *")) if (one.tabIndex >= 0 && !wide(one)) tell("tab stop", one);
  for (const one of all("a[href], button, input, select, summary, [tabindex='0']")) if (!names(one).some((text) => text?.trim())) tell("nameless", one);
  for (const one of document.querySelectorAll("[tabindex]")) if (one.tabIndex > 0) tell("tab order", one);
  for (const one of all("img:not([alt=''])", article)) if (one.alt.length < 20) tell("alt", one, one.getAttribute("src"));
  for (const one of all("svg[role=img]:not([aria-hidden=true])", article)) if (!one.ariaLabel && !one.matches(THEME)) tell("alt", one);
  for (const one of all("a[href^='#']", article)) {
    const id = decodeURIComponent(one.hash.slice(1));
    if (id && !document.getElementById(id)) tell("leads nowhere", one, one.hash);
  }
  for (const one of texts().filter((element) => !element.matches(THEME))) {
    const found = ratio(one);
    if (found < needed(one)) tell(`contrast ${found.toFixed(2)}`, one);
  }
  const plain = style(document.body).fontWeight;
  for (const one of all("figcaption, figcaption *", article)) if (style(one).fontWeight < plain) tell("thin", one);
  const titles = [...document.querySelectorAll("h1")].filter(shown);
  if (titles.length !== 1 && medium === "screen") tell("titles", document.body, ` ${titles.length} of the first rank`);
  return [...faults].map(([text, [count, first]]) => `${text} "${first}"${count > 1 ? ` (${count} times)` : ""}`);
}
