// What is wider than its place scrolls sideways: by keyboard too, with a name, and fading at the edge that hides more.
// On a phone a figure opens as large as the screen, and turned if that is upright. On paper proofs, verdicts and tables
// are open, and long code may be parted.
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

  function enlarge(event) {
    const link = event.target.closest(".panels:not(.several) > a");
    if (!link || innerWidth > 600) return;
    event.preventDefault();
    const box = document.body.appendChild(document.createElement("dialog"));
    box.className = "enlarged";
    box.innerHTML = '<button aria-label="Close">×</button>';
    box.append(Object.assign(link.querySelector("img").cloneNode(), { style: "" }));
    box.addEventListener("click", () => box.close());
    box.addEventListener("close", () => box.remove());
    box.showModal();
  }

  addEventListener("beforeprint", () => {
    for (const one of document.querySelectorAll(".tag_hide-cell details, details:is(.verdicts, .sd-dropdown)")) one.open = true;
    for (const one of document.querySelectorAll("pre")) one.classList.toggle("long", one.textContent.split("\n").length > 20);
  });
  document.addEventListener("click", enlarge);
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
