// The panel beside the drawing: the whole deployment, or one operation with its tensors and neighbours.

class Panel {
  /** `page` opens operations and searches when a link is followed. */
  constructor(element, graph, page) {
    this.element = element;
    this.graph = graph;
    this.page = page;
    this.text = "";
    this.matches = [];
    this.incoming = graph.operations.id.map(() => []); // tensors of each operation
    this.outgoing = graph.operations.id.map(() => []);
    for (const [edge, op] of graph.edges.source.entries()) this.outgoing[op].push(edge);
    for (const [edge, op] of graph.edges.target.entries()) this.incoming[op].push(edge);
    fillLegend(graph);
    this.list("", []);
    this.open(null);
  }

  into(op) {
    return this.incoming[op] ?? [];
  }

  from(op) {
    return this.outgoing[op] ?? [];
  }

  /** What the panel lists while no operation is open. */
  list(text, matches) {
    this.text = text;
    this.matches = matches;
  }

  open(op) {
    const unopened = () => (this.matches.length ? this.found() : this.overview());
    this.element.replaceChildren(...(op === null ? unopened() : this.operation(op)));
    this.element.scrollTop = 0;
  }

  title(op) {
    const { operations, kinds } = this.graph, experts = operations.experts[op];
    if (experts.length === 1) return `Expert ${experts[0][0]}, copy ${experts[0][1]}`;
    return kinds[operations.kind[op]][1];
  }

  gpus(op) {
    return runs(this.graph.gpus[this.graph.operations.gpus[op]]);
  }

  /** The first matches of a search. */
  found(limit = 200) {
    const { matches, text } = this, rest = matches.length - limit;
    const rows = matches.slice(0, limit).map((op) =>
      h("li", {}, this.link(op), h("span", { className: "note" }, `GPU ${this.gpus(op)}`)));
    return [
      h("header", {}, h("h2", { tabIndex: -1 }, `Found: ${text.trim()}`)),
      h("ol", { className: "found" }, ...rows),
      rest > 0 ? h("p", { className: "note" }, `and ${count(rest)} more`) : "",
    ];
  }

  /** A link that opens another operation. */
  link(op) {
    const id = this.graph.operations.id[op];
    const open = (event) => {
      event.preventDefault();
      this.page.choose(op, { show: true, focus: true });
    };
    return h("a", { href: `#${new URLSearchParams({ op: id })}`, onclick: open }, id);
  }

  operation(op) {
    const { operations } = this.graph, layer = operations.layer[op];
    const close = h("button", { type: "button", className: "close", "aria-label": "Close the details", onclick: () => this.page.escape() }, "×");
    const parts = [
      h("header", {}, h("h2", { tabIndex: -1 }, this.title(op)), close),
      h("p", { className: "id" }, h("code", {}, operations.id[op])),
      this.facts(op),
      ...this.tensors("Comes in", this.into(op), "source"),
      ...this.tensors("Goes out", this.from(op), "target"),
    ];
    if (layer !== null && this.graph.costs[layer]) parts.push(...this.worst(layer, 8));
    return parts;
  }

  facts(op) {
    const { operations, kinds, gpus, gpusPerNode } = this.graph;
    const [, title, role] = kinds[operations.kind[op]];
    const ids = gpus[operations.gpus[op]];
    const nodes = ids.map(([a, b]) => [Math.floor(a / gpusPerNode), Math.floor(b / gpusPerNode)]);
    const joined = nodes.reduce((all, [a, b]) => {
      const last = all[all.length - 1];
      if (last && a <= last[1] + 1) last[1] = b;
      else all.push([a, b]);
      return all;
    }, []);
    const rows = [
      ["Kind", `${title} (${role === "routing" ? "routing, aggregation" : role})`],
      ["Layer", operations.layer[op] ?? "before or after the layers"],
      ["GPUs", runs(ids)],
      ["Nodes", runs(joined)],
      ["DP group", operations.group[op]],
      ["Experts", this.experts(op)],
      ["Computes", operations.flops[op] ? amount(operations.flops[op], "FLOP") : "", `${count(operations.flops[op])} FLOP`],
      ["Reads", amount(operations.bytesRead[op], "B"), `${count(operations.bytesRead[op])} bytes of weights and input tensors`],
      ["Stands for", operations.repeats[op] > 1 ? plural(operations.repeats[op], "layer") : ""],
      ["Micro-batch", operations.batch[op]],
      ["Moves inside", Object.entries(operations.moved[op]).map(([how, size]) => `${amount(size, "B")} (${TRAVELS[how]})`).join(", ")],
    ];
    const shown = rows.filter(([, value]) => value !== null && value !== "");
    return h("dl", {}, ...shown.flatMap(([name, value, exact]) => [
      h("dt", {}, name), h("dd", {}, String(value), exact ? h("span", { className: "exact" }, exact) : ""),
    ]));
  }

