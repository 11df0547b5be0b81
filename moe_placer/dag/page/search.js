// Understands what is typed: "expert 12", "gpu 37", "layer 5-7", "node 3", an operation's name, or several of them.

const FIELDS = { layer: "layer", l: "layer", expert: "expert", e: "expert", gpu: "gpu", g: "gpu", node: "node", n: "node",
  copy: "copy", replica: "copy", r: "copy", group: "group", dp: "group" };

/** The operations of a deployment, found by what is known of them. */
class Search {
  constructor(graph) {
    this.graph = graph;
    const { operations, kinds } = graph;
    this.names = operations.id.map((id, op) => `${id} ${kinds[operations.kind[op]].join(" ")}`.toLowerCase());
  }

  /** Split into conditions: { field, ranges } or { word }.
   * @returns {{ field?: string, ranges?: number[][], word?: string }[]} */
  read(text) {
    const conditions = [];
    const words = text.toLowerCase().replace(/\s*([-,])\s*(?=\d)/g, "$1").match(/\S+/g) || [];
    for (let at = 0; at < words.length; at++) {
      const [, name, numbers] = /^([a-z]*?)s?[:=]?(\d[\d,-]*)?$/.exec(words[at]) || [];
      const field = Object.hasOwn(FIELDS, name ?? "") ? FIELDS[name] : undefined;
      const given = numbers ?? (/^\d[\d,-]*$/.test(words[at + 1] ?? "") ? words[at + 1] : undefined);
      if (field && given) {
        if (numbers === undefined) at += 1;
        const ranges = given.split(",").filter(Boolean).map((part) => part.split("-").map(Number));
        conditions.push({ field, ranges: ranges.map(([low, high]) => [low, high || low]) });
      } else {
        conditions.push({ word: words[at] });
      }
    }
    return conditions;
  }

  /** Places of the operations that meet every condition, in the order of the step. */
  find(text) {
    const conditions = this.read(text);
    if (!conditions.length) return [];
    const found = [];
    for (let op = 0; op < this.names.length; op++) {
      if (conditions.every((condition) => this.meets(op, condition))) found.push(op);
    }
    return found;
  }

  /** @param {{ field?: string, ranges?: number[][], word?: string }} condition */
  meets(op, condition) {
    const { word, field, ranges } = condition;
    if (word !== undefined) return this.names[op].includes(word);
    return ranges.some(([low, high]) => this.overlaps(op, field, low, high));
  }

  overlaps(op, field, low, high) {
    const { operations, gpus, gpusPerNode } = this.graph;
    const within = (value) => value !== null && low <= value && value <= high;
    if (field === "layer" || field === "group") return within(operations[field][op]);
    if (field === "expert") return operations.experts[op].some(([expert]) => within(expert));
    if (field === "copy") return operations.experts[op].some(([, copy]) => within(copy));
    const size = field === "node" ? gpusPerNode : 1;
    return gpus[operations.gpus[op]].some(
      ([first, last]) => Math.floor(first / size) <= high && low <= Math.floor(last / size),
    );
  }

  /** Say why nothing was found, where a number is out of range. */
  explain(text) {
    const { operations, gpus } = this.graph;
    const last = (values) => values.reduce((most, value) => Math.max(most, value ?? -1), -1);
    const ends = {
      layer: last(operations.layer), group: last(operations.group),
      gpu: last(gpus.flat().map((run) => run[1])), node: this.graph.nodes.length - 1,
      expert: last(operations.experts.flat().map(([expert]) => expert)),
      copy: last(operations.experts.flat().map(([, copy]) => copy)),
    };
    for (const { field, ranges } of this.read(text)) {
      if (field && ranges.every(([low]) => low > ends[field])) {
        return ends[field] < 0 ? `no ${field} here` : `no such ${field}: the last is ${ends[field]}`;
      }
    }
    return "no match";
  }
}
