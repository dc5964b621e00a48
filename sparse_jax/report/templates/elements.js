"use strict";
// The page is complete without a script; this one adds what moves. Everything
// that it shows goes in as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";

// Returns an HTML element of a class with children, elements or text.
function make(tag, className = "", ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

// Returns an SVG element with attributes and children.
function draw(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) {
    element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

function button(label, title, act) {
  const element = make("button", "", label);
  element.type = "button";
  element.title = title;
  element.setAttribute("aria-label", title);
  element.addEventListener("click", act);
  return element;
}

// Returns a number with three significant digits; a dash where there is none.
function shown(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  const text = value === 0 || (size >= 1e-3 && size < 1e6) ?
    String(Number(value.toPrecision(3))) : value.toExponential(2);
  return text.replace("-", "−");
}
