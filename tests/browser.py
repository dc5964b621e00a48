"""A real browser for the tests of pages, where there is one."""

import shutil
import tempfile
import unittest

_CHROMIUM = "/usr/bin/chromium"
_CHROMEDRIVER = "/usr/bin/chromedriver"


def start(case: type[unittest.TestCase]):
  """Returns a headless Chromium that logs console and network.

  It ends with the class's tests. Without one they are skipped, saying why.
  """
  try:
    from selenium import webdriver  # noqa: PLC0415
  except ImportError:
    raise unittest.SkipTest("needs selenium") from None
  for program in (_CHROMIUM, _CHROMEDRIVER):
    if not shutil.which(program):
      raise unittest.SkipTest(f"needs {program}")
  profile = case.enterClassContext(
    tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
  )
  options = webdriver.ChromeOptions()
  options.binary_location = _CHROMIUM
  for flag in (
    "headless=new",
    "no-sandbox",
    "disable-gpu",
    "disable-quic",
    "no-first-run",
    "disable-background-networking",
    "disable-component-update",
    "disable-sync",
    "disable-dev-shm-usage",
    f"user-data-dir={profile}",
  ):
    options.add_argument(f"--{flag}")
  options.set_capability(
    "goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"}
  )
  service = webdriver.ChromeService(executable_path=_CHROMEDRIVER)
  driver = webdriver.Chrome(options=options, service=service)
  case.addClassCleanup(driver.quit)
  return driver
