// Draws the curve of verdicts, and draws it again whenever the figures beside it are new.
"use strict";

(() => {
  const place = document.getElementById("curve");
  if (!place || typeof uPlot === "undefined") return;
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  // The current minute is not complete and would look like a drop: lines of its own, dashed, lead to it.
  const read = () => {
    const [times, ...verdicts] = JSON.parse(document.getElementById(place.dataset.source).dataset.curve);
    const now = times.length - 1;
    const complete = verdicts.map((counts) => counts.map((count, i) => (i < now ? count : null)));
    const current = verdicts.map((counts) => counts.map((count, i) => (i < now - 1 ? null : count)));
    return [times, ...complete, ...current];
  };
  const whole = new Intl.NumberFormat("en");
  let plot = null;

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
        cursor: { y: false, points: { size: 6 } },
        scales: { y: { range: (_, least, most) => [0, Math.max(4, most * 1.1)] } },
        axes: [
          { ...axis, size: 26, space: 70, values: (_, times) => times.map((s) => new Date(s * 1000).toISOString().slice(11, 16)) },
          { ...axis, size: 56, values: (_, values) => values.map((v) => (Number.isInteger(v) ? whole.format(v) : "")) },
        ],
        series: [
          {},
          { label: "PASS", stroke: colour("--accent"), width: 2, fill: colour("--accent-wash"), points: { show: false } },
          { label: "FAIL", stroke: colour("--fail"), width: 2, points: { show: false } },
          { label: "PASS, this minute", stroke: colour("--accent"), width: 2, dash: [4, 4], points: { show: false } },
          { label: "FAIL, this minute", stroke: colour("--fail"), width: 2, dash: [4, 4], points: { show: false } },
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
