// Paints the part of a scene that is in view, and moves the view by wheel, pinch, drag and keys.

const LEGIBLE = 3; // pixels of a text below which it is left out
const FAINT = 0.02; // pixels of a line's width below which it is left out
const LOUD = 0.2; // least width of a line that is not grey
const DEEPEST = 24; // most that the view magnifies

const ARROW = new Path2D("M-9 -4L1 0L-9 4Z");

const dark = matchMedia("(prefers-color-scheme: dark)");

const night = new Map();

/** A grey as it is on dark paper; other colours are kept. */
function onDark(colour) {
  if (!night.has(colour)) {
    const turned = partsOf(colour).map((part) => Math.round(18 + (255 - part) * 0.85));
    night.set(colour, isGrey(colour) ? `rgb(${turned.join(" ")})` : colour);
  }
  return night.get(colour);
}

class Viewer {
  /** `onPick` and `onHover` are told a point of the drawing (no point when the pointer leaves), `onPaint` of every frame. */
  constructor(canvas, scene, { onPick, onHover, onPaint }) {
    this.canvas = canvas;
    this.scene = scene;
    this.onPick = onPick;
    this.onHover = onHover;
    this.onPaint = onPaint;
    this.k = 1;
    this.x = 0;
    this.y = 0;
    this.marked = [];
    this.dimmed = false;
    this.lines = [];
    this.chosen = null;
    this.clientWidth = undefined;
    this.clientHeight = undefined;
    this.ratio = undefined;
    this.frame = undefined;
    this.moved = 0;
    this.night = false;
    this.mark = "";
    this.context = canvas.getContext("2d", { alpha: false });
    this.pointers = new Map();
    this.whole = true; // everything is shown, and stays so when the window changes
    new ResizeObserver(() => this.resize()).observe(canvas);
    dark.addEventListener("change", () => this.redraw());
    addEventListener("beforeprint", () => this.paint(true));
    addEventListener("afterprint", () => this.redraw());
    this.listen();
    this.resize();
  }

  resize() {
    const ratio = devicePixelRatio || 1, { clientWidth, clientHeight } = this.canvas;
    if (this.clientWidth === clientWidth && this.clientHeight === clientHeight && this.ratio === ratio) return;
    // What was in the middle stays there.
    this.x += (clientWidth - (this.clientWidth ?? clientWidth)) / 2;
    this.y += (clientHeight - (this.clientHeight ?? clientHeight)) / 2;
    this.clientWidth = clientWidth;
    this.clientHeight = clientHeight;
    this.ratio = ratio;
    this.canvas.width = Math.round(clientWidth * ratio);
    this.canvas.height = Math.round(clientHeight * ratio);
    if (this.whole) this.fit();
    this.paint();
  }

  redraw() {
    this.frame ??= requestAnimationFrame(() => this.paint());
  }

  // The view: a point p of the drawing is shown at k * p + (x, y).

  get smallest() {
    return Math.min(this.clientWidth / this.scene.width, this.clientHeight / this.scene.height);
  }

  fit() {
    this.show({ left: 0, top: 0, right: this.scene.width, bottom: this.scene.height }, { margin: 8 });
    this.whole = true;
  }

  /** Show a box of the drawing, magnified at most so far. */
  show(box, { most = 2, margin = 48 } = {}) {
    const width = Math.max(box.right - box.left, 1), height = Math.max(box.bottom - box.top, 1);
    const room = [this.clientWidth - 2 * margin, this.clientHeight - 2 * margin].map((size) => Math.max(size, 40));
    this.whole = false;
    this.k = Math.min(room[0] / width, room[1] / height, most);
    this.x = this.clientWidth / 2 - (this.k * (box.left + box.right)) / 2;
    this.y = this.clientHeight / 2 - (this.k * (box.top + box.bottom)) / 2;
    this.redraw();
  }

  zoom(factor, x = this.clientWidth / 2, y = this.clientHeight / 2) {
    const k = Math.min(Math.max(this.k * factor, this.smallest / 2), DEEPEST);
    this.x = x - ((x - this.x) * k) / this.k;
    this.y = y - ((y - this.y) * k) / this.k;
    this.k = k;
    this.whole = false;
    this.redraw();
  }

