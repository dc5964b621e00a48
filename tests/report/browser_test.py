"""The page in a real browser: nothing runs, nodes light up, it fits."""

import json
import pathlib
import tempfile

import browser
import hypothesis
import pages
from absl.testing import absltest, parameterized

from sparse_jax import report
from sparse_jax.report import text as text_lib


class BrowserTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.browser = browser.start(cls)
    directory = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.path = pathlib.Path(directory, "page.html")
    notes = [(text, 1.0) for text in pages.HOSTILE]
    circuits = [
      pages.alone(
        examples=[pages.example(text) for text in pages.HOSTILE],
        task="".join(pages.HOSTILE),
        node_notes={"0.attn.q:17": {"read_tokens": notes}},
      ),
      {"core": pages.dense(120, 500)},
      pages.nested("c"),
      pages.nested("d", num_support=160),
    ]
    training = [
      {"step": i, "train_loss": 9 / i, "density": 1 / i} for i in range(1, 50)
    ]
    report.write_page(cls.path, circuits, training=training)
    cls.full = pathlib.Path(directory, "full.html")
    circuits = [
      pages.alone(metrics={"faithfulness": pages.faithfulness_metrics()})
    ]
    circuits[0]["core"].metrics["faithfulness"]["importance"] = {
      "edges": [
        {k: e[k] for k in ("from", "to")} | {"loss_without": {"value": i}}
        for i, e in enumerate(circuits[0]["core"].edges)
      ],
    }
    evidence = pages.evidence(circuits, ("a", *pages.HOSTILE, "'", '"'))
    report.write_page(cls.full, circuits, evidence=evidence)

  def setUp(self):
    super().setUp()
    self._show(1280)

  def _show(self, width, dark=False, address="", path=None):
    self.browser.execute_cdp_cmd(
      "Emulation.setDeviceMetricsOverride",
      {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
    )
    scheme = {
      "name": "prefers-color-scheme",
      "value": "dark" if dark else "light",
    }
    self.browser.execute_cdp_cmd(
      "Emulation.setEmulatedMedia", {"features": [scheme]}
    )
    # Else a page hears of no focus while another window has it.
    self.browser.execute_cdp_cmd(
      "Emulation.setFocusEmulationEnabled", {"enabled": True}
    )
    # Another address of the same page would not load it anew.
    self.browser.get("about:blank")
    self.browser.get((path or self.path).as_uri() + address)
    from selenium.webdriver.support import (  # noqa: PLC0415
      wait as support_wait,
    )

    # A busy driver answers before the page has run its script.
    is_read = "location.protocol === 'file:' && document.readyState"
    wait = support_wait.WebDriverWait(self.browser, 30)
    wait.until(lambda _: self._run(f"return {is_read} === 'complete'"))

  def _run(self, script, *args):
    return self.browser.execute_script(script, *args)

  def _node(self, key):
    return self.browser.find_element(
      "css selector", f"#c0 .node[data-key='{key}']"
    )

  def _lit(self, selector):
    return self._run(
      "return [...document.querySelectorAll(`#c0 svg.circuit ${arguments[0]}`)]"
      ".map(e => e.dataset.key || e.dataset.from + ' ' + e.dataset.to)",
      selector,
    )

  def test_loads_alone_and_without_complaint(self):
    self.browser.get_log("performance")
    self.browser.get_log("browser")
    self.browser.get(self.path.as_uri())
    requests = [
      message["params"]["request"]["url"]
      for entry in self.browser.get_log("performance")
      if (message := json.loads(entry["message"])["message"])["method"]
      == "Network.requestWillBeSent"
    ]
    self.assertEqual(set(requests) - {"data:,"}, {self.path.as_uri()})
    self.assertEqual(self.browser.get_log("browser"), [])

  def test_hostile_text_does_not_run(self):
    self.assertIsNone(self._run("return window.pwned ?? null"))
    self._run("document.querySelector('#c0 .node').focus()")
    for key in ("0.attn.q:17", "0.attn.v:18"):
      self._run("arguments[0].focus()", self._node(key))
    self.assertIsNone(self._run("return window.pwned ?? null"))
    scripts = "return [...document.scripts].map(s => s.type)"
    self.assertEqual(self._run(scripts), ["application/json", ""])
    self.assertEqual(self._run("return document.images.length"), 0)

  def test_policy_stops_what_is_put_in_later(self):
    self._run(
      "const s = document.createElement('script');"
      "s.textContent = 'window.pwned = 1'; document.body.append(s);"
      "document.body.insertAdjacentHTML('beforeend',"
      " '<img src=x onerror=\"window.pwned = 1\">')"
    )
    self.assertIsNone(self._run("return window.pwned ?? null"))
    self.browser.get_log("browser")

  @parameterized.parameters("hover", "focus")
  def test_a_node_lights_up_with_its_edges(self, how):
    from selenium.webdriver.common import action_chains  # noqa: PLC0415

    target = self._node("0.attn.act_in:3")
    self._run("arguments[0].scrollIntoView({block: 'center'})", target)
    if how == "hover":
      action_chains.ActionChains(self.browser).move_to_element(target).perform()
    else:
      self._run("arguments[0].focus()", target)
    self.assertCountEqual(
      self._lit(".edge.on"),
      ["0.attn.act_in:3 0.attn.q:17", "0.attn.act_in:3 0.attn.v:18"],
    )
    self.assertCountEqual(
      self._lit(".node.on"), ["0.attn.act_in:3", "0.attn.q:17", "0.attn.v:18"]
    )
    detail = self.browser.find_element("css selector", "#c0 .detail").text
    self.assertIn("0.attn.act_in channel 3; edges in 0, out 2", detail)

  def test_a_write_lights_up_the_later_reads_of_its_channel(self):
    self._run("arguments[0].focus()", self._node("0.attn.resid_delta:5"))
    self.assertContainsSubset(
      ["0.mlp.act_in:5", "final_resid:5"], self._lit(".node.on")
    )
    self.assertNotEmpty(self._lit(".wire.on"))
    self.assertEqual(
      self._lit(".edge.on"), ["0.attn.v:18 0.attn.resid_delta:5"]
    )

  def test_keyboard_walks_and_pins(self):
    from selenium.webdriver.common import keys  # noqa: PLC0415

    first = self.browser.find_element("css selector", "#c0 .node[tabindex='0']")
    self._run("arguments[0].focus()", first)
    first.send_keys(keys.Keys.ARROW_RIGHT)
    active = self.browser.switch_to.active_element
    self.assertStartsWith(active.get_attribute("data-key"), "0.attn.")
    self.assertNotEqual(active.get_attribute("data-key"), "0.attn.act_in:3")
    active.send_keys(keys.Keys.ENTER)
    self._run("document.activeElement.blur()")
    self.assertLen(self._lit(".node.at"), 1)
    self._run("arguments[0].focus()", active)
    active.send_keys(keys.Keys.ESCAPE)
    self.assertEmpty(self._lit(".node.at"))

  def _drawn(self, section):
    """Returns the visible nodes, the drawing's height and the core's places."""
    return self._run(
      "const svg = document.querySelector(`#${arguments[0]} svg.circuit`);"
      "const all = [...svg.querySelectorAll('.node')];"
      "const seen = all.filter(n => n.getClientRects().length);"
      "const place = (n) => n.getBoundingClientRect();"
      "const left = place(svg).x, top = place(svg).y;"
      "return [seen.length, place(svg).height, seen"
      " .filter(n => n.closest('.core')).map(n => [n.dataset.key,"
      " Math.round(place(n).x - left), Math.round(place(n).y - top)])]",
      section,
    )

  def test_a_switch_hides_and_shows_support_and_nothing_jumps(self):
    from selenium.webdriver.common import keys  # noqa: PLC0415

    self._show(1280, address="#c2")
    shown, height, core = self._drawn("c2")
    self.assertEqual((shown, len(core)), (14, 8))
    switch = self.browser.find_element("css selector", "#c2 .switch input")
    self.assertTrue(switch.is_displayed())
    switch.send_keys(keys.Keys.SPACE)
    hidden, less, still = self._drawn("c2")
    self.assertEqual(hidden, 8)
    self.assertLess(less, height)
    self.assertEqual(still, core)
    switch.send_keys(keys.Keys.SPACE)
    self.assertEqual(self._drawn("c2"), [shown, height, core])
    # Much support is hidden at first.
    self._show(1280, address="#c3")
    self.assertEqual(self._drawn("c3")[0], 8)
    switch = self.browser.find_element("css selector", "#c3 .switch input")
    switch.send_keys(keys.Keys.SPACE)
    self.assertEqual(self._drawn("c3")[0], 168)

  def test_the_keyboard_stays_among_what_is_shown(self):
    from selenium.webdriver.common import keys  # noqa: PLC0415

    self._show(1280, address="#c2")
    find = lambda css: self.browser.find_element("css selector", f"#c2 {css}")
    switch = find(".switch input")
    node = find(".node[data-key='0.mlp.act_in:5']")
    self._run("arguments[0].focus()", node)
    # To the right, then down into the support, where a node is pinned.
    for key in (keys.Keys.ARROW_RIGHT, keys.Keys.ARROW_DOWN, keys.Keys.ENTER):
      self.browser.switch_to.active_element.send_keys(key)
    active = self.browser.switch_to.active_element
    self.assertEqual(active.get_attribute("data-key"), "0.mlp.post_act:300")
    self.assertIn("; support", find(".detail").text)
    switch.send_keys(keys.Keys.SPACE)
    self.assertEqual(
      find(".node[tabindex='0']").get_attribute("data-key"), "0.attn.act_in:3"
    )
    self.assertIn("Point at a node", find(".detail").text)
    self._run("arguments[0].focus()", node)
    ways = keys.Keys.ARROW_RIGHT, keys.Keys.ARROW_DOWN, keys.Keys.ARROW_UP
    for key in ways:
      self.browser.switch_to.active_element.send_keys(key)
    self.assertEqual(
      find(".node[tabindex='0']").get_attribute("data-key"),
      "0.mlp.post_act:200",
    )

  def test_sorts_by_number_both_ways(self):
    weights = lambda: self._run(
      "return [...document.querySelectorAll('#c0 table.edges tbody tr')]"
      ".map(r => r.cells[2].textContent)"
    )
    self.assertEqual(weights()[0], "2")
    button = self.browser.find_elements(
      "css selector", "#c0 table.edges th button"
    )[2]
    self._run("arguments[0].click()", button)
    self.assertEqual(
      weights(), ["−1.250", "1.000e−05", "0.1250", "0.5000", "2"]
    )
    self._run("arguments[0].click()", button)
    self.assertEqual(weights()[0], "2")

  def test_counts_in_tables_are_those_of_the_circuit(self):
    rows = lambda kind, i: self._run(
      f"return document.querySelectorAll('#c{i} table.{kind} tbody tr').length"
    )
    self.assertEqual((rows("nodes", 0), rows("edges", 0)), (8, 5))
    self.assertEqual((rows("nodes", 1), rows("edges", 1)), (120, 500))

  @parameterized.product(width=(390, 1280), name=("path", "full"))
  def test_page_never_scrolls_sideways(self, width, name):
    for address in ("#c0/0.attn.v:18", "#overview"):
      self._show(width, address=address, path=getattr(self, name))
      inner, client = self._run(
        "const e = document.documentElement;"
        "return [e.scrollWidth, e.clientWidth]"
      )
      self.assertLessEqual(inner, client)

  def test_the_address_says_which_circuit_and_which_node(self):
    shown = lambda: self._run(
      "return [...document.querySelectorAll('[data-view]')]"
      ".filter(s => s.getClientRects().length).map(s => s.dataset.view)"
    )
    self.assertEqual(shown(), ["c0"])
    link = self.browser.find_elements("css selector", "nav.circuits a")[3]
    self.assertIn("core 8 nodes, 5 edges", link.text)
    self._run("window.isSame = true")
    link.click()
    self.assertEqual(shown(), ["c2"])
    self.assertEqual(self._run("return window.isSame"), True)
    self.assertEqual(link.get_attribute("aria-current"), "true")
    node = "#c2 .node[data-key='0.attn.v:18']"
    self.browser.find_element("css selector", node).click()
    address = self._run("return location.hash")
    self.assertEqual(address, "#c2/0.attn.v:18")
    self._show(1280, address=address)
    pinned = "return document.querySelector(arguments[0]).ariaPressed"
    self.assertEqual(self._run(pinned, node), "true")
    self.assertEqual(shown(), ["c2"])
    self.browser.find_element("css selector", "nav.circuits a").click()
    self.assertEqual(set(shown()), {"overview"})
    self.browser.back()
    self.assertEqual(shown(), ["c2"])
    for odd in ("#c99", "#c0/nothing", "#%ff/%", "#</script>"):
      self._show(1280, address=odd)
      self.assertEqual(shown(), ["c0"])
      self.assertEmpty(self._lit(".node.at"))

  def test_a_pinned_nodes_card_has_its_edges_and_facts(self):
    self._show(1280, address="#c2/0.attn.resid_delta:5")
    card = self.browser.find_element("css selector", "#c2 .card")
    for part in (
      "0.attn.resid_delta:5",
      "part\ncore",
      "mean (ablation value)\n0",
      "Edges in: 1",
      "0.attn.v:18 2",
      "Edges out: 0",
      "read by\n0.mlp.act_in:5\nfinal_resid:5",
      "also in",
    ):
      self.assertIn(part, card.text)
    card.find_element("link text", "0.attn.v:18").click()
    self.assertEqual(self._run("return location.hash"), "#c2/0.attn.v:18")
    self.assertIn("Edges in: 1", card.text)
    self.assertIn("−1.25", card.text)
    self._run("document.querySelector('#c2 .node.at').focus()")
    self.browser.switch_to.active_element.send_keys("\ue00c")  # Escape.
    self.assertFalse(card.is_displayed())
    self.assertEqual(self._run("return location.hash"), "#c2")

  def test_search_finds_channels_sites_and_tokens(self):
    from selenium.webdriver.common import keys  # noqa: PLC0415

    field = self.browser.find_element("css selector", "#c0 .find input")
    for query, want in (
      ("17", ["0.attn.q:17"]),
      ("mlp.post", ["0.mlp.post_act:200"]),
      ("</script><script>", ["0.attn.q:17"]),
      ("5", ["0.attn.resid_delta:5", "0.mlp.act_in:5", "final_resid:5"]),
      ("nothing", []),
    ):
      field.clear()
      field.send_keys(query)
      self.assertCountEqual(self._lit(".node.hit"), want)
    field.clear()
    field.send_keys("5", keys.Keys.ENTER)
    self.assertEqual(self._lit(".node.at"), ["0.attn.resid_delta:5"])
    field.send_keys(keys.Keys.ENTER)
    self.assertEqual(self._lit(".node.at"), ["0.mlp.act_in:5"])

  def test_buttons_keys_and_wheel_zoom_and_a_mouse_drags(self):
    from selenium.webdriver.common import action_chains  # noqa: PLC0415

    self._show(1280, address="#c1")
    width = lambda: self._run(
      "return document.querySelector('#c1 svg.circuit')"
      ".getBoundingClientRect().width"
    )
    find = lambda css: self.browser.find_element("css selector", f"#c1 {css}")
    start = width()
    less, more, fit = self.browser.find_elements(
      "css selector", "#c1 .zoom button"
    )
    more.click()
    self.assertAlmostEqual(width(), 1.25 * start, delta=1)
    less.click()
    self.assertAlmostEqual(width(), start, delta=1)
    box = find(".drawing")
    self._run("arguments[0].focus()", box)
    for _ in range(8):
      box.send_keys("+")
    self.assertGreater(width(), 4 * start)
    scroll = lambda: self._run(
      "const b = document.querySelector('#c1 .drawing');"
      "return [b.scrollLeft, b.scrollTop]"
    )
    before = scroll()
    drag = action_chains.ActionChains(self.browser)
    drag.move_to_element_with_offset(box, 100, 100).click_and_hold()
    drag.move_by_offset(-60, -40).release().perform()
    self.assertEqual(scroll(), [before[0] + 60, before[1] + 40])
    self.assertEqual(self._run("return location.hash"), "#c1")
    box.send_keys("0")
    self.assertLessEqual(width(), box.size["width"])
    wheel = (
      "const e = new WheelEvent('wheel', {deltaY: -100, bubbles: true,"
      " cancelable: true, ctrlKey: arguments[1]});"
      "arguments[0].dispatchEvent(e); return e.defaultPrevented"
    )
    fit.click()
    self.assertFalse(self._run(wheel, box, False))
    self.assertTrue(self._run(wheel, box, True))
    self._run("arguments[0].focus()", box)
    self.assertTrue(self._run(wheel, box, False))
    self.assertGreater(width(), start)

  def test_edges_are_as_wide_as_weights_or_as_the_loss_without(self):
    from selenium.webdriver.support import select  # noqa: PLC0415

    self._show(1280, path=self.full)
    widths = lambda: self._run(
      "return [...document.querySelectorAll('#c0 .edge[data-from]')]"
      ".map(e => [e.dataset.from, Number(e.getAttribute('stroke-width'))])"
      ".sort((a, b) => a[1] - b[1]).map(e => e[0])"
    )
    self.assertEqual(widths()[-1], "0.attn.v:18")
    field = self.browser.find_element("css selector", "#c0 .tools select")
    select.Select(field).select_by_value("loss")
    self.assertEqual(widths()[-1], "0.mlp.post_act:200")
    legend = self.browser.find_element("css selector", "#c0 .legend").text
    self.assertIn("width is the task loss without it", legend)
    select.Select(field).select_by_value("weight")
    self.assertEqual(widths()[-1], "0.attn.v:18")

  def _colours(self, css):
    """Returns the backgrounds of elements, as three numbers of 255."""
    return self._run(
      "return [...document.querySelectorAll(arguments[0])].map(e => {"
      " const c = getComputedStyle(e).backgroundColor;"
      " const n = c.match(/[\\d.]+/g).slice(0, 3).map(Number);"
      " return c.startsWith('color(') ? n.map(v => 255 * v) : n; })",
      css,
    )

  def test_tokens_have_the_colours_of_the_pinned_nodes_values(self):
    self._show(1280, path=self.full, address="#c0/0.attn.q:17")
    rows = "#c0 .prompts .toks[role=group]:nth-of-type(1) .tok"
    found = self._colours(rows)[:4]
    mix = lambda colour, share: [255 + 0.48 * share * (c - 255) for c in colour]
    blue, orange = (0x1F, 0x6F, 0xB2), (0xC0, 0x4A, 0x12)
    for got, want in zip(
      found,
      # Values 2, -1, 0 and 1 at a scale of 2, in steps of 2 / 127.
      (mix(blue, 1), mix(orange, 64 / 127), [255] * 3, mix(blue, 64 / 127)),
      strict=True,
    ):
      self.assertLess(
        max(abs(a - b) for a, b in zip(got, want, strict=True)), 1.5
      )

  def test_prompts_of_the_task_and_the_users_own(self):
    from selenium.webdriver.common import keys  # noqa: PLC0415
    from selenium.webdriver.support import select  # noqa: PLC0415

    self._show(1280, path=self.full, address="#c0/0.attn.q:17")
    panel = self.browser.find_element("css selector", "#c0 .prompts")
    for text in (
      "first side",
      "second side",
      "Difference: first side less second side",
      "full model 3",
      "circuit 2.5",
      "head 0.1 looks from",
      "in steps of 0.0157",
    ):
      self.assertIn(text, panel.text)
    titles = lambda row: self._run(
      "const rows = document.querySelectorAll('#c0 .prompts .toks');"
      "return [...rows[arguments[0]].querySelectorAll('.tok')]"
      ".map(t => t.title)",
      row,
    )
    self.assertEqual(titles(1), ["0%", "0%", "50%", "25%"])
    self.assertEqual(titles(4), ["2", "−1.01", "0", "1.01"])
    last = panel.find_element("css selector", "button.tok[tabindex='0']")
    self._run("arguments[0].focus()", last)
    for key in (keys.Keys.ARROW_LEFT, keys.Keys.ARROW_LEFT, keys.Keys.ENTER):
      self.browser.switch_to.active_element.send_keys(key)
    self.assertEqual(titles(1), ["50%", "50%", "0%", "0%"])
    field = panel.find_element("css selector", "select")
    names = [option.text for option in select.Select(field).options]
    self.assertStartsWith(names[1], "test pair 2: ")
    self.assertStartsWith(names[2], "own prompt 1: ")
    select.Select(field).select_by_index(2)
    self.assertNotIn("second side", panel.text)
    card = self.browser.find_element("css selector", "#c0 .card").text
    self.assertIn("2 </script><script>window.pwned = 1</script>.py", card)
    self.assertIn("It is never below 0 there.", card)
    self.assertIn("stored in 8 bits: in steps of 0.0157, up to ±2.", card)
    self.assertIsNone(self._run("return window.pwned ?? null"))
    self.assertEqual(self.browser.get_log("browser"), [])

  @hypothesis.given(pages.HOSTILE_TEXT)
  @hypothesis.settings(max_examples=15, deadline=None, database=None)
  def test_any_text_is_text(self, text):
    circuits = [pages.alone(task=text)]
    evidence = pages.evidence(circuits, ("a", text, "b", "c", "'", '"'))
    window = [(text, evidence.windows[0][1])]
    path = self.full.with_name("any.html")
    report.write_page(
      path, circuits, evidence=evidence._replace(windows=window), title=text
    )
    self._show(1280, path=path, address="#c0/0.attn.q:17")
    found, pwned, tags = self._run(
      "const c = document.querySelector('#c0 .card .snippets .tok + .tok');"
      "return [c.textContent, window.pwned ?? null,"
      " document.querySelectorAll('img, iframe, b').length]"
    )
    want = "".join(piece for _, piece in text_lib.pieces(text))
    self.assertEqual((found, pwned, tags), (want, None, 0))
    self.assertEqual(self.browser.get_log("browser"), [])

  @parameterized.product(dark=(False, True), name=("path", "full"))
  def test_text_has_contrast(self, dark, name):
    path = getattr(self, name)
    self._show(1280, dark, address="#c0/0.attn.q:17", path=path)
    lowest = self._run("""
      const rgb = (c) => c.match(/[\\d.]+/g).map((v, i) =>
        c.startsWith("color(") && i < 3 ? 255 * v : Number(v));
      const lum = (c) => rgb(c).slice(0, 3).map((v) => v / 255)
        .map((v) => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
        .reduce((s, v, i) => s + v * [.2126, .7152, .0722][i], 0);
      const behind = (e) => {
        for (; e; e = e.parentElement) {
          const c = getComputedStyle(e).backgroundColor;
          if ((rgb(c)[3] ?? 1) > 0) return c;
        }
        return "rgb(255, 255, 255)";
      };
      let lowest = [99, ""];
      for (const e of document.querySelectorAll("body *:not(svg *)")) {
        const own = [...e.childNodes].some(
          (n) => n.nodeType === 3 && n.data.trim());
        if (!own || e.tagName === "SCRIPT") continue;
        const [a, b] = [lum(getComputedStyle(e).color), lum(behind(e))];
        const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
        if (ratio < lowest[0]) lowest = [ratio, e.outerHTML.slice(0, 80)];
      }
      return lowest;
    """)
    self.assertGreaterEqual(lowest[0], 4.5, lowest[1])


if __name__ == "__main__":
  absltest.main()
