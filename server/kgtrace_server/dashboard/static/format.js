// Numbers and times for people.

const MINUS = "−";

/** @param {number | null} value Null where it is not finite. @param {number} [digits] That are shown of small ones. */
export function number(value, digits = 4) {
  return value === null ? "not finite" : shorter(value, digits).replace("-", MINUS);
}

/** A number that is predicted: no more digits than mean something. @param {number | null} value */
export function about(value) {
  return number(value, 3);
}

/** A number that shows its sign. @param {number | null} value */
export function signed(value) {
  return value !== null && value > 0 ? `+${number(value)}` : number(value);
}

function shorter(value, digits) {
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2);
  return size >= 1000 ? Math.round(value).toLocaleString("en") : value.toPrecision(digits);
}

/** ", TracIn 0.012": a training triple's influence by the score other than the question's, if it has one. */
export function byOtherScore(score, values, format) {
  const [other, name] = score === "tracin" ? ["preconditioned", "preconditioned"] : ["tracin", "TracIn"];
  return values[other] !== null && `, ${name} ${format(values[other])}`;
}

/** @param {number} value */
export function count(value) {
  return value.toLocaleString("en");
}

/** @param {number} share */
export function percent(share) {
  return `${Math.round(share * 100)} %`;
}

/** @param {number} bytes */
export function megabytes(bytes) {
  return `${Number((bytes / 1e6).toPrecision(3)).toLocaleString("en")} MB`;
}

/** How long ago. @param {number} seconds */
export function ago(seconds) {
  const [unit, size] = [
    ["day", 86400],
    ["hour", 3600],
    ["minute", 60],
  ].find(([, size]) => seconds >= size) ?? ["second", 1];
  const whole = Math.floor(seconds / size);
  return `${whole} ${unit}${whole === 1 ? "" : "s"} ago`;
}

/** @param {string} rfc3339 */
export function moment(rfc3339) {
  return new Date(rfc3339).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });
}
