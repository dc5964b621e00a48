// The card of the pinned node: what it is joined to, and what it holds.

const SIDES = ["first side", "second side"];

// Returns a function of a node's number that returns its card.
function cards(circuit, view) {
  const byKey = new Map(circuit.nodes.map((node, i) => [node.key, i]));
  const drawn = new Map(view.nodes.map((node) => [node.dataset.key, node]));

  function link(key, id = circuit.id) {
    const a = make("a", "", key);
    a.href = `#${id}/${key}`;
    return a;
  }

  function edgeList(title, edges, other) {
    if (!edges.length) return [make("h4", "", title)];
    const most = Math.max(...edges.map((edge) => Math.abs(edge[2] ?? 0)));
    const rows = edges.map((edge) => {
      const bar = make("span", "weight");
      colour(bar, edge[2], most);
      const loss = edge[3] === null ? "" : shown(edge[3]);
      return make("tr", "",
        make("td", "", link(circuit.nodes[other(edge)].key)),
        make("td", "num", shown(edge[2])), make("td", "", bar),
        make("td", "num", loss));
    });
    const head = make("tr");
    const hasLoss = edges.some((edge) => edge[3] !== null);
    for (const [name, kind] of [["node", ""], ["weight", "num"], ["", ""],
      [hasLoss ? "loss without" : "", "num"]]) {
      head.append(make("th", kind, name));
    }
    const table = make("table", "", make("thead", "", head),
      make("tbody", "", ...rows));
    return [make("h4", "", title), make("div", "list", table)];
  }

  function wires(node) {
    const others = drawn.has(node.key) ? view.wiredTo(drawn.get(node.key)) : [];
    if (!others.length) return [];
    const isRead = drawn.get(node.key).dataset.role === "read";
    const row = make("p", "links");
    for (const other of others) row.append(link(other.dataset.key), " ");
    const title = isRead ? "Its residual channel is written by" :
      "Its residual channel is read by";
    return [make("h4", "", title), row];
  }

  function weighted(title, pairs) {
    if (!pairs) return [];
    const row = make("div", "weighted");
    for (const [number, weight] of pairs) {
      const size = make("small", "", shown(weight));
      row.append(make("span", "", token(number), size));
    }
    return [make("h4", "", title), row];
  }

  function facts(node) {
    const list = make("dl");
    const add = (name, ...value) =>
      list.append(make("dt", "", name), make("dd", "", ...value));
    if (node.part) add("part", node.part);
    if (node.head) add("head", node.head);
    add("mean (ablation value)", shown(node.mean));
    for (const [name, loss] of node.losses) {
      add(`${name} without it`, `${shown(loss)} nats`);
    }
    if (node.also) {
      const links = node.also.flatMap((i) =>
        [link2(DATA.circuits[i], node.key), " "]);
      add("also in", ...links);
    }
    return list;
  }

  function link2(other, key) {
    const a = link(key, other.id);
    a.textContent = other.task;
    return a;
  }

  return (key) => {
    const i = byKey.get(key);
    const node = circuit.nodes[i];
    const into = circuit.edges.filter((edge) => edge[1] === i);
    const out = circuit.edges.filter((edge) => edge[0] === i);
    const column = (...parts) => make("div", "cell", ...parts.flat());
    const card = make("div", "columns",
      column(make("h3", "", node.key), facts(node), wires(node)),
      column(edgeList(`Edges in: ${into.length}`, into, (edge) => edge[0]),
        edgeList(`Edges out: ${out.length}`, out, (edge) => edge[1])),
      column(weighted("Reads from the embedding", node.reads),
        weighted("Writes to the unembedding", node.writes),
        node.histogram ? histograms(circuit, node) : []));
    if (!node.values) return [card];
    return [card, ...snippets(node), make("p", "define",
      "Values are those of the whole model, stored in 8 bits: in steps of " +
      `${shown(node.scale / 127)}, up to ±${shown(node.scale)}.`)];
  };
}

function answerOf(circuit, side) {
  const answers = circuit.prompts.filter((prompt) => !prompt.own)
    .map((prompt) => prompt.sides[side]?.answers[0]);
  const known = new Set(answers.filter((answer) => answer !== undefined));
  return known.size === 1 ? [" ", token([...known][0])] : [];
}

// Two small histograms on one axis, above one another.
function histograms(circuit, node) {
  const [low, high, ...counts] = node.histogram;
  const parts = [make("h4", "", "On the task's two sides")];
  const most = Math.max(1, ...counts.flat());
  counts.forEach((bins, side) => {
    if (!bins.some((count) => count)) return;
    const total = bins.reduce((sum, count) => sum + count, 0);
    const svg = draw("svg", { class: `histogram side${side}`, role: "img",
      viewBox: "0 0 240 40", preserveAspectRatio: "none" }, draw("title"));
    svg.firstChild.textContent = `${SIDES[side]}: ` + bins.map((count, bin) =>
      `${count} from ${shown(low + (high - low) * bin / bins.length)}`)
      .filter((_, bin) => bins[bin]).join(", ");
    const width = 240 / bins.length;
    bins.forEach((count, bin) => {
      const height = count ? Math.max(1.5, 38 * count / most) : 0;
      svg.append(draw("rect", { x: bin * width + 0.5, y: 40 - height,
        width: width - 1, height }));
    });
    svg.append(draw("path", { class: "axis", d: "M0 40H240" }));
    parts.push(make("p", "sidename", SIDES[side],
      ...answerOf(circuit, side), `, ${total} prompts`), svg);
  });
  parts.push(make("p", "ends", make("span", "", shown(low)),
    make("span", "", shown(high))), make("p", "define",
    "Of each test prompt, the value that is furthest from the mean."));
  return parts;
}

function snippets(node) {
  const list = (title, none, found) => {
    const items = found.map(([window, first, peak, packed]) => {
      const [file, tokens] = DATA.windows[window];
      const values = unpack(packed, node.scale);
      const row = colouredTokens(tokens.slice(first, first + values.length),
        values, node.scale, peak - first);
      return make("li", "", make("p", "source", make("strong", "",
        shown(values[peak - first])), ` ${file}`), row);
    });
    return make("div", "cell", make("h4", "", title),
      items.length ? make("ol", "snippets", ...items) :
        make("p", "define", none));
  };
  if (!DATA.windows.length) return [];
  return [make("div", "pair",
    list("Held-out code that excites it most", "It is never above 0 there.",
      node.most),
    list("Held-out code where it is lowest", "It is never below 0 there.",
      node.least))];
}
