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

const views = new Map();

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
  const current = views.has(id) || id === "overview" ? id :
    [...views.keys()][0] ?? "overview";
  for (const [other, view] of views) view.show(other === current ? key : null);
  if (!list) return;
  for (const section of document.querySelectorAll("[data-view]")) {
    section.hidden = section.dataset.view !== current;
  }
  for (const link of list.querySelectorAll("a")) {
    const isCurrent = link.getAttribute("href") === `#${current}`;
    if (isCurrent) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
}

for (const circuit of DATA?.circuits ?? []) {
  views.set(circuit.id, circuitView(circuit));
}
document.querySelectorAll("table.sortable").forEach(sortable);
if (views.size) {
  window.addEventListener("popstate", follow);
  window.addEventListener("hashchange", () => {
    follow();
    const [id, key] = read();
    if (!key) document.getElementById(id)?.scrollIntoView();
  });
  follow();
  // A node's address leads to its drawing.
  const [id, key] = read();
  if (key && views.has(id)) {
    document.querySelector(`#${id} figure`)?.scrollIntoView();
    requestAnimationFrame(() => views.get(id).reveal?.());
  }
}