  /** Experts by copy, as runs: 0-63 (copy 0). */
  experts(op) {
    const copies = new Map();
    for (const [expert, copy] of this.graph.operations.experts[op]) {
      const ids = copies.get(copy) ?? copies.set(copy, []).get(copy);
      if (ids.length && ids[ids.length - 1][1] === expert - 1) ids[ids.length - 1][1] = expert;
      else ids.push([expert, expert]);
    }
    return [...copies].map(([copy, ids]) => `${runs(ids)} (copy ${copy})`).join("; ");
  }

  tensors(heading, list, end) {
    if (!list.length) return [];
    const bytes = list.reduce((sum, edge) => sum + this.graph.edges.bytes[edge], 0);
    const words = `${heading}: ${plural(list.length, "tensor")}, ${amount(bytes, "B")}`;
    return [h("h3", {}, words), h("ul", { className: "tensors" }, ...list.map((edge) => this.tensor(edge, end)))];
  }

  tensor(edge, end) {
    const { edges, tensors, shapes, dtypes, travels, routes, worst } = this.graph;
    const travel = travels[edges.travel[edge]], dtype = dtypes[edges.dtype[edge]], tensor = tensors[edges.tensor[edge]];
    const ways = routes[edges.routes[edge]];
    const near = edges.hot[edge] >= worst;
    const shape = h("span", { className: "shape" }, shapeWords(tensor, shapes[edges.shape[edge]], dtype));
    const size = `${amount(edges.bytes[edge], "B")} in ${DTYPES[dtype] ?? dtype}; ${TRAVELS[travel]}`;
    return h("li", { className: near ? "near" : "" },
      h("div", {}, end === "source" ? "from " : "to ", this.link(edges[end][edge])),
      tensor ? h("div", {}, h("code", {}, tensor), " ", shape) : null,
      tensor ? h("div", { title: `${edges.bytes[edge]} bytes` }, size) : null,
      ways.length ? this.ways(edge, ways) : null,
    );
  }

  /** The links that a tensor crosses, the costliest first. */
  ways(edge, ways) {
    const { edges, pairs, links, operations, kinds, costs, worst } = this.graph;
    const share = new Map();
    for (const way of ways) for (const [link, part] of pairs[way]) share.set(link, (share.get(link) ?? 0) + part);
    // The costs are those of dispatch; its results come back over the links of the opposite direction.
    const source = edges.source[edge], dispatch = kinds[operations.kind[source]][0].startsWith("dispatch");
    const cost = (dispatch && costs[operations.layer[source]]) || {};
    const order = [...share].sort((a, b) => (cost[b[0]] ?? 0) - (cost[a[0]] ?? 0));
    const between = ways.length === 1 ? `node ${ways[0].replace(">", " to node ")}` : plural(ways.length, "pair") + " of nodes";
    const near = `among them the layer's busiest${dispatch ? "" : ", when dispatch takes it the other way"}`;
    const words = edges.hot[edge] >= worst ? `, ${near}` : "";
    const head = ["link", "share", ...(dispatch ? ["all of dispatch: tokens", "µs", "cost"] : [])];
    const rows = order.map(([link, part]) => {
      const cells = [links[link], `${Math.round(part * 1000) / 10}%`, ...(dispatch ? this.carried(link, cost[link] ?? 0) : [])];
      return h("tr", {}, ...cells.map((cell) => h("td", {}, cell)));
    });
    return h("details", {}, h("summary", {}, `${between}: ${plural(order.length, "link")}${words}`),
      h("table", {}, h("tr", {}, ...head.map((cell) => h("th", { scope: "col" }, cell))), ...rows));
  }

