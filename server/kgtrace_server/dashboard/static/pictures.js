// Pictures as files: an SVG that needs no style sheet, a PNG of it, and bars as a picture of their own.

import { el, svg } from "./dom.js";

const COPIED = [
  ...["fill", "stroke", "stroke-width", "stroke-opacity", "stroke-dasharray", "stroke-linecap", "stroke-linejoin"],
  ...["paint-order", "vector-effect", "font-family", "font-size", "font-weight", "text-anchor"],
];
const DRAWN = "path, line, rect, circle, text";
const SHARPER = 2; // pixels of a PNG for each of the page's

const WIDTH = 900; // of a picture of bars
const ROW = 26;
const MARGIN = 12;
const TEXT = 520; // where bars begin
const NUMBER = 90; // room for the numbers
const LONGEST = 72; // characters

/** The picture as a file: whole, in the colours and letters that it has on the page. @param {SVGElement} picture */
export function standalone(picture) {
  const copy = picture.cloneNode(true);
  const copies = copy.querySelectorAll(DRAWN);
  picture.querySelectorAll(DRAWN).forEach((shape, i) => {
    const style = getComputedStyle(shape);
    for (const name of COPIED) copies[i].setAttribute(name, style.getPropertyValue(name));
  });
  const [, , width, height] = picture.getAttribute("viewBox").split(" ");
  copy.setAttribute("width", width);
  copy.setAttribute("height", height);
  copy.querySelector(".scene")?.removeAttribute("transform"); // dragged and zoomed on the page
  const fill = getComputedStyle(document.documentElement).getPropertyValue("--card");
  copy.prepend(svg("rect", { width, height, fill }));
  return new XMLSerializer().serializeToString(copy);
}

/** The same in pixels. @param {SVGElement} picture @returns {Promise<Blob>} */
export async function png(picture) {
  const image = new Image();
  const source = URL.createObjectURL(new Blob([standalone(picture)], { type: "image/svg+xml" }));
  image.src = source;
  await image.decode();
  const canvas = el("canvas", { width: image.width * SHARPER, height: image.height * SHARPER });
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  URL.revokeObjectURL(source);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

/**
 * Bars with their names and numbers, one below the other.
 * @param {string} title @param {{text: string, number: string, bar: SVGElement | false}[]} rows
 */
export function barPicture(title, rows) {
  const height = ROW * (rows.length + 1) + 2 * MARGIN;
  const line = ({ text, number, bar }, i) => {
    const y = MARGIN + ROW * (i + 1);
    if (bar) placed(bar, y);
    return [
      svg("text", { x: MARGIN, y: y + 17 }, text.length <= LONGEST ? text : `${text.slice(0, LONGEST - 1)}…`),
      bar || null,
      svg("text", { class: "end", x: WIDTH - MARGIN, y: y + 17 }, number),
    ];
  };
  return svg(
    "svg",
    { class: "bars", viewBox: `0 0 ${WIDTH} ${height}` },
    svg("text", { class: "title", x: MARGIN, y: MARGIN + 16 }, title),
    rows.map(line),
  );
}

function placed(bar, y) {
  const place = { x: TEXT, y: y + 7, width: WIDTH - TEXT - NUMBER - MARGIN, height: 12 };
  for (const [name, value] of Object.entries(place)) bar.setAttribute(name, value);
}
