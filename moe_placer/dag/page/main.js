// Opens the page: unpacks drawing and details, and lets search, view, panel and address bar know of each other.

/** @type {(id: string) => any} */
const find = (id) => document.getElementById(id);

const HEADING = 200; // pixels of the drawing above a layer, with its name

/** Unpack gzip in base64. A loop: `Uint8Array.from` with a function takes ten times as long for megabytes. */
async function unpack(id) {
  const letters = atob(find(id).textContent), packed = new Uint8Array(letters.length);
  for (let at = 0; at < letters.length; at++) packed[at] = letters.charCodeAt(at);
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

class Page {
  constructor(graph, drawing) {
    this.graph = graph;
    this.places = new Map(graph.operations.id.map((id, op) => [id, op]));
    this.scene = new Scene(drawing, graph.operations.id);
    this.viewer = new Viewer(find("view"), this.scene, {
      onPick: (point) => this.pick(point),
      onHover: (point) => this.hover(point),
      onPaint: (k) => (find("scale").textContent = `${Math.round(k * 100)}%`),
    });
    this.search = new Search(graph);
    this.panel = new Panel(find("panel"), graph, this);
    this.matches = [];
    this.at = -1;
    this.chosen = null;
    this.listen();
    this.begin();
    this.follow();
  }

  box(op) {
    return this.scene.boxes.get(this.graph.operations.id[op]);
  }

  /** Show the layer with the busiest link, as large as its width fits; the whole where no link carries anything. */
  begin() {
    const { operations, kinds, costs } = this.graph;
    const worst = Object.entries(costs).map(([layer, row]) => [Number(layer), Math.max(0, ...Object.values(row))]);
    const [layer, cost] = worst.reduce((a, b) => (b[1] > a[1] ? b : a), [-1, 0]);
    // Without what ends it: where micro-batches overlap, that is drawn beside the next layer.
    const own = (op) => operations.layer[op] === layer && !/^(combine|aggregate)/.test(kinds[operations.kind[op]][0]);
    const boxes = operations.id.map((_, op) => this.box(op)).filter((box, op) => box && own(op));
    if (!cost || !boxes.length) return;
    const box = around(boxes), { scene, viewer } = this;
    const beside = worst.length > 1 ? (box.right - box.left) * 0.12 : Infinity; // a single layer is shown from edge to edge
    const left = Math.max(0, box.left - beside), right = Math.min(scene.width, box.right + beside);
    const top = Math.max(0, box.top - HEADING), tall = ((right - left) * viewer.clientHeight) / viewer.clientWidth;
    viewer.show({ left, right, top, bottom: Math.min(box.bottom, top + tall) }, { most: 1, margin: 16 });
  }

  listen() {
    const query = find("query");
    query.addEventListener("input", () => this.look(query.value));
    find("search").addEventListener("submit", (event) => {
      event.preventDefault();
      this.step(1);
    });
    query.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && event.shiftKey) {
        event.preventDefault();
        this.step(-1);
      }
    });
    const zoomed = 1.5;
    const buttons = {
      previous: () => this.step(-1), next: () => this.step(1), closer: () => this.viewer.zoom(zoomed),
      farther: () => this.viewer.zoom(1 / zoomed), fit: () => this.viewer.fit(),
      about: () => document.body.classList.toggle("about"),
    };
    for (const [id, act] of Object.entries(buttons)) find(id).addEventListener("click", act);
    addEventListener("popstate", () => this.follow());
    addEventListener("keydown", (event) => this.key(event));
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") {
      this.escape();
      return;
    }
    if (event.target.matches("input")) return;
    const { viewer } = this, far = 80;
    const arrows = { ArrowLeft: [far, 0], ArrowRight: [-far, 0], ArrowUp: [0, far], ArrowDown: [0, -far] };
    const keys = {
      "+": () => viewer.zoom(1.5), "=": () => viewer.zoom(1.5), "-": () => viewer.zoom(1 / 1.5), _: () => viewer.zoom(1 / 1.5),
      0: () => viewer.fit(), n: () => this.step(1), p: () => this.step(-1), "/": () => find("query").select(),
    };
    if (event.target === viewer.canvas) {
      const middle = viewer.locate(viewer.clientWidth / 2, viewer.clientHeight / 2);
      keys.Enter = () => this.choose(this.nearest(...middle, Infinity), { focus: true });
    }
    const scrolls = event.target.closest("#panel, #legend");
    const act = Object.hasOwn(keys, event.key) ? keys[event.key] : undefined;
    if (act) act();
    else if (Object.hasOwn(arrows, event.key) && !scrolls) viewer.pan(...arrows[event.key]);
    else return;
    event.preventDefault();
  }

  /** Close the details, then the search, then the panel where it covers the drawing. */
  escape() {
    if (this.chosen !== null) {
      const within = find("panel").contains(document.activeElement);
      this.choose(null);
      if (within) this.viewer.canvas.focus();
    } else if (this.matches.length || find("query").value) {
      find("query").value = "";
      this.look("");
    } else document.body.classList.remove("about");
  }

  /** Highlight and show what a search finds. */
  look(text) {
    this.matches = this.search.find(text);
    this.at = -1;
    const boxes = this.matches.map((op) => this.box(op)).filter(Boolean);
    Object.assign(this.viewer, { marked: boxes, dimmed: boxes.length > 0 });
    const said = this.matches.length ? plural(this.matches.length, "match").replace("matchs", "matches") : "";
    this.say(said || (text.trim() ? this.search.explain(text) : ""));
    if (boxes.length) this.viewer.show(around(boxes), { most: 4 });
    this.viewer.redraw();
    this.panel.list(text, this.matches);
    if (this.chosen === null) this.panel.open(null);
    this.remember();
  }

  /** Go to the next match, or the one before. */
  step(by) {
    if (!this.matches.length) return;
    this.at = this.at < 0 && by < 0 ? this.matches.length - 1 : (this.at + by + this.matches.length) % this.matches.length;
    this.say(`${this.at + 1} of ${this.matches.length}`);
    this.choose(this.matches[this.at], { show: true });
  }

  say(text) {
    find("count").textContent = text;
    for (const id of ["previous", "next"]) find(id).disabled = !this.matches.length;
  }

  /** The operation at a point of the drawing, or the nearest within some distance. */
  nearest(x, y, within) {
    let best = null, least = within;
    for (const [id, item] of this.scene.boxes) {
      const dx = Math.max(item.left - x, 0, x - item.right), dy = Math.max(item.top - y, 0, y - item.bottom);
      const away = Math.hypot(dx, dy);
      if (away < least) [best, least] = [this.places.get(id), away];
    }
    return best;
  }

  /** Open the operation that is clicked; a click beside all of them closes the details. */
  pick(point) {
    const op = this.nearest(...point, 6 / this.viewer.k);
    if (op !== null || this.chosen !== null) this.choose(op);
  }

  hover(point) {
    const { canvas, k } = this.viewer, op = point && this.nearest(...point, 1 / k);
    canvas.style.cursor = op === null ? "" : "pointer";
    const title = op === null ? "" : `${this.panel.title(op)} on GPU ${this.panel.gpus(op)}\n${this.graph.operations.id[op]}`;
    if (canvas.title !== title) canvas.title = title;
  }

  /** Open an operation's details, or close them. */
  choose(op, { show = false, focus = false } = {}) {
    this.chosen = op;
    document.body.classList.toggle("chosen", op !== null);
    this.panel.open(op);
    this.mark();
    this.viewer.resize();
    const box = op === null ? undefined : this.box(op);
    if (show && box) this.viewer.show(box, { most: Math.min(4, 150 / (box.right - box.left)) });
    if (focus) find("panel").querySelector("h2").focus();
    this.remember(op !== null);
  }

  mark() {
    const { operations, edges } = this.graph, op = this.chosen;
    const lines = [];
    if (op !== null) {
      for (const edge of [...this.panel.into(op), ...this.panel.from(op)]) {
        const ends = [this.box(edges.source[edge]), this.box(edges.target[edge])];
        if (ends[0] && ends[1]) lines.push(ends);
      }
    }
    this.viewer.chosen = op === null ? null : this.scene.boxes.get(operations.id[op]) ?? null;
    this.viewer.lines = lines;
    this.viewer.redraw();
  }

  /** Write into the address what is open, so that it can be sent to somebody; `anew` so that one can go back from it. */
  remember(anew = false) {
    const parts = new URLSearchParams();
    if (find("query").value.trim()) parts.set("q", find("query").value.trim());
    if (this.chosen !== null) parts.set("op", this.graph.operations.id[this.chosen]);
    const fragment = parts.toString();
    if (fragment === location.hash.slice(1)) return;
    const place = fragment ? `#${fragment}` : location.pathname + location.search;
    if (anew) history.pushState(null, "", place);
    else history.replaceState(null, "", place);
  }

  /** Open what the address says. */
  follow() {
    const parts = new URLSearchParams(location.hash.slice(1));
    const text = parts.get("q") ?? "", op = this.places.get(parts.get("op") ?? "");
    if (parts.has("op") && op === undefined) this.say(`no operation ${parts.get("op")}`);
    if (text !== find("query").value.trim()) {
      find("query").value = text;
      this.chosen = null;
      this.look(text);
    }
    if (op !== undefined) this.choose(op, { show: true });
    else if (this.chosen !== null) this.choose(null);
  }
}

function around(boxes) {
  const all = { left: Infinity, top: Infinity, right: -Infinity, bottom: -Infinity };
  for (const box of boxes) {
    all.left = Math.min(all.left, box.left);
    all.top = Math.min(all.top, box.top);
    all.right = Math.max(all.right, box.right);
    all.bottom = Math.max(all.bottom, box.bottom);
  }
  return all;
}

async function start() {
  try {
    const [details, drawing] = await Promise.all([unpack("details"), unpack("drawing")]);
    new Page(JSON.parse(details), JSON.parse(drawing));
    find("opening").hidden = true;
    document.body.dataset.ready = `${Math.round(performance.now())}`;
  } catch (error) {
    find("opening").hidden = true;
    find("failed").textContent = `This page cannot be shown: ${error.message}. The .svg beside it has the same drawing.`;
    find("failed").hidden = false;
    throw error;
  }
}

start();
