"use strict";
// The page is complete without this: it adds highlighting, sorting and a switch
// for support.

const HINT = "Point at a node to see its edges; click, or press Enter, to " +
  "keep it. With the keyboard: Tab, then the arrow keys.";

function drawing(figure) {
  const svg = figure.querySelector("svg.circuit");
  if (!svg) return;
  const detail = figure.querySelector(".detail");
  const section = figure.closest("section");
  const nodes = [...svg.querySelectorAll(".node")];
  const byKey = new Map(nodes.map((node) => [node.dataset.key, node]));
  const rows = new Map();
  for (const code of section.querySelectorAll("table.nodes [data-key]")) {
    rows.set(code.dataset.key, code.closest("tr"));
  }
  const fullHeight = svg.getAttribute("height");
  let pinned = null;
  detail.hidden = false;

  function clear() {
    for (const item of svg.querySelectorAll(".on, .at")) {
      item.classList.remove("on", "at");
    }
    svg.classList.remove("dim");
    detail.replaceChildren(line(HINT));
  }

  function line(text) {
    const p = document.createElement("p");
    p.textContent = text;
    return p;
  }

  function describe(node) {
    detail.replaceChildren(line(node.getAttribute("aria-label")));
    const row = rows.get(node.dataset.key);
    const notes = row ? [...row.querySelectorAll(".weighted")] : [];
    for (const note of notes) {
      const column = [...row.children].indexOf(note.parentElement);
      const head = row.closest("table").tHead.rows[0].cells[column];
      detail.append(line(head.textContent), note.cloneNode(true));
    }
  }

  // A write reaches the reads of its residual channel in later columns.
  function isWired(a, b) {
    if (a.dataset.channel !== b.dataset.channel) return false;
    if (a.dataset.role === "read") return b.dataset.role === "write" &&
      Number(b.dataset.column) < Number(a.dataset.column);
    return a.dataset.role === "write" && b.dataset.role === "read" &&
      Number(a.dataset.column) < Number(b.dataset.column);
  }

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
    const wired = nodes.filter((other) => isWired(node, other));
    for (const other of wired) other.classList.add("on");
    if (wired.length) {
      for (const item of svg.querySelectorAll(".wire, .channel")) {
        if (item.dataset.channel === channel) item.classList.add("on");
      }
    }
    describe(node);
  }

  function rest() {
    if (pinned) show(pinned);
    else clear();
  }

  function pin(node) {
    if (pinned) pinned.setAttribute("aria-pressed", "false");
    pinned = pinned === node ? null : node;
    if (pinned) pinned.setAttribute("aria-pressed", "true");
    rest();
  }

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

  function showSupport(isShown) {
    svg.classList.toggle("core-only", !isShown);
    const height = isShown ? fullHeight : svg.dataset.coreHeight;
    svg.setAttribute("height", height);
    svg.setAttribute("viewBox", `0 0 ${svg.getAttribute("width")} ${height}`);
    if (pinned && isHidden(pinned)) pin(pinned);
    const entry = nodes.find((node) => node.getAttribute("tabindex") === "0");
    if (!entry || isHidden(entry)) enterAt(nodes.find((node) => !isHidden(node)));
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
  clear();
  svg.addEventListener("click", (event) => {
    if (find(event)) pin(find(event));
    else if (pinned) pin(pinned);
  });
  svg.addEventListener("keydown", (event) => {
    const node = find(event);
    if (!node) return;
    if (event.key === "Enter" || event.key === " ") pin(node);
    else if (event.key === "Escape") {
      pinned = node;
      pin(node);
    } else if (event.key.startsWith("Arrow")) move(node, event.key);
    else return;
    event.preventDefault();
  });

  const choice = figure.querySelector(".switch input");
  if (choice) {
    choice.parentElement.hidden = false;
    choice.addEventListener("change", () => showSupport(choice.checked));
    showSupport(choice.checked);
  }
}

function value(row, column) {
  const text = row.cells[column].textContent.trim();
  const number = Number(text.replace("−", "-").replaceAll(",", ""));
  return text === "" || Number.isNaN(number) ? text : number;
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  if (typeof a === "number") return -1;
  if (typeof b === "number") return 1;
  return a.localeCompare(b, "en", { numeric: true });
}

function sortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const body = table.tBodies[0];
      const rows = [...body.rows].map((row) => [value(row, column), row]);
      rows.sort((a, b) => (up ? 1 : -1) * compare(a[0], b[0]));
      body.append(...rows.map((pair) => pair[1]));
    });
  });
}

document.querySelectorAll("figure[data-circuit]").forEach(drawing);
document.querySelectorAll("table.sortable").forEach(sortable);
