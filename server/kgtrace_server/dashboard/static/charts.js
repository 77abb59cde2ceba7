// Bars and lines, drawn with D3. Each stands beside the numbers it shows, so that none needs an alternative text.

import d3 from "./d3.js";
import { svg } from "./dom.js";
import { moment, percent } from "./format.js";

const WIDTH = 100; // of a bar's own coordinates: it is stretched to its cell
const HEIGHT = 10;

/** A scale for bars of these values, from zero. @param {(number | null)[]} values */
export function barScale(values) {
  return d3.scaleLinear([0, d3.max(values, Math.abs) || 1], [0, WIDTH]);
}

/** One value as a bar; negative ones have another colour, and stripes. */
export function bar(value, scale) {
  return stretched(svg("rect", { class: side(value), width: scale(Math.abs(value)), height: HEIGHT }));
}

/**
 * A scale for sums with both parts and the error of each.
 * @param {{sum: number, positive: number, negative: number, error: number}[]} groups
 */
export function sumScale(groups) {
  const low = d3.min(groups, ({ negative, sum, error }) => Math.min(0, negative, sum - error));
  const high = d3.max(groups, ({ positive, sum, error }) => Math.max(0, positive, sum + error));
  return d3.scaleLinear([low, high || 1], [1, WIDTH - 1]);
}

/** Positive and negative part to both sides of zero, and where the sum lies between its errors. */
export function sumBar({ sum, positive, negative, error }, scale) {
  const zero = scale(0);
  const middle = HEIGHT / 2;
  const [from, to] = [scale(sum - error), scale(sum + error)];
  return stretched(
    svg("rect", { class: "positive", x: zero, width: scale(positive) - zero, height: HEIGHT }),
    svg("rect", { class: "negative", x: scale(negative), width: zero - scale(negative), height: HEIGHT }),
    svg("line", { class: "zero", x1: zero, x2: zero, y1: -2, y2: HEIGHT + 2 }),
    svg("line", { class: "error", x1: from, x2: to, y1: middle, y2: middle }),
    svg("line", { class: "sum", x1: scale(sum), x2: scale(sum), y1: 0, y2: HEIGHT }),
  );
}

function stretched(...shapes) {
  const viewBox = `0 0 ${WIDTH} ${HEIGHT}`;
  return svg("svg", { class: "bar", viewBox, preserveAspectRatio: "none", "aria-hidden": "true" }, shapes);
}

/** The class of a value's colour. @param {number} value */
export function side(value) {
  return value < 0 ? "negative" : "positive";
}

/**
 * Shares over time as a line.
 * @param {{at: Date, share: number, text: string, href: string | null}[]} points Oldest first; what each leads to.
 * @param {number} width Of the element it goes into, in pixels.
 */
export function line(points, width) {
  const height = 220;
  const margin = { top: 12, right: 20, bottom: 30, left: 52 };
  const x = d3.scalePoint(d3.range(points.length), [margin.left, width - margin.right]).padding(0.5);
  const y = d3.scaleLinear([0, 1], [height - margin.bottom, margin.top]);
  const every = Math.ceil(points.length / Math.max(1, Math.floor(width / 130)));
  const chart = d3
    .create("svg")
    .attr("class", "line")
    .attr("viewBox", `0 0 ${width} ${height}`)
    .attr("role", "group")
    .attr("aria-label", "Shares over time");
  chart
    .append("g")
    .attr("class", "axis")
    .attr("aria-hidden", "true")
    .attr("transform", `translate(${margin.left},0)`)
    .call(
      d3
        .axisLeft(y)
        .ticks(4)
        .tickFormat(percent)
        .tickSize(margin.left + margin.right - width),
    );
  chart
    .append("g")
    .attr("class", "axis")
    .attr("aria-hidden", "true")
    .attr("transform", `translate(0,${height - margin.bottom})`)
    .call(
      d3
        .axisBottom(x)
        .tickValues(d3.range(0, points.length, every))
        .tickFormat((i) => moment(points[i].at)),
    );
  const path = d3.line(
    (_, i) => x(i),
    ({ share }) => y(share),
  );
  chart.append("path").attr("class", "path").attr("d", path(points));
  const links = chart
    .selectAll("a")
    .data(points)
    .join("a")
    .attr("href", ({ href }) => href)
    .attr("transform", ({ share }, i) => `translate(${x(i)},${y(share)})`);
  links.append("title").text(({ text }) => text);
  links.append("rect").attr("class", "target").attr("x", -12).attr("y", -12).attr("width", 24).attr("height", 24);
  links.append("circle").attr("r", 4);
  chart
    .append("g")
    .attr("aria-hidden", "true")
    .selectAll("text")
    .data(points)
    .join("text")
    .attr("class", "share")
    .attr("x", (_, i) => x(i))
    .attr("y", ({ share }) => y(share) + (share > 0.9 ? 20 : -10))
    .text(({ share }, i) => (i % every ? "" : percent(share)));
  return chart.node();
}
