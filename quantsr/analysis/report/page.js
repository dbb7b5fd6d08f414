"use strict";
// Before/after sliders. Without this script all versions of a picture are shown side by side.
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
