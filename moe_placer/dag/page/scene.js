// Turns the drawing's data into a list of things to paint. Chromium takes 1.4 s and more for a frame of the largest
// drawing as SVG, with any pan and zoom library; a canvas that leaves out what is off the screen or too small takes
// milliseconds.

const OPERANDS = { m: 2, l: 2, h: 1, v: 1, c: 6, a: 7, z: 0 };
const FINE = 8; // pixels of a hatch's tile for one of the drawing's
const TILE = 9; // pixels of the drawing

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
  /** `ids` are those of the operations; the data is what `Canvas.scene` in canvas.py returns. */
  constructor(drawing, ids) {
    this.width = drawing.width;
    this.height = drawing.height;
    this.drawing = drawing;
    this.ids = ids;
    this.items = [];
    this.boxes = new Map(); // of operations, by id
    this.seated = false;
    this.hatches = new Map();
    this.forms = drawing.forms.map(([path, box]) => {
      const place = box ? { left: box[0], top: box[1], right: box[2], bottom: box[3] } : measurePath(path);
      return { path: new Path2D(path), ...place };
    });
    // Of every look: what its shapes are painted with.
    this.looks = drawing.looks.map(([fill, stroke, width, dash, opacity, arrow]) => ({
      fill: this.paintOf(fill), stroke: stroke === "none" ? null : stroke, edge: stroke === "none" ? 0 : width, opacity, arrow,
      loud: stroke !== "none" && !isGrey(stroke), dash: dash ? dash.split(" ").map(Number) : null,
    }));
    this.fonts = drawing.types.map(([size, , bold]) => `${bold ? "bold" : "normal"} ${size}px ${drawing.font}`);
    this.add(drawing.items, 0, 0);
  }

  add(items, dx, dy) {
    for (const item of items) {
      if (typeof item[0] === "string") this.addText(item, dx, dy);
      else if (item.length === 3) this.add(this.drawing.stamps[item[0]], dx + item[1], dy + item[2]);
      else this.addShape(item, dx, dy);
    }
  }

  addShape([place, x0, y0, look, op], dx, dy) {
    const form = this.forms[place], x = dx + x0, y = dy + y0, paint = this.looks[look], { edge } = paint;
    const item = {
      form, paint, x, y, symbol: Boolean(this.drawing.forms[place][2]), text: null,
      left: x + form.left - edge, top: y + form.top - edge, right: x + form.right + edge, bottom: y + form.bottom + edge,
    };
    this.items.push(item);
    if (op !== undefined) this.boxes.set(this.ids[op], item);
  }

  addText([text, x0, y0, type], dx, dy) {
    const [size, anchor] = this.drawing.types[type], x = dx + x0, y = dy + y0;
    const width = text.length * 0.62 * size, left = anchor === "middle" ? x - width / 2 : x;
    this.items.push({
      text, x, y, size, left, top: y - size, right: left + width, bottom: y + size * 0.3,
      align: anchor === "middle" ? "center" : anchor, font: this.fonts[type], symbol: false, inside: null,
    });
  }

  /** A colour, or a hatch: its colour from afar, and a tile to repeat. */
  paintOf(fill) {
    if (!this.drawing.hatches[fill]) return fill === "none" ? null : fill;
    if (!this.hatches.has(fill)) this.hatches.set(fill, this.hatchOf(this.drawing.hatches[fill]));
    return this.hatches.get(fill);
  }

  hatchOf([colour, stripe, path]) {
    const tile = Object.assign(document.createElement("canvas"), { width: TILE * FINE, height: TILE * FINE });
    const context = tile.getContext("2d");
    context.scale(FINE, FINE);
    context.fillStyle = colour;
    context.fillRect(0, 0, TILE, TILE);
    [context.globalAlpha, context.strokeStyle, context.lineWidth] = [0.6, stripe, 2];
    context.stroke(new Path2D(path));
    const hatch = context.createPattern(tile, "repeat");
    hatch.setTransform(new DOMMatrix().scale(1 / FINE));
    return { hatch, plain: colour };
  }

  /** Find out which texts stand on a symbol, once: they keep their ink on dark paper, and are painted again with it. */
  seat() {
    if (this.seated) return;
    this.seated = true;
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
