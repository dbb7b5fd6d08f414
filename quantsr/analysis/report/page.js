"use strict";
// Tables sorted by a click on a header, and before/after sliders. Without this script tables keep their order, and all
// versions of a picture are shown side by side.
document.documentElement.classList.add("js");
for (const scene of document.querySelectorAll(".scene")) {
  const stage = scene.querySelector(".stage");
  const versions = [...scene.querySelectorAll(".version")];
  const divider = scene.querySelector(".divider");
  const [left, right] = scene.querySelectorAll("select");
  const range = scene.querySelector("input[type=range]");

  const draw = () => {
    const share = Number(range.value);
    versions.forEach((version, index) => {
      const before = index === left.selectedIndex;
      version.hidden = !before && index !== right.selectedIndex;
      version.style.zIndex = before ? "2" : "1";
      version.style.clipPath = before && left.selectedIndex !== right.selectedIndex ? `inset(0 ${100 - share}% 0 0)` : "none";
    });
    divider.style.left = `${share}%`;
    range.setAttribute("aria-valuetext", `${share} % ${left.value}, ${100 - share} % ${right.value}`);
  };

  const follow = (event) => {
    const box = stage.getBoundingClientRect();
    range.value = String(Math.round((100 * (event.clientX - box.left)) / box.width));
    draw();
  };
  stage.addEventListener("pointerdown", (event) => {
    stage.setPointerCapture(event.pointerId);
    follow(event);
  });
  stage.addEventListener("pointermove", (event) => {
    if (stage.hasPointerCapture(event.pointerId)) follow(event);
  });
  for (const control of [left, right]) control.addEventListener("change", draw);
  range.addEventListener("input", draw);
  draw();
}

// The number that a cell begins with ("32.526 ± 0.004", "1,234"); null for other text.
const numberOf = (text) => {
  const found = /^[+-]?[\d,]*\.?\d+(e[+-]?\d+)?/i.exec(text.trim());
  return found ? Number(found[0].replaceAll(",", "")) : null;
};
const compare = (a, b) => {
  const [x, y] = [numberOf(a), numberOf(b)];
  if (x !== null && y !== null) return x - y;
  if (x !== null || y !== null) return x === null ? 1 : -1;
  return a.localeCompare(b);
};
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  const original = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    // first click: largest numbers first; then the other way round; then the original order
    button.addEventListener("click", () => {
      const next = { none: "descending", descending: "ascending", ascending: "none" }[head.ariaSort ?? "none"];
      for (const other of heads) other.removeAttribute("aria-sort");
      const rows = [...original];
      if (next !== "none") {
        head.setAttribute("aria-sort", next);
        const sign = next === "ascending" ? 1 : -1;
        const text = (row) => row.cells[column].textContent;
        const empty = (row) => /^-?$/.test(text(row).trim());
        rows.sort((a, b) => empty(a) - empty(b) || sign * compare(text(a), text(b)));
      }
      body.append(...rows);
    });
  });
}
