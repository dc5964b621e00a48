// The address says what is shown: #c1 a circuit, #c1/0.attn.q:17 a node of it.

// Returns {show}: a circuit's figure, card and prompts, by the pinned key.
function circuitView(circuit) {
  const section = document.getElementById(circuit.id);
  const figure = section.querySelector("figure[data-circuit]");
  if (!figure) return { show() {} };
  const choose = (key) => go(circuit.id, key);
  const view = drawing(figure, choose);
  searchable(view, circuit, choose);
  const card = section.querySelector(".card");
  const cardOf = cards(circuit, view);
  const colourBy = prompts(circuit, section.querySelector(".prompts"));
  const keys = new Set(circuit.nodes.map((node) => node.key));
  return {
    reveal: view.reveal,
    show(key) {
      const pinned = keys.has(key) ? key : null;
      view.pin(pinned);
      card.hidden = !pinned;
      card.replaceChildren(...pinned ? cardOf(pinned) : []);
      colourBy(pinned);
    },
  };
}

// By the circuit's id; made when it is first shown.
const circuits = new Map();
const views = new Map();

function viewOf(id) {
  if (!views.has(id)) views.set(id, circuitView(circuits.get(id)));
  return views.get(id);
}

function go(id, key) {
  const address = key ? `#${id}/${key}` : `#${id}`;
  if (address !== location.hash) history.pushState(null, "", address);
  follow();
}

function read() {
  try {
    return decodeURIComponent(location.hash.slice(1)).split("/");
  } catch {
    return [""];
  }
}

// Shows what the address names: the first circuit if it names none.
function follow() {
  const [id, key] = read();
  const list = document.querySelector("nav.circuits");
  const current = circuits.has(id) || (list && id === "overview") ? id :
    [...circuits.keys()][0];
  for (const [other, view] of views) if (other !== current) view.show(null);
  // Shown before it is filled: a drawing has to know its room.
  if (!list) {
    viewOf(current).show(key);
    return;
  }
  for (const section of document.querySelectorAll("[data-view]")) {
    section.hidden = section.dataset.view !== current;
  }
  if (circuits.has(current)) viewOf(current).show(key);
  for (const link of list.querySelectorAll("a")) {
    const isCurrent = link.getAttribute("href") === `#${current}`;
    if (isCurrent) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
}

for (const circuit of DATA?.circuits ?? []) circuits.set(circuit.id, circuit);
document.querySelectorAll("table.sortable").forEach(sortable);
if (circuits.size) {
  window.addEventListener("popstate", follow);
  window.addEventListener("hashchange", () => {
    follow();
    const [id, key] = read();
    if (!key) document.getElementById(id)?.scrollIntoView();
  });
  follow();
  // A node's address leads to its drawing.
  const [id, key] = read();
  if (key && circuits.has(id)) {
    document.querySelector(`#${id} figure`)?.scrollIntoView();
    requestAnimationFrame(() => viewOf(id).reveal?.());
  }
}
