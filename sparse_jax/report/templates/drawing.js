// The drawing of a circuit: what is pointed at lights up, a click pins it.

const HINT = "Point at a node to see its edges; click, or press Enter, to " +
  "pin it. With the keyboard: Tab, then the arrow keys; + and − zoom.";

// Returns what other parts of the page do with it.
// `choose(key)` is called as the user pins a node, null as it is let go.
function drawing(figure, choose) {
  const svg = figure.querySelector("svg.circuit");
  const detail = figure.querySelector(".detail");
  const nodes = [...svg.querySelectorAll(".node")];
  const byKey = new Map(nodes.map((node) => [node.dataset.key, node]));
  const zoom = zoomable(figure.querySelector(".drawing"), svg);
  let pinned = null;
  detail.hidden = false;

  function clear() {
    for (const item of svg.querySelectorAll(".on, .at")) {
      item.classList.remove("on", "at");
    }
    svg.classList.remove("dim");
    detail.replaceChildren(make("p", "", HINT));
  }

  // A write reaches the reads of its residual channel in later columns.
  function isWired(a, b) {
    if (a.dataset.channel !== b.dataset.channel) return false;
    if (a.dataset.role === "read") return b.dataset.role === "write" &&
      Number(b.dataset.column) < Number(a.dataset.column);
    return a.dataset.role === "write" && b.dataset.role === "read" &&
      Number(a.dataset.column) < Number(b.dataset.column);
  }

  const wiredTo = (node) => nodes.filter((other) => isWired(node, other));

  function show(node) {
    clear();
    const { key, channel } = node.dataset;
    svg.classList.add("dim");
    node.classList.add("on", "at");
    for (const item of svg.querySelectorAll("[data-from]")) {
      const { from, to } = item.dataset;
      if (from !== key && to !== key) continue;
      item.classList.add("on");
      for (const end of [from, to]) byKey.get(end).classList.add("on");
    }
    const wired = wiredTo(node);
    for (const other of wired) other.classList.add("on");
    if (wired.length) {
      for (const item of svg.querySelectorAll(".wire, .channel")) {
        if (item.dataset.channel === channel) item.classList.add("on");
      }
    }
    detail.replaceChildren(make("p", "", node.getAttribute("aria-label")));
  }

  function rest() {
    if (pinned) show(pinned);
    else clear();
  }

  // Pins the node of a key, shown where it was hidden; null lets go.
  function pin(key) {
    if (pinned) pinned.setAttribute("aria-pressed", "false");
    pinned = byKey.get(key) ?? null;
    if (pinned) {
      if (isHidden(pinned)) showSupport(switchBox.checked = true);
      pinned.setAttribute("aria-pressed", "true");
      enterAt(pinned);
    }
    rest();
  }

  const toggle = (node) => choose(node === pinned ? null : node.dataset.key);

  function move(node, key) {
    const box = (other) => other.querySelector("rect").getBBox();
    const column = Number(node.dataset.column);
    const here = box(node).y;
    const step = { ArrowLeft: -1, ArrowRight: 1 }[key];
    const open = nodes.filter((n) => !isHidden(n));
    let near;
    if (step) {
      near = open.filter((n) => Number(n.dataset.column) === column + step);
    } else {
      const down = key === "ArrowDown";
      near = open.filter(
        (n) => Number(n.dataset.column) === column && n !== node &&
          (down ? box(n).y > here : box(n).y < here));
    }
    near.sort((a, b) => Math.abs(box(a).y - here) - Math.abs(box(b).y - here));
    if (!near.length) return;
    enterAt(near[0]);
    near[0].focus();
  }

  // Makes a node the one that the Tab key leads to.
  function enterAt(node) {
    for (const other of nodes) {
      other.setAttribute("tabindex", other === node ? "0" : "-1");
    }
  }

  const isHidden = (node) => node.closest(".core-only .support") !== null;
  const fullHeight = Number(svg.getAttribute("height"));

  function showSupport(isShown) {
    svg.classList.toggle("core-only", !isShown);
    zoom.setHeight(isShown ? fullHeight : Number(svg.dataset.coreHeight));
    if (pinned && isHidden(pinned)) choose(null);
    const entry = nodes.find((node) => node.getAttribute("tabindex") === "0");
    if (entry && !isHidden(entry)) return;
    enterAt(nodes.find((node) => !isHidden(node)));
  }

  const find = (event) => event.target.closest(".node");
  svg.addEventListener("mouseover", (event) => {
    const node = find(event);
    if (node) show(node);
    else rest();
  });
  svg.addEventListener("mouseleave", rest);
  svg.addEventListener("focusin", (event) => {
    if (find(event)) show(find(event));
  });
  svg.addEventListener("focusout", rest);
  svg.addEventListener("click", (event) => {
    if (find(event)) toggle(find(event));
    else if (pinned) choose(null);
  });
  svg.addEventListener("keydown", (event) => {
    const node = find(event);
    if (!node) return;
    if (event.key === "Enter" || event.key === " ") toggle(node);
    else if (event.key === "Escape") choose(null);
    else if (event.key.startsWith("Arrow")) move(node, event.key);
    else return;
    event.preventDefault();
  });
  clear();

  const tools = make("div", "tools");
  figure.prepend(tools);
  const choice = figure.querySelector(".switch");
  const switchBox = choice?.querySelector("input");
  if (choice) {
    choice.hidden = false;
    tools.append(choice);
    switchBox.addEventListener("change", () => showSupport(switchBox.checked));
    showSupport(switchBox.checked);
  }
  tools.append(zoom.buttons, ...widths(figure, svg));
  const reveal = () => pinned && zoom.bringIntoView(pinned);
  const { bringIntoView } = zoom;
  return { tools, pin, nodes, wiredTo, reveal, bringIntoView };
}

// Returns what chooses between widths of edges, where both were measured.
function widths(figure, svg) {
  const edges = [...svg.querySelectorAll(".edge")];
  if (!edges.some((edge) => edge.dataset.byLoss)) return [];
  const byWeight = edges.map((edge) => edge.getAttribute("stroke-width"));
  const select = make("select");
  select.append(new Option("|weight|", "weight"),
    new Option("task loss without it", "loss"));
  const caption = figure.querySelector(".legend .neg").closest("li").lastChild;
  select.addEventListener("change", () => {
    const isLoss = select.value === "loss";
    edges.forEach((edge, i) => {
      const width = isLoss ? edge.dataset.byLoss ?? "0.4" : byWeight[i];
      edge.setAttribute("stroke-width", width);
    });
    caption.textContent = "negative edge; width is " +
      (isLoss ? "the task loss without it, thinnest where not measured" :
        "|weight|");
  });
  return [make("label", "", "edge width ", select)];
}
