// Reads the drawing into a list of things to paint. Chromium takes 1.4 s and more for a frame of the largest drawing as
// SVG, with any pan and zoom library; a canvas that leaves out what is off the screen or too small takes milliseconds.

const SVG_LINK = "http://www.w3.org/1999/xlink";
const INHERITED = ["fill", "stroke", "stroke-width", "stroke-dasharray", "font-size", "font-weight", "text-anchor"];
const OPERANDS = { m: 2, l: 2, h: 1, v: 1, c: 6, s: 4, q: 4, t: 2, a: 7, z: 0 };
const FINE = 8; // pixels of a hatch's tile for one of the drawing's

/** Walks along path data: the box of its points, and each subpath's end with the direction in which it arrives. */
function measurePath(data) {
  const box = { left: Infinity, top: Infinity, right: -Infinity, bottom: -Infinity };
  let x = 0, y = 0, startX = 0, startY = 0, fromX = 0, fromY = 0;
  const reach = (px, py) => {
    box.left = Math.min(box.left, px);
    box.right = Math.max(box.right, px);
    box.top = Math.min(box.top, py);
    box.bottom = Math.max(box.bottom, py);
  };
  for (const [, letter, text] of data.matchAll(/([a-zA-Z])([^a-zA-Z]*)/g)) {
    const key = letter.toLowerCase(), relative = key === letter, count = OPERANDS[key];
    const numbers = (text.match(/-?(?:\d+\.?\d*|\.\d+)/g) || []).map(Number);
    if (count === undefined || (count ? numbers.length % count : numbers.length)) {
      throw new Error(`path data that cannot be read: ${letter}${text}`);
    }
    if (key === "z") {
      [fromX, fromY, x, y] = [x, y, startX, startY];
    }
    for (let at = 0; at < numbers.length; at += count) {
      const baseX = relative ? x : 0, baseY = relative ? y : 0;
      const points = [];
      if (key === "h") points.push([baseX + numbers[at], y]);
      else if (key === "v") points.push([x, baseY + numbers[at]]);
      else if (key === "a") points.push([baseX + numbers[at + 5], baseY + numbers[at + 6]]);
      else for (let k = 0; k < count; k += 2) points.push([baseX + numbers[at + k], baseY + numbers[at + k + 1]]);
      points.forEach(([px, py]) => reach(px, py));
      [fromX, fromY] = points.length > 1 ? points[points.length - 2] : [x, y];
      [x, y] = points[points.length - 1];
      if (key === "m" && at === 0) [startX, startY] = [x, y];
    }
  }
  return { ...box, end: [x, y], angle: Math.atan2(y - fromY, x - fromX) };
}

