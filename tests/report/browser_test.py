"""The page in a real browser: nothing runs, nodes light up, it fits."""

import json
import pathlib
import tempfile

import browser
import pages
from absl.testing import absltest, parameterized

from sparse_jax import report


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

  def setUp(self):
    super().setUp()
    self._show(1280)

  def _show(self, width, dark=False):
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
    self.browser.get(self.path.as_uri())

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
    self.assertEqual(self._run("return document.scripts.length"), 1)
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
    self.assertEqual(self._drawn("c3")[0], 8)
    switch = self.browser.find_element("css selector", "#c3 .switch input")
    switch.send_keys(keys.Keys.SPACE)
    self.assertEqual(self._drawn("c3")[0], 168)

  def test_the_keyboard_stays_among_what_is_shown(self):
    from selenium.webdriver.common import keys  # noqa: PLC0415

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

  @parameterized.parameters((390, False), (390, True), (1280, False))
  def test_page_never_scrolls_sideways(self, width, dark):
    self._show(width, dark)
    inner, client = self._run(
      "const e = document.documentElement;return [e.scrollWidth, e.clientWidth]"
    )
    self.assertLessEqual(inner, client)

  @parameterized.parameters(False, True)
  def test_text_has_contrast(self, dark):
    self._show(1280, dark)
    lowest = self._run("""
      const rgb = (c) => c.match(/[\\d.]+/g).map(Number);
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
