// Draws the curve of verdicts, and draws it again whenever the figures beside it are new. To select a
// part of it with the mouse zooms: it loads the page of that time. Links do the same for the keyboard.
"use strict";

(() => {
  const place = document.getElementById("curve");
  if (!place || typeof uPlot === "undefined") return;
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const step = Number(place.dataset.step);
  // The current step is not complete and would look like a drop: lines of its own, dashed, lead to it.
  const read = () => {
    const source = document.getElementById(place.dataset.source).dataset;
    const [times, ...verdicts] = JSON.parse(source.curve);
    const now = times.length - ("live" in source ? 1 : 0);
    const complete = verdicts.map((counts) => counts.map((count, i) => (i < now ? count : null)));
    const current = verdicts.map((counts) => counts.map((count, i) => (i < now - 1 ? null : count)));
    return [times, ...complete, ...current];
  };
  const whole = new Intl.NumberFormat("en");
  let plot = null;
  const two = (number) => String(number).padStart(2, "0");
  const tick = (seconds) => {
    const at = new Date(seconds * 1000);
    const midnight = seconds % 86400 === 0;
    return midnight ? `${two(at.getUTCMonth() + 1)}-${two(at.getUTCDate())}` : `${two(at.getUTCHours())}:${two(at.getUTCMinutes())}`;
  };
  const zoom = (drawn) => {
    const { left, width } = drawn.select;
    if (width < 5) return;
    const at = (x) => Math.round(drawn.posToVal(x, "x") / step) * step;
    const query = new URLSearchParams(location.search);
    for (const name of ["range", "before"]) query.delete(name);
    const text = (seconds) => new Date(seconds * 1000).toISOString().slice(0, 19);
    query.set("since", text(at(left)));
    query.set("until", text(Math.max(at(left + width), at(left) + step)));
    location.search = query;
  };

  const draw = () => {
    const axis = {
      stroke: colour("--quiet"),
      grid: { stroke: colour("--line"), width: 1 },
      ticks: { show: false },
      font: "12px system-ui, sans-serif",
    };
    const width = place.clientWidth;
    if (plot) plot.destroy();
    plot = new uPlot(
      {
        width: width,
        height: width < 600 ? 180 : 240,
        tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC"),
        legend: { show: false },
        padding: [8, 20, 0, 0],
        cursor: { y: false, points: { size: 6 }, drag: { x: true, y: false, setScale: false } },
        hooks: { setSelect: [zoom] },
        scales: { y: { range: (_, least, most) => [0, Math.max(4, most * 1.1)] } },
        axes: [
          { ...axis, size: 26, space: 70, values: (_, times) => times.map(tick) },
          { ...axis, size: 56, values: (_, values) => values.map((v) => (Number.isInteger(v) ? whole.format(v) : "")) },
        ],
        series: [
          {},
          { label: "PASS", stroke: colour("--accent"), width: 2, fill: colour("--accent-wash"), points: { show: false } },
          { label: "FAIL", stroke: colour("--fail"), width: 2, points: { show: false } },
          { label: "PASS, not over yet", stroke: colour("--accent"), width: 2, dash: [4, 4], points: { show: false } },
          { label: "FAIL, not over yet", stroke: colour("--fail"), width: 2, dash: [4, 4], points: { show: false } },
        ],
      },
      read(),
      place,
    );
  };

  draw();
  document.body.addEventListener("htmx:after:swap", () => plot.setData(read()));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  let waiting = 0;
  addEventListener("resize", () => {
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(draw);
  });
})();
