// Values in 8 bits, and tokens in their colours.

const DATA = JSON.parse(document.getElementById("data")?.textContent ?? "null");

function bytes(base64) {
  return Uint8Array.from(atob(base64), (char) => char.charCodeAt(0));
}

// Returns values that are stored as 128 for 0 and 255 for the scale.
function unpack(base64, scale) {
  return [...bytes(base64)].map((byte) => (byte - 128) / 127 * scale);
}

// Returns a token in a box; `number` is its place among the page's tokens.
function token(number, tag = "bdi") {
  const box = make(tag, "tok");
  for (const [kind, text] of DATA.tokens[number]) {
    const class_ = kind === "empty" ? "ws" : kind;
    box.append(kind ? make("span", class_, text) : text);
  }
  return box;
}

function tokenText(number) {
  return DATA.tokens[number].map((piece) => piece[1]).join("");
}

// Colours an element: blue above 0, orange below, fully at the scale.
function colour(element, value, scale) {
  const share = scale ? Math.min(1, Math.abs(value) / scale) : 0;
  element.classList.remove("above", "below");
  if (value) element.classList.add(value > 0 ? "above" : "below");
  element.style.setProperty("--share", share.toFixed(3));
}

// Returns tokens coloured by values, each with its value in its title.
function colouredTokens(numbers, values, scale, peak = -1) {
  const row = make("div", "toks");
  numbers.forEach((number, i) => {
    const box = token(number);
    box.title = shown(values[i]);
    colour(box, values[i], scale);
    if (i === peak) box.classList.add("peak");
    row.append(box);
  });
  return row;
}
