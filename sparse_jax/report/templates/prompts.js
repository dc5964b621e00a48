// A task's prompts, coloured by what the pinned node holds on them.

const CURVES = { "full model": "full", circuit: "circuit", core: "circuit",
  robust: "robust" };

// Adds the panel after a figure; returns a function of the pinned node's key.
function prompts(circuit, place) {
  if (!circuit.prompts?.length) return () => {};
  const sides = circuit.prompts.flatMap((prompt) => prompt.sides);
  // Where a side's values start, and where its triangle of looks does.
  let start = 0, startLooks = 0;
  for (const side of sides) {
    const { length } = side.tokens;
    Object.assign(side, { start, startLooks });
    start += length;
    startLooks += length * (length + 1) / 2;
  }
  const select = make("select");
  let tests = 0, own = 0;
  for (const prompt of circuit.prompts) {
    const name = prompt.own ? `own prompt ${++own}` : `test pair ${++tests}`;
    const text = prompt.sides[0].tokens.map(tokenText).join("");
    select.append(new Option(`${name}: ${text.slice(-60)}`));
  }
  const output = make("output");
  const body = make("div", "sides");
  place.append(make("h3", "", "Prompts"),
    make("p", "define", "Tokens are coloured by the pinned node's value: " +
      "blue above 0, orange below. Choose a token to see where its head " +
      "looks from there. The curves are the side's own answer's logit minus " +
      "the other's, after each token, in nats; a circuit's with its fitted " +
      "scale."),
    make("div", "tools", make("label", "", "prompt ", select), output), body);
  place.hidden = false;
  let node = null, at = -1;

  function render() {
    const prompt = circuit.prompts[select.selectedIndex];
    const values = node?.values ? unpack(node.values, node.scale) : null;
    const of = ({ start, tokens }) =>
      values?.slice(start, start + tokens.length);
    body.replaceChildren();
    output.textContent = values ?
      `coloured by ${node.key}, in steps of ${shown(node.scale / 127)}` :
      "pin a node to colour the tokens";
    prompt.sides.forEach((side, i) => {
      const name = prompt.sides.length > 1 ? SIDES[i] : "prompt";
      body.append(make("h4", "", name, ", answer ", token(side.answers[0]),
        " over ", token(side.answers[1])), tokenRow(side, of(side)));
      if (node?.head && circuit.heads[node.head]) body.append(...looks(side));
      body.append(...curves(side));
    });
    if (!values || prompt.sides.length < 2) return;
    body.append(...difference(prompt, of));
  }

  // Tokens to walk along; one tab stop, the arrow keys go on from there.
  function tokenRow(side, values) {
    const row = make("div", "toks");
    row.setAttribute("role", "group");
    const last = side.tokens.length - 1;
    const chosen = at < 0 || at > last ? last : at;
    const boxes = side.tokens.map((number, i) => {
      const box = token(number, "button");
      box.type = "button";
      box.tabIndex = i === chosen ? 0 : -1;
      if (node?.head) box.setAttribute("aria-pressed", String(i === chosen));
      if (values) {
        box.title = shown(values[i]);
        box.setAttribute("aria-description", shown(values[i]));
        colour(box, values[i], node.scale);
      }
      box.addEventListener("click", () => choose(i));
      return box;
    });
    row.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      const next = boxes[boxes.indexOf(event.target) + step];
      if (!next) return;
      event.preventDefault();
      for (const box of boxes) box.tabIndex = box === next ? 0 : -1;
      next.focus();
    });
    row.append(...boxes);
    return row;
  }

  function choose(i) {
    const rows = [...body.querySelectorAll("[role=group]")];
    const row = rows.findIndex((each) => each.contains(document.activeElement));
    at = i;
    render();
    body.querySelectorAll("[role=group]")[row]?.children[i]?.focus();
  }

  function looks(side) {
    const last = side.tokens.length - 1;
    const from = at < 0 || at > last ? last : at;
    const first = side.startLooks + from * (from + 1) / 2;
    const all = bytes(circuit.heads[node.head]).slice(first, first + from + 1);
    const shares = side.tokens.map((_, i) => (all[i] ?? 0) / 255);
    const most = Math.max(...shares);
    const percent = (share) => `${Math.round(100 * share)}%`;
    const row = make("div", "toks look");
    side.tokens.forEach((number, i) => {
      const box = token(number);
      box.title = percent(shares[i]);
      box.style.setProperty("--share", (shares[i] / (most || 1)).toFixed(3));
      row.append(box);
    });
    const total = shares.reduce((sum, share) => sum + share, 0);
    const nowhere = Math.max(0, 1 - total);
    return [make("p", "source", `head ${node.head} looks from `,
      token(side.tokens[from]), `; at most ${percent(most)} at one token, ` +
        `${percent(nowhere)} nowhere`), row];
  }

  function difference(prompt, of) {
    const [a, b] = prompt.sides;
    const title = make("h4", "", "Difference: first side less second side");
    if (a.tokens.length !== b.tokens.length) {
      return [title, make("p", "define", "The sides have different numbers " +
        "of tokens: there is nothing to subtract.")];
    }
    const [x, y] = [of(a), of(b)];
    const less = x.map((value, i) => value - y[i]);
    return [title, colouredTokens(a.tokens, less, node.scale)];
  }

  select.addEventListener("change", () => {
    at = -1;
    render();
  });
  render();
  return (key) => {
    node = circuit.nodes.find((each) => each.key === key) ?? null;
    render();
  };
}

// The logit difference after each token, of the model and its circuits.
function curves(side) {
  const all = side.differences.flatMap((curve) => curve[1])
    .filter(Number.isFinite);
  const low = Math.min(0, ...all), high = Math.max(0, ...all);
  const span = high - low || 1, [width, height] = [600, 96];
  const y = (value) => 4 + (height - 8) * (high - value) / span;
  const x = (i) => 4 + (width - 8) * (side.tokens.length > 1 ?
    i / (side.tokens.length - 1) : 1);
  const svg = draw("svg", { class: "running", role: "img",
    viewBox: `0 0 ${width} ${height}` }, draw("title"),
  draw("path", { class: "axis", d: `M0 ${y(0)}H${width}` }));
  const legend = make("p", "source", "after the last token: ");
  for (const [name, values] of side.differences) {
    const points = values.map((value, i) => `${x(i)} ${y(value ?? 0)}`);
    svg.append(draw("path", { class: `line ${CURVES[name]}`,
      d: `M${points.join("L")}` }), draw("circle", { r: 3,
      class: `end ${CURVES[name]}`, cx: x(values.length - 1),
      cy: y(values.at(-1) ?? 0) }));
    legend.append(make("span", `curve ${CURVES[name]}`,
      `${name} ${shown(values.at(-1))}`), " ");
  }
  svg.firstChild.textContent = legend.textContent;
  return [svg, legend];
}
