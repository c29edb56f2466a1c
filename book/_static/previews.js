// A link to a theorem, equation, figure, reference or function shows what it leads to: hovered or focused, until Escape.
const previews = {}; // page -> id -> HTML; `_static/previews/PAGE.js` fills it in

(() => {
  const WAIT = 250; // milliseconds
  const root = new URL(document.documentElement.dataset.content_root ?? "./", location.href);
  const box = Object.assign(document.createElement("div"), { className: "preview", id: "preview", hidden: true, role: "tooltip" });
  let timer, shown;

  function load(page) {
    return new Promise((done) => {
      if (page in previews) return done();
      const script = document.createElement("script");
      script.src = new URL(`_static/previews/${page}.js`, root);
      script.onload = script.onerror = done;
      document.head.append(script);
    });
  }

  function fill(html, address) {
    box.innerHTML = html;
    for (const one of box.querySelectorAll("[id]")) one.removeAttribute("id");
    for (const one of box.querySelectorAll(".headerlink, .viewcode-link")) one.remove();
    for (const one of box.querySelectorAll("[src]")) one.src = new URL(one.getAttribute("src"), address);
    for (const one of box.querySelectorAll("[href]")) one.href = new URL(one.getAttribute("href"), address);
  }

  function place(link) {
    const at = link.getBoundingClientRect(), size = box.getBoundingClientRect();
    const below = at.bottom + size.height < innerHeight || at.top < size.height;
    box.style.left = `${scrollX + Math.max(8, Math.min(at.left, document.documentElement.clientWidth - size.width - 8))}px`;
    box.style.top = `${scrollY + (below ? at.bottom + 4 : at.top - size.height - 4)}px`;
  }

  async function show(link) {
    const address = new URL(link.href), id = decodeURIComponent(address.hash.slice(1));
    const page = address.pathname.slice(root.pathname.length).replace(/\.html$/, "");
    await load(page);
    const html = previews[page]?.[id];
    if (!html || link !== shown) return;
    fill(html, address);
    box.hidden = false;
    link.setAttribute("aria-describedby", box.id);
    place(link);
    await window.MathJax?.typesetPromise?.([box]);
    place(link);
  }

  function hide() {
    shown?.removeAttribute("aria-describedby");
    shown = undefined;
    box.hidden = true;
  }

  function later(step) {
    clearTimeout(timer);
    timer = setTimeout(step, WAIT);
  }

  function wanted(event) {
    const link = event.target.closest?.("article a.internal[href*='#']:not(.headerlink)");
    return link && link.href.startsWith(root.href) ? link : undefined;
  }

  function enter(event) {
    const link = wanted(event);
    if (box.contains(event.target)) return clearTimeout(timer);
    if (link === shown) return link ? clearTimeout(timer) : undefined;
    if (!link) return later(hide);
    later(() => (hide(), (shown = link), show(link)));
  }

  document.addEventListener("DOMContentLoaded", () => document.body.append(box));
  document.addEventListener("mouseover", enter);
  document.addEventListener("focusin", enter);
  document.addEventListener("focusout", () => later(hide));
  document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
})();