  /** Plain tokens, microseconds and cost of a link, as texts. */
  carried(link, cost) {
    const [each, us] = this.graph.perToken[link], tokens = cost / each;
    const micros = (tokens * us).toLocaleString("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
    return [count(Math.round(tokens)), micros, count(Math.round(cost))];
  }

  /** A row of a list of links, with a bar as long as its cost. */
  row(name, link, cost, most, near) {
    const [tokens, us, costs] = this.carried(link, cost);
    return h("li", { className: near ? "near" : "", title: `${tokens} tokens, ${us} µs (cost ${costs})` }, name,
      h("span", { className: "track" }, h("span", { className: "bar", style: { width: `${(100 * cost) / most}%` } }), this.graph.links[link]),
      h("span", { className: "number" }, `${tokens} tokens, ${us} µs (cost ${costs})`));
  }

  /** The costliest links of a layer, with bars. */
  worst(layer, limit) {
    const { costs, equal } = this.graph;
    const order = Object.entries(costs[layer]).sort((a, b) => b[1] - a[1]);
    const most = order[0]?.[1];
    if (!most) return [h("h3", {}, `Layer ${layer}: nothing crosses between nodes`)];
    const rows = order.slice(0, limit).map(([link, cost]) => this.row(null, Number(link), cost, most, cost >= equal * most));
    const level = order.filter(([, cost]) => cost >= equal * most).length;
    const alike = level > 1 ? ` ${level} are within ${Math.round(100 - equal * 100)}% of the costliest, so equally busy.` : "";
    return [
      h("h3", {}, `Busiest links of layer ${layer}`),
      h("p", { className: "note" }, `${limit < order.length ? `${limit} of ` : ""}${plural(order.length, "link")}, the costliest first.${alike} ${this.graph.costNote}`),
      h("ol", { className: "bars" }, ...rows),
    ];
  }

  overview() {
    const { operations, edges, name, view, nodes, gpusPerNode, costs } = this.graph;
    const layers = Object.keys(costs).map(Number);
    const worst = layers.map((layer) => [layer, ...Object.entries(costs[layer]).reduce((a, b) => (b[1] > a[1] ? b : a), [null, 0])]);
    const order = worst.filter(([, , cost]) => cost > 0).sort((a, b) => b[2] - a[2]);
    const most = order[0]?.[2];
    const parts = [
      h("header", {}, h("h2", { tabIndex: -1 }, name)),
      h("p", { className: "id" }, view),
      h("p", {}, `${plural(operations.id.length, "operation")} and ${plural(edges.source.length, "tensor")} on ${plural(nodes.length, "node")} of ${plural(gpusPerNode, "GPU")}. Click an operation for its details.`),
    ];
    if (layers.length === 1) return [...parts, ...this.worst(layers[0], 24)];
    if (!order.length) return parts;
    const rows = order.map(([layer, link, cost]) => {
      const go = (event) => {
        event.preventDefault();
        find("query").value = `layer ${layer}`;
        this.page.look(find("query").value);
      };
      return this.row(h("a", { href: `#q=layer+${layer}`, onclick: go }, `layer ${layer}`), Number(link), cost, most, false);
    });
    return [...parts, h("h3", {}, "Busiest link of each layer"),
      h("p", { className: "note" }, `The costliest layer first. ${this.graph.costNote}`),
      h("ol", { className: "bars three" }, ...rows)];
  }
}

/** The swatches of the legend; the rest of it never changes. */
function fillLegend({ nodes, warning }) {
  const stripes = { plain: 0, rising: 135, upright: 90, level: 0, falling: 45 };
  for (const [node, [colour, hatch, stripe]] of nodes.entries()) {
    const line = `${stripe}99 0 2px, transparent 2px 7px`; // six tenths opaque, as in the drawing
    const image = hatch === "plain" ? "none" : `repeating-linear-gradient(${stripes[hatch]}deg, ${line})`;
    const open = () => {
      find("query").value = `node ${node}`;
      find("query").dispatchEvent(new Event("input"));
    };
    find("nodes").append(h("button", { type: "button", title: `Find what node ${node} does`, onclick: open, style: { backgroundColor: colour, backgroundImage: image } }, `node ${node}`));
  }
  document.documentElement.style.setProperty("--warning", warning);
}
