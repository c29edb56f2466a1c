// What is wider than its place scrolls sideways: by keyboard too, with a name, and fading at the edge that hides more.
(() => {
  const NAMES = [["div.math", "Formula"], ["pre", "Code"], ["table, .pst-scrollable-table-container", "Table"], [".panels", "Figure"]];

  function mark(element, name) {
    const hidden = element.scrollWidth - element.clientWidth;
    const scrolls = hidden > 1 && ["auto", "scroll"].includes(getComputedStyle(element).overflowX);
    element.classList.toggle("more", scrolls && element.scrollLeft < hidden - 1);
    if (scrolls === element.classList.contains("scrolls")) return;
    element.classList.toggle("scrolls", scrolls);
    const told = { tabindex: "0", role: "region", "aria-label": `${name}, scrolls sideways` };
    for (const [key, value] of Object.entries(told)) scrolls ? element.setAttribute(key, value) : element.removeAttribute(key);
  }

  document.addEventListener("DOMContentLoaded", () => {
    for (const [selector, name] of NAMES) {
      for (const element of document.querySelectorAll(`article :is(${selector})`)) {
        const update = () => mark(element, name);
        element.addEventListener("scroll", update, { passive: true });
        new ResizeObserver(update).observe(element);
      }
    }
  });
})();
