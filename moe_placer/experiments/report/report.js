const data = JSON.parse(document.getElementById("data").textContent);
/** @type {(id: string) => any} */
const $ = id => document.getElementById(id);
const unknown = "–";

// Tables: a heading sorts, a second time the other way round; what has no number comes last.
function sort(header) {
  const table = header.closest("table"), place = header.cellIndex;
  const down = header.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", down ? "descending" : "ascending");
  const key = row => row.cells[place].dataset.number, sign = down ? -1 : 1;
  const numeric = [...table.tBodies[0].rows].some(row => key(row) !== undefined);
  const compare = (a, b) => {
    if (!numeric) return sign * a.cells[place].textContent.localeCompare(b.cells[place].textContent, "en", { numeric: true });
    if (key(a) === undefined || key(b) === undefined) return Number(key(a) === undefined) - Number(key(b) === undefined);
    return sign * (Number(key(a)) - Number(key(b)));
  };
  table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
}
/** @type {NodeListOf<HTMLTableElement>} */
const sortable = document.querySelectorAll("table.sortable");
for (const table of sortable)
  table.tHead.addEventListener("click", event => {
    const clicked = /** @type {Element} */ (event.target);
    if (clicked.closest("button")) sort(clicked.closest("th"));
  });

// Charts. Their records have the colours: every solver has one on the whole page, or is grey.
function specification(name, values, description, height) {
  const chart = structuredClone({ ...data.charts[name], config: data.config, description, data: { values } });
  chart.height = height ?? (chart.height.step ? chart.height.step * values.length : chart.height);
  for (const parameter of chart.params) if (parameter.name === "paper") parameter.value = "var(--paper)";
  return chart;
}
async function draw(id, name, values, height = undefined) {
  const figure = $(id);
  figure.hidden = values.length === 0;
  if (figure.hidden) return;
  const description = figure.querySelector("figcaption").textContent;
  // @ts-expect-error: a global of the library that the page has before this program
  const shown = await vegaEmbed(figure.querySelector(".chart"), specification(name, values, description, height),
    { actions: false, renderer: "svg", ast: true, defaultStyle: false });
  figure.shown?.finalize();
  figure.shown = shown;
}

// Charts are drawn anew for paper, which is narrower than most screens, so that their letters are not shrunk with them.
const paperWidth = 700;
function fit(width) {
  for (const figure of /** @type {NodeListOf<any>} */ (document.querySelectorAll("figure"))) {
    const view = figure.hidden ? null : figure.shown?.view;
    if (view && view.width() > paperWidth - 100) view.signal("width", width ?? view.container().clientWidth).run();
  }
}
addEventListener("beforeprint", () => fit(paperWidth));
addEventListener("afterprint", () => dispatchEvent(new Event("resize")));

// A table of layers by rows as cells, as records.cells does.
function cells(table) {
  if (!table.values.some(values => values.some(Boolean))) return [];
  return table.layers.flatMap((layer, l) => {
    const worst = table.values[l].some(Boolean) ? table.values[l].indexOf(Math.max(...table.values[l])) : -1;
    return table.rows.map((row, r) => {
      const value = table.values[l][r], [cost, us] = table.perToken?.[r] ?? [];
      return { layer, row, value, worst: r === worst, ...(cost ? { plain: value / cost, us: (value / cost) * us } : {}) };
    });
  });
}
async function unpacked(text) {
  const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
}
const whole = value => value.toLocaleString("en", { maximumFractionDigits: 0, minimumFractionDigits: 0 });
const tenth = value => value.toLocaleString("en", { maximumFractionDigits: 1, minimumFractionDigits: 1 });
// A link's plain tokens, their time one way, and its cost.
const carried = (plain, us, cost) => `${figure(plain)} tokens, ${tenth(us)} µs (cost ${figure(cost)})`;
const figure = value => Math.abs(value) >= 1000 ? whole(value) : value.toLocaleString("en", { maximumSignificantDigits: 5 });
const element = (tag, text, attributes = {}) => {
  const made = Object.assign(document.createElement(tag), { textContent: text });
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
};

let chosen = null, details = null;

function tabulate(run) {
  const body = $("layer-table").tBodies[0];
  for (const header of $("layer-table").tHead.rows[0].cells) header.removeAttribute("aria-sort");
  body.replaceChildren(...run.table.map(([layer, z, bound, proof, recheckable, link, plain, us], place) => {
    const row = document.createElement("tr"), header = element("th", "", { scope: "row", "data-number": layer });
    const button = element("button", `layer ${layer}`, { type: "button", "aria-controls": "placement", "aria-expanded": "false" });
    button.addEventListener("click", () => open(place, button));
    header.append(button);
    const number = (value, text) => element("td", value === null ? unknown : text(value), { class: "number", ...(value === null ? {} : { "data-number": value }) });
    const gap = bound > 0 ? z / bound - 1 : z === 0 ? 0 : null;
    row.append(header, number(z, figure), number(bound, figure), number(gap, value => (100 * value).toFixed(2) + "%"),
      element("td", proof === null ? unknown : proof + (recheckable ? "" : " (the solver's word)")), element("td", link), number(plain, figure), number(us, tenth));
    return row;
  }));
}