  pan(dx, dy) {
    this.whole = false;
    // Some of the drawing always stays in view.
    const edge = 60, { k, scene } = this;
    this.x = Math.min(Math.max(this.x + dx, edge - k * scene.width), this.clientWidth - edge);
    this.y = Math.min(Math.max(this.y + dy, edge - k * scene.height), this.clientHeight - edge);
    this.redraw();
  }

  /** Where a point of the screen is in the drawing. */
  locate(x, y) {
    return [(x - this.x) / this.k, (y - this.y) / this.k];
  }

  listen() {
    const { canvas } = this;
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      const step = event.deltaMode === 1 ? 20 : event.deltaMode === 2 ? 400 : 1;
      // A pinch on a touchpad comes as a wheel with the control key, in smaller steps.
      this.zoom(Math.exp(-event.deltaY * step * (event.ctrlKey ? 0.01 : 0.0016)), event.offsetX, event.offsetY);
    }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      canvas.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, [event.offsetX, event.offsetY]);
      this.moved = this.pointers.size > 1 ? Infinity : 0;
    });
    canvas.addEventListener("pointermove", (event) => this.drag(event));
    canvas.addEventListener("pointerup", (event) => {
      const clicked = this.pointers.delete(event.pointerId) && !this.pointers.size && this.moved < 5;
      if (clicked) this.onPick(this.locate(event.offsetX, event.offsetY));
    });
    canvas.addEventListener("pointerleave", () => this.onHover(null));
    canvas.addEventListener("pointercancel", (event) => this.pointers.delete(event.pointerId));
    canvas.addEventListener("dblclick", (event) => this.zoom(2, event.offsetX, event.offsetY));
  }

  drag(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) {
      if (event.pointerType === "mouse") this.onHover(this.locate(event.offsetX, event.offsetY));
      return;
    }
    const now = [event.offsetX, event.offsetY];
    const other = [...this.pointers].find(([id]) => id !== event.pointerId)?.[1];
    this.pointers.set(event.pointerId, now);
    const [dx, dy] = [now[0] - before[0], now[1] - before[1]];
    this.moved += Math.hypot(dx, dy);
    if (!other) {
      if (this.moved >= 5) this.pan(dx, dy);
      return;
    }
    const apart = (point) => Math.max(Math.hypot(point[0] - other[0], point[1] - other[1]), 1);
    this.zoom(apart(now) / apart(before), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
    this.pan(dx / 2, dy / 2);
  }

  // Painting.

  /** Paint what is in view; on white where it is for `paper`. */
  paint(paper = false) {
    cancelAnimationFrame(this.frame);
    this.frame = undefined;
    const { context, canvas, scene } = this;
    this.night = dark.matches && !paper;
    if (this.night || this.marked.length || this.chosen) scene.seat();
    this.mark = getComputedStyle(canvas).getPropertyValue(paper ? "--mark-on-paper" : "--mark");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = this.night ? onDark("#FFFFFF") : "#FFFFFF";
    context.fillRect(0, 0, canvas.width, canvas.height);
    const [left, top] = this.locate(0, 0), [right, bottom] = this.locate(this.clientWidth, this.clientHeight);
    const seen = (item) => item.left < right && item.right > left && item.top < bottom && item.bottom > top;
    const above = [];
    for (const item of scene.items) {
      if (!seen(item)) continue;
      if (item.symbol || item.text !== null) above.push(item);
      else this.paintItem(item);
    }
    this.lines.forEach((line) => this.paintLine(...line)); // beneath all that can be read
    above.forEach((item) => this.paintItem(item));
    if (this.dimmed) {
      context.setTransform(1, 0, 0, 1, 0, 0);
      context.globalAlpha = 0.65;
      context.fillStyle = this.night ? onDark("#FFFFFF") : "#FFFFFF";
      context.fillRect(0, 0, canvas.width, canvas.height);
    }
    this.marked.forEach((item) => seen(item) && this.paintMark(item, 2));
    if (this.chosen) this.paintMark(this.chosen, 4);
    canvas.dataset.view = [this.k, this.x, this.y].map((part) => part.toFixed(6)).join(" ");
    this.onPaint(this.k);
  }

  place(x, y) {
    const { ratio, k } = this;
    this.context.setTransform(k * ratio, 0, 0, k * ratio, (this.x + k * x) * ratio, (this.y + k * y) * ratio);
  }

  paintItem(item) {
    const { context, k } = this;
    if (item.text !== null) {
      if (item.size * k < LEGIBLE) return;
      context.globalAlpha = 1;
      this.place(0, 0);
      if (context.font !== item.font) context.font = item.font;
      context.textAlign = item.align;
      const { ink } = this.scene.drawing;
      context.fillStyle = this.night && !item.inside ? onDark(ink) : ink;
      context.fillText(item.text, item.x, item.y);
      return;
    }
    // Warnings are seen from afar.
    const { form, paint } = item, { fill, stroke } = paint;
    const width = stroke ? Math.max(paint.edge * k, paint.loud ? LOUD : 0) : 0;
    if (!fill && width < FAINT) return;
    const turn = this.night && !item.symbol ? onDark : (colour) => colour;
    context.globalAlpha = paint.opacity;
    this.place(item.x, item.y);
    if (fill) {
      context.fillStyle = fill.hatch ? (k > 0.4 ? fill.hatch : fill.plain) : turn(fill);
      if ((item.bottom - item.top) * k < 3) {
        context.fillRect(form.left, form.top, form.right - form.left, form.bottom - form.top);
        return; // its edge is too fine to be seen
      }
      context.fill(form.path);
    }
    if (width < FAINT) return;
    context.strokeStyle = turn(stroke);
    context.lineWidth = width / k;
    context.setLineDash(paint.dash && k > 0.2 ? paint.dash : []);
    context.stroke(form.path);
    if (paint.arrow && k > 0.15) this.paintArrow(...form.end, form.angle, 7);
  }

  /** An arrow head that ends a little past a point, as in the drawing. */
  paintArrow(x, y, angle, size) {
    const { context } = this;
    context.fillStyle = context.strokeStyle;
    context.translate(x, y);
    context.rotate(angle);
    context.scale(size / 10, size / 10);
    context.fill(ARROW);
  }

  /** A symbol with a thick outline, never smaller than can be seen. */
  paintMark(item, width) {
    const { context, k } = this, { form } = item;
    this.paintItem(item);
    item.texts?.forEach((text) => this.paintItem(text));
    context.globalAlpha = 1;
    context.setLineDash([]);
    context.strokeStyle = this.mark;
    const grow = Math.max(0, 6 / k - (form.bottom - form.top)) / 2 + (width / k) * 0.7;
    this.place(item.x, item.y);
    context.lineWidth = width / k;
    context.strokeRect(
      form.left - grow, form.top - grow, form.right - form.left + 2 * grow, form.bottom - form.top + 2 * grow,
    );
  }

  /** A curve from symbol to symbol. */
  paintLine(from, to) {
    const { context, k } = this;
    const start = [from.x + from.form.right, from.y + (from.form.top + from.form.bottom) / 2];
    const end = [to.x + to.form.left, to.y + (to.form.top + to.form.bottom) / 2];
    const across = end[0] - start[0], bend = Math.max(Math.abs(across) / 2, 10);
    // Past symbols of its own row it goes in a bow.
    const bow = Math.abs(end[1] - start[1]) < 4 && across > 150 ? Math.min(across / 8, 60) : 0;
    this.place(0, 0);
    context.globalAlpha = 0.9;
    context.setLineDash([]);
    context.strokeStyle = this.mark;
    context.lineWidth = Math.max(2 / k, 0.3);
    context.beginPath();
    context.moveTo(...start);
    context.bezierCurveTo(start[0] + bend, start[1] + bow, end[0] - bend, end[1] + bow, ...end);
    context.stroke();
    this.paintArrow(...end, 0, 9 / k);
  }
}
