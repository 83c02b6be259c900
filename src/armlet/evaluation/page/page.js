"use strict";
// The pictures are drawn already; here are the two schemes, the choosers, and films with their maps.
const reports = JSON.parse(document.getElementById("data").textContent);
const root = document.documentElement;

document.getElementById("theme").addEventListener("click", () => {
  const dark = (root.style.colorScheme || preferred()) === "dark";
  root.style.colorScheme = dark ? "light" : "dark";
});
function preferred() { return matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"; }

for (const chooser of document.querySelectorAll("[data-choose]")) {
  chooser.addEventListener("change", () => {
    const panels = document.querySelectorAll(`[data-panel="${chooser.dataset.choose}"]`);
    panels.forEach((panel, index) => {
      panel.hidden = index !== Number(chooser.value);
      if (panel.hidden) panel.querySelector("video")?.pause();
    });
  });
}

// One episode: `step` is the moment that is shown, of the film where there is one.
function follow(panel, source) {
  const video = panel.querySelector("video");
  const map = panel.querySelector(".map");
  const cursor = panel.querySelector(".cursor i");
  const fps = Number(map.dataset.fps);
  const steps = Number(map.dataset.steps);
  let step = 0;

  function show(value) {
    step = Math.max(0, Math.min(steps, value));
    cursor.style.left = `${100 * step / steps}%`;
    const whole = Math.round(step);
    map.setAttribute("aria-valuenow", String(whole));
    map.setAttribute("aria-valuetext", `step ${whole} of ${steps}`);
  }
  function seek(value) {
    show(value);
    // A little into the picture: at its very beginning some browsers show the one before.
    if (video) video.currentTime = Math.min(video.duration || 0, (step + 0.01) / fps);
  }
  function press(event) {
    const moves = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, Home: -steps, End: steps };
    if (event.key in moves) {
      event.preventDefault();
      video?.pause();
      seek(Math.round(step) + moves[event.key]);
    }
    if (event.key === " ") {
      event.preventDefault();
      if (video) { if (video.paused) video.play(); else video.pause(); }
    }
  }
  if (video) {
    video.src = source;
    for (const name of ["timeupdate", "seeked"]) {
      video.addEventListener(name, () => show(video.currentTime * fps));
    }
  }
  map.addEventListener("keydown", press);
  map.addEventListener("click", (event) => {
    const box = panel.querySelector(".cursor").getBoundingClientRect();
    if (event.clientX >= box.left) seek(steps * (event.clientX - box.left) / box.width);
  });
  show(0);
}

for (const section of document.querySelectorAll("section[data-report]")) {
  const films = reports[Number(section.dataset.report)].rollouts || [];
  for (const panel of section.querySelectorAll(".film")) {
    follow(panel, films[Number(panel.dataset.index)].source);
  }
}