// The placement of a layer: what every GPU holds.
function open(place, button) {
  if (!details) return;
  const [layer, z, , , , link, plain, us] = chosen.run.table[place], experts = details.gpu[place];
  const held = chosen.instance.gpuNode.map(() => []);
  experts.forEach((replicas, expert) => replicas.forEach((gpus, replica) => {
    for (const gpu of [gpus].flat()) held[gpu].push(replicas.length > 1 ? `${expert}.${replica}` : `${expert}`);
  }));
  const nodes = new Map();
  chosen.instance.gpuNode.forEach((node, gpu) => nodes.set(node, [...(nodes.get(node) ?? []), gpu]));
  const width = Math.max(...[...nodes.values()].map(gpus => gpus.length));
  const table = $("placement").querySelector("table"), head = document.createElement("tr");
  head.append(element("th", "node", { scope: "col" }), ...Array.from({ length: width }, (_, at) => element("th", `GPU +${at}`, { scope: "col" })));
  table.tHead.replaceChildren(head);
  table.tBodies[0].replaceChildren(...[...nodes].map(([node, gpus]) => {
    const row = document.createElement("tr");
    row.append(element("th", `node ${node}, from GPU ${gpus[0]}`, { scope: "row" }), ...gpus.map(gpu => element("td", held[gpu].join(", ") || unknown)));
    return row;
  }));
  for (const other of $("layer-table").querySelectorAll("[aria-expanded]")) other.setAttribute("aria-expanded", String(other === button));
  $("placement").hidden = false;
  $("placement-title").textContent = `Layer ${layer}: ${chosen.run.solver} on ${chosen.instance.name}`;
  $("placement-note").textContent = `Busiest link ${link}: ${carried(plain, us, z)}. Numbers are experts; 17.1 is replica 1 of expert 17, counted from 0.`;
  $("placement-title").focus();
  $("placement").scrollIntoView({ block: "nearest" });
}
function close() {
  const button = $("layer-table").querySelector("[aria-expanded=true]");
  $("placement").hidden = true;
  button?.setAttribute("aria-expanded", "false");
  button?.focus();
}
$("close").addEventListener("click", close);
$("placement").addEventListener("keydown", event => { if (event.key === "Escape") close(); });

const limited = (table, what) => table.rows.length < table.of ? `The ${table.rows.length} hottest of ${table.of} ${what}.` : "";
async function show() {
  document.body.removeAttribute("data-ready");
  const instance = data.instances[$("instance").value], run = instance.runs[$("solver").value];
  const now = { instance, run };
  chosen = now;
  $("placement").hidden = true;
  const loaded = run.details ? await unpacked(run.details) : null;
  if (chosen !== now) return;  // somebody chose again meanwhile
  details = loaded;
  $("shown").textContent = `Below: ${run.solver} on ${instance.name}.` +
    (run.layers.length ? "" : " No token leaves its node, so no link is drawn.") +
    (details ? "" : " Its link loads, GPU loads and placement are left out, to keep this page under 6 MB.");
  $("layers-note").textContent = `${run.solver} on ${instance.name}. ` + (details ? "Open a layer to see which GPU holds which experts." : "Its placement is left out of this page.");
  tabulate(run);
  if (details) {
    const worst = details.fabric.find(record => record.worst);
    const drawn = details.fabric.filter(record => record.kind === "link");
    const level = drawn.filter(record => worst && record.value >= 0.99 * worst.value).length;
    const alike = level > 1 ? `${level} links are within 1% of it: they are equally loaded. ` : "";
    $("fabric").querySelector(".said").textContent = (worst ? `The worst, in red: ${worst.name}: ${carried(worst.plain, worst.us, worst.value)}. ${alike}` : "") +
      limited({ rows: drawn, of: details.links.of }, "links");
    $("links").querySelector(".said").textContent = limited(details.links, "links");
    $("gpus").querySelector(".said").textContent = limited(details.gpus, "GPUs");
  }
  await draw("time", "time", instance.times);
  await draw("layer-chart", "layers", run.layers);
  await draw("fabric", "fabric", details ? details.fabric : []);
  await draw("links", "links", details ? cells(details.links) : [], details?.links.height);
  await draw("gpus", "gpus", details ? cells(details.gpus) : [], details?.gpus.height);
  if (chosen === now) document.body.dataset.ready = "";
}
function chooseInstance() {
  const runs = data.instances[$("instance").value].runs, before = $("solver").selectedOptions[0]?.textContent;
  $("solver").replaceChildren(...runs.map((run, place) => element("option", run.solver, { value: place })));
  $("solver").value = Math.max(0, runs.findIndex(run => run.solver === before));
  return show();
}
async function start() {
  await draw("step", "step", data.step);
  await draw("profile", "profile", data.profile);
  await draw("held-out", "held-out", data.heldOut);
  if (data.instances.length === 0) {
    for (const id of ["choice", "time", "layer-chart", "fabric", "links", "gpus", "layers"]) $(id).hidden = true;
    $("shown").textContent = "No run gave a placement, so there is nothing to draw.";
    document.body.dataset.ready = "";
    return;
  }
  $("instance").replaceChildren(...data.instances.map((instance, place) => element("option", instance.name, { value: place })));
  $("instance").addEventListener("change", chooseInstance);
  $("solver").addEventListener("change", show);
  await chooseInstance();
}
start();
