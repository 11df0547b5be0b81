// How figures are written: as in the drawings, with units.

const PREFIXES = ["", "k", "M", "G", "T", "P", "E"];

/** A quantity with a decimal prefix and three digits: 1.41 GB. */
function amount(value, unit) {
  let step = 0;
  while (Math.abs(value) >= 999.5 && step < PREFIXES.length - 1) {
    value /= 1000;
    step += 1;
  }
  return `${Number(value.toPrecision(3))} ${PREFIXES[step]}${unit}`;
}

/** A count: whole where it is, else with one decimal; with thousands separated. */
function count(value) {
  const near = Math.round(value), whole = Math.abs(value - near) < 1e-6;
  return (whole ? near : value).toLocaleString("en", { maximumFractionDigits: 1, minimumFractionDigits: whole ? 0 : 1 });
}

/** Runs of ids: 0-7, 12. */
function runs(pairs) {
  return pairs.map(([first, last]) => (first === last ? `${first}` : `${first}-${last}`)).join(", ");
}

function plural(number, word) {
  return `${count(number)} ${word}${number === 1 ? "" : "s"}`;
}

const AXES = { ids: "", next: "", likeliest: "", logits: "vocabulary entries" };

/** A shape with its axes: 8,192 tokens x 7,168 hidden values. */
function shapeWords(tensor, shape, dtype) {
  const family = tensor.split(/[.@]/, 1)[0];
  const second = dtype === "choices" ? "chosen experts" : AXES[family] ?? "hidden values";
  return shape.map((length, axis) => `${count(length)} ${axis ? second : "tokens"}`.trim()).join(" × ");
}

const DTYPES = { tokens: "token ids, 4 bytes each", choices: "pairs of expert id (4 bytes) and weight" };
const TRAVELS = {
  "same-gpu": "stays on its GPU", nvlink: "NVLink, within the node", network: "network", order: "only an order",
};

/** Make an element: `h("p", { className: "x" }, "text", child)`. Text stays text. */
function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") element.setAttribute(name, value);
    else if (name === "style") Object.assign(element.style, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}