/** Red, green and blue of #RRGGBB. */
function partsOf(colour) {
  return [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
}

function isGrey(colour) {
  const parts = partsOf(colour);
  return Math.max(...parts) - Math.min(...parts) < 32;
}

class Scene {
  /** `known` tells whether a word is the id of an operation. */
  constructor(text, known) {
    const root = new DOMParser().parseFromString(text, "image/svg+xml").documentElement;
    if (root.localName !== "svg") throw new Error("the drawing cannot be read");
    this.width = parseFloat(root.getAttribute("width"));
    this.height = parseFloat(root.getAttribute("height"));
    this.font = root.getAttribute("font-family");
    this.items = [];
    this.boxes = new Map(); // of operations, by id
    this.known = known;
    this.definitions = new Map();
    this.forms = new Map(); // shapes that are used many times
    this.wirings = new Map();
    this.hatches = new Map();
    for (const element of root.querySelectorAll("[id]")) this.definitions.set(element.id, element);
    this.walk(root, 0, 0, this.styleOf(root, { fill: "#000000", stroke: "none", "stroke-width": "1", opacity: 1 }));
    this.definitions.clear();
  }

  walk(parent, dx, dy, inherited) {
    for (const element of parent.children) {
      const tag = element.localName;
      if (tag === "defs" || tag === "title" || tag === "marker" || tag === "pattern") continue;
      const style = this.styleOf(element, inherited);
      let x = dx, y = dy;
      const transform = element.getAttribute("transform");
      if (transform) {
        const move = /^translate\(([-\d.]+)[ ,]+([-\d.]+)\)$/.exec(transform);
        if (!move) throw new Error(`a transform that cannot be read: ${transform}`);
        x += Number(move[1]);
        y += Number(move[2]);
      }
      if (tag === "g") this.walk(element, x, y, style);
      else if (tag === "use") this.addUse(element, x, y, style);
      else if (tag === "text") this.addText(element, x, y, style);
      else if (tag === "path" || tag === "rect" || tag === "ellipse" || tag === "circle" || tag === "line") {
        this.addShape(x, y, style, this.formOf(element));
      } else throw new Error(`an element that cannot be drawn: ${tag}`);
    }
  }

  styleOf(element, inherited) {
    const style = { ...inherited };
    for (const name of INHERITED) {
      const value = element.getAttribute(name);
      if (value !== null) style[name] = value;
    }
    const opacity = element.getAttribute("opacity");
    if (opacity !== null) style.opacity = inherited.opacity * Number(opacity);
    style.marker = element.getAttribute("marker-end");
    return style;
  }

  addUse(element, dx, dy, style) {
    const id = (element.getAttributeNS(SVG_LINK, "href") || element.getAttribute("href")).slice(1);
    const target = this.definitions.get(id);
    const x = dx + Number(element.getAttribute("x") || 0), y = dy + Number(element.getAttribute("y") || 0);
    if (target.localName === "g") {
      this.walk(target, x, y, this.styleOf(target, style));
      return;
    }
    if (!this.forms.has(id)) this.forms.set(id, this.formOf(target));
    const item = this.addShape(x, y, style, this.forms.get(id));
    item.symbol = true;
    // By convention the first word of a symbol's tooltip is the id of its operation.
    const word = (element.querySelector("title")?.textContent || "").split(/\s/, 1)[0];
    if (this.known(word) && !this.boxes.has(word)) this.boxes.set(word, item);
  }

  formOf(element) {
    const number = (name) => Number(element.getAttribute(name) || 0);
    const path = new Path2D();
    let box;
    if (element.localName === "path") {
      const data = element.getAttribute("d");
      if (this.wirings.has(data)) return this.wirings.get(data);
      const form = { path: new Path2D(data), ...measurePath(data) };
      this.wirings.set(data, form);
      return form;
    } else if (element.localName === "rect") {
      const [x, y, width, height] = ["x", "y", "width", "height"].map(number);
      path.roundRect(x, y, width, height, number("rx"));
      box = { left: x, top: y, right: x + width, bottom: y + height };
    } else if (element.localName === "line") {
      const [x, y, toX, toY] = ["x1", "y1", "x2", "y2"].map(number);
      return { path: new Path2D(`M${x} ${y}L${toX} ${toY}`), ...measurePath(`M${x} ${y}L${toX} ${toY}`) };
    } else {
      const rx = number("rx") || number("r"), ry = number("ry") || number("r"), cx = number("cx"), cy = number("cy");
      path.ellipse(cx, cy, rx, ry, 0, 0, 2 * Math.PI);
      box = { left: cx - rx, top: cy - ry, right: cx + rx, bottom: cy + ry };
    }
    return { path, ...box };
  }

  addShape(x, y, style, form) {
    const edge = style.stroke === "none" ? 0 : Number(style["stroke-width"]);
    const item = {
      form, x, y, edge,
      left: x + form.left - edge, top: y + form.top - edge, right: x + form.right + edge, bottom: y + form.bottom + edge,
      fill: this.paintOf(style.fill), stroke: style.stroke === "none" ? null : style.stroke,
      loud: style.stroke !== "none" && !isGrey(style.stroke),
      dash: style["stroke-dasharray"] ? style["stroke-dasharray"].split(/[ ,]+/).map(Number) : null,
      opacity: style.opacity, arrow: Boolean(style.marker), symbol: false, text: null,
    };
    this.items.push(item);
    return item;
  }

  addText(element, dx, dy, style) {
    const size = parseFloat(style["font-size"]), text = element.textContent;
    const x = dx + Number(element.getAttribute("x")), y = dy + Number(element.getAttribute("y"));
    const width = text.length * 0.62 * size, anchor = style["text-anchor"] || "start";
    const left = anchor === "middle" ? x - width / 2 : anchor === "end" ? x - width : x;
    this.items.push({
      text, x, y, size, left, top: y - size, right: left + width, bottom: y + size * 0.3,
      align: anchor === "middle" ? "center" : anchor, font: `${style["font-weight"] || "normal"} ${size}px ${this.font}`,
      fill: this.paintOf(style.fill), opacity: style.opacity, inside: null,
    });
  }

  /** A colour, or a hatch: its colour from afar, and a tile to repeat. */
  paintOf(fill) {
    const id = /^url\(#(.*)\)$/.exec(fill)?.[1];
    if (!id) return fill === "none" ? null : fill;
    if (!this.hatches.has(id)) this.hatches.set(id, this.hatchOf(this.definitions.get(id)));
    return this.hatches.get(id);
  }

  hatchOf(pattern) {
    const [width, height] = ["width", "height"].map((name) => Number(pattern.getAttribute(name)));
    const tile = Object.assign(document.createElement("canvas"), { width: width * FINE, height: height * FINE });
    const context = tile.getContext("2d");
    context.scale(FINE, FINE);
    for (const element of pattern.children) {
      const style = this.styleOf(element, { fill: "none", stroke: "none", "stroke-width": "1", opacity: 1 });
      const { path } = this.formOf(element);
      context.globalAlpha = style.opacity;
      [context.fillStyle, context.strokeStyle, context.lineWidth] = [style.fill, style.stroke, style["stroke-width"]];
      if (style.fill !== "none") context.fill(path);
      if (style.stroke !== "none") context.stroke(path);
    }
    const hatch = context.createPattern(tile, "repeat");
    hatch.setTransform(new DOMMatrix().scale(1 / FINE));
    return { hatch, plain: pattern.querySelector("rect").getAttribute("fill") };
  }

  /** Find out which texts stand on a symbol: they keep their ink on dark paper, and are painted again with it. */
  seat() {
    const cell = 64, cells = new Map();
    const each = (item, visit) => {
      for (let i = Math.floor(item.left / cell); i <= item.right / cell; i++) {
        for (let j = Math.floor(item.top / cell); j <= item.bottom / cell; j++) visit(i * 65536 + j);
      }
    };
    for (const item of this.items) {
      if (item.symbol) each(item, (key) => cells.has(key) ? cells.get(key).push(item) : cells.set(key, [item]));
    }
    for (const item of this.items) {
      if (item.text === null) continue;
      const x = (item.left + item.right) / 2, y = (item.top + item.bottom) / 2;
      const near = cells.get(Math.floor(x / cell) * 65536 + Math.floor(y / cell)) || [];
      item.inside = near.find((s) => s.left < x && x < s.right && s.top < y && y < s.bottom);
      if (item.inside) (item.inside.texts ??= []).push(item);
    }
  }
}
