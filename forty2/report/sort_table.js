// Sorts the table by the column whose head is pressed; rows without a value stay last.
const table = document.querySelector("table");
for (const head of table.tHead.rows[0].cells) {
  const button = document.createElement("button");
  button.append(...head.childNodes);
  head.append(button);
}
const value = (row, n) => row.cells[n].dataset.sort ?? row.cells[n].textContent.trim();
table.tHead.addEventListener("click", (event) => {
  const head = event.target.closest("th");
  if (!head) return;
  const falling = head.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", falling ? "descending" : "ascending");
  const n = head.cellIndex, body = table.tBodies[0];
  const compare = (a, b) => a.localeCompare(b, undefined, { numeric: true });
  const order = (a, b) => {
    const [x, y] = [value(a, n), value(b, n)];
    if (!x || !y) return (x ? 0 : 1) - (y ? 0 : 1);
    const numbers = isFinite(x) && isFinite(y);
    return (falling ? -1 : 1) * (numbers ? x - y : compare(x, y));
  };
  body.append(...[...body.rows].sort(order));
});
