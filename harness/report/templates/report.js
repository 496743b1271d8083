"use strict";
// Tables sort by a click on a column; without this script the page reads the same.
const UNITS = { k: 1e3, M: 1e6, G: 1e9, GiB: 1024, min: 60, h: 3600 };
function value(cell) {
  const text = (cell.firstChild && cell.firstChild.nodeType === 3 ? cell.firstChild.data : cell.textContent).trim();
  const found = /^[<>~]?\s*([\u2212+-]?[\d.,]+)\s*([A-Za-z]*)/.exec(text);
  if (!found) return [text.startsWith("n/a") || !text ? 2 : 1, text.toLowerCase()];
  return [0, Number(found[1].replace("\u2212", "-").replaceAll(",", "")) * (UNITS[found[2]] || 1)];
}
function order(a, b) {
  return a[0] - b[0] || (a[1] < b[1] ? -1 : a[1] > b[1] ? 1 : 0);
}
function sort(table, column, down) {
  for (const body of table.tBodies) {
    const rows = [...body.rows].filter((r) => r.cells.length > column && !r.classList.contains("group"));
    const keyed = rows.map((row) => [value(row.cells[column]), row]);
    keyed.sort(([a], [b]) => (a[0] !== b[0] ? a[0] - b[0] : down ? order(b, a) : order(a, b)));
    for (const [, row] of keyed) body.append(row);
  }
}
for (const table of document.querySelectorAll("table:not(.plain):not(.matrix)")) {
  if ([...table.rows].length < 3 || !table.tHead) continue;
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    button.type = "button";
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.ariaSort !== "descending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.ariaSort = down ? "descending" : "ascending";
      sort(table, column, down);
    });
  });
}
