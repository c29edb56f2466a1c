// The scoreboard's two menus: hide the rows, and fade the squares, that were not asked for. A faded square asks for all.
document.addEventListener("DOMContentLoaded", () => {
  const board = document.querySelector(".board-filter");
  if (!board) return;
  board.hidden = false;
  const menus = [...board.querySelectorAll("select")];
  const rows = [...document.querySelectorAll(".score")];
  const asked = (element) => menus.every((menu) => {
    const have = menu.dataset.filter === "row" ? element.id.replace("row-", "")[0] : element.dataset.verdict;
    return menu.value === "" || menu.value === have;
  });
  const askForAll = () => {
    for (const menu of menus) menu.value = "";
    update();
  };
  const update = () => {
    for (const row of rows) {
      row.hidden = !asked(row);
      const square = document.querySelector(`.square[href="#${row.id}"]`);
      if (!square) continue;
      square.classList.toggle("faded", row.hidden);
      square.onclick = row.hidden ? askForAll : null;
    }
    const shown = rows.filter((row) => !row.hidden).length;
    board.querySelector("[role=status]").textContent = `${shown} of ${rows.length} rows`;
  };
  for (const menu of menus) menu.addEventListener("change", update);
  update();
});
