// A drawing in a box that scrolls: wheel, buttons, keys and dragging.

const LEAST_ZOOM = 0.2, MOST_ZOOM = 5;
// Below this, labels are too small to read: the box scrolls instead.
const LEAST_START = 0.65;

function zoomable(box, svg) {
  const width = Number(svg.getAttribute("width"));
  let height = Number(svg.getAttribute("height"));
  let scale = 1;

  function resize() {
    svg.setAttribute("width", width * scale);
    svg.setAttribute("height", height * scale);
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  }

  // Zooms so that the point (x, y) of the window stays where it is.
  function zoomTo(wanted, x, y) {
    const next = Math.min(MOST_ZOOM, Math.max(LEAST_ZOOM, wanted));
    const before = svg.getBoundingClientRect();
    const ratio = next / scale;
    scale = next;
    resize();
    const after = svg.getBoundingClientRect();
    box.scrollLeft += after.left - x + (x - before.left) * ratio;
    box.scrollTop += after.top - y + (y - before.top) * ratio;
  }

  function zoomBy(factor) {
    const { left, top, width: w, height: h } = box.getBoundingClientRect();
    zoomTo(scale * factor, left + w / 2, top + h / 2);
  }

  function room() {
    const style = getComputedStyle(box);
    return box.clientWidth - parseFloat(style.paddingLeft) -
      parseFloat(style.paddingRight);
  }

  function fit() {
    scale = Math.min(1, room() / width);
    resize();
  }

  // Room is known once the box is shown; the first time, labels stay readable.
  let isFresh = true;
  new ResizeObserver(() => {
    if (!isFresh || room() <= 0) return;
    isFresh = false;
    scale = Math.min(1, Math.max(LEAST_START, room() / width));
    resize();
  }).observe(box);

  // The wheel scrolls the page until the drawing is in use.
  box.addEventListener("wheel", (event) => {
    const isMine = event.ctrlKey || event.metaKey ||
      box.contains(document.activeElement);
    if (!isMine) return;
    event.preventDefault();
    zoomTo(scale * Math.exp(-event.deltaY / 400), event.clientX, event.clientY);
  }, { passive: false });

  box.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "+" || event.key === "=") zoomBy(1.25);
    else if (event.key === "-") zoomBy(0.8);
    else if (event.key === "0") fit();
    else return;
    event.preventDefault();
  });

  // Fingers scroll the box by themselves; a mouse drags it.
  let drag = null;
  box.addEventListener("pointerdown", (event) => {
    if (event.pointerType !== "mouse" || event.button) return;
    drag = { x: event.clientX, y: event.clientY, left: box.scrollLeft,
      top: box.scrollTop, moved: false };
  });
  box.addEventListener("pointermove", (event) => {
    if (!drag || !event.buttons) return;
    const dx = event.clientX - drag.x, dy = event.clientY - drag.y;
    if (!drag.moved && Math.hypot(dx, dy) < 5) return;
    drag.moved = true;
    box.classList.add("dragged");
    box.setPointerCapture(event.pointerId);
    box.scrollLeft = drag.left - dx;
    box.scrollTop = drag.top - dy;
  });
  box.addEventListener("pointerup", () => box.classList.remove("dragged"));
  box.addEventListener("pointercancel", () => box.classList.remove("dragged"));
  // The click that ends a drag pins nothing.
  box.addEventListener("click", (event) => {
    if (drag?.moved) event.stopPropagation();
    drag = null;
  }, true);

  function bringIntoView(node) {
    const at = node.getBoundingClientRect(), here = box.getBoundingClientRect();
    box.scrollLeft += at.left - here.left - (here.width - at.width) / 2;
    box.scrollTop += at.top - here.top - (here.height - at.height) / 2;
  }

  const buttons = make("span", "zoom",
    button("−", "Zoom out (−)", () => zoomBy(0.8)),
    button("+", "Zoom in (+)", () => zoomBy(1.25)),
    button("fit", "Fit to width (0)", fit));
  const setHeight = (wanted) => {
    height = wanted;
    resize();
  };
  return { buttons, setHeight, bringIntoView };
}
