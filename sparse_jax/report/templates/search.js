// Finds nodes by channel, site or token.

// Whether a node, as the page's data knows it, answers a query.
function answers(node, query) {
  const channel = node.key.split(":")[1];
  if (/^\d+$/.test(query)) {
    if (channel === query) return true;
  } else if (node.key.includes(query)) {
    return true;
  }
  const near = [...node.reads ?? [], ...node.writes ?? []]
    .map((pair) => pair[0]);
  for (const [window, , peak] of node.most ?? []) {
    near.push(DATA.windows[window][1][peak]);
  }
  return near.some((number) => tokenText(number).includes(query));
}

// Adds a search to a drawing; Enter pins what was found, one after another.
function searchable(view, circuit, choose) {
  const input = make("input");
  input.type = "search";
  input.placeholder = "channel, site or token";
  input.autocomplete = "off";
  const output = make("output");
  const byKey = new Map(view.nodes.map((node) => [node.dataset.key, node]));
  let hits = [], next = 0;

  input.addEventListener("input", () => {
    for (const node of hits) node.classList.remove("hit");
    // Typed as it is shown, too.
    const query = input.value.trim().replaceAll(" ", "·");
    hits = !query ? [] : circuit.nodes.filter((node) => answers(node, query))
      .map((node) => byKey.get(node.key)).filter(Boolean);
    for (const node of hits) node.classList.add("hit");
    next = 0;
    output.textContent = !query ? "" :
      `${hits.length} node${hits.length === 1 ? "" : "s"}`;
    if (hits.length) view.bringIntoView(hits[0]);
  });
  input.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !hits.length) return;
    event.preventDefault();
    const node = hits[next++ % hits.length];
    choose(node.dataset.key);
    view.bringIntoView(node);
  });
  view.tools.append(make("label", "find", "find ", input), output);
}
