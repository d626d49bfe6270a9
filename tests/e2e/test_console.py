#!/usr/bin/python3
"""The web console in a real Chromium: what a person does there, with real machines behind it.

CORBEL_SCREENSHOTS=DIR keeps a picture of each page, wide and narrow, light and dark.
"""

import json
import os
import pathlib
import shutil
import sys
import tempfile

from harness import LIMIT_S, SOURCE, expect, run_tests

try:
    from selenium import webdriver
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select, WebDriverWait
except ImportError:
    print("skipped: python3-selenium is not installed")
    sys.exit(77)

from platform_rig import Platform, give_disk

AXE = SOURCE / "web/node_modules/axe-core/axe.min.js"
for needed in ("chromium", "chromedriver"):
    if shutil.which(needed) is None:
        print(f"skipped: {needed} is not installed")
        sys.exit(77)
if not AXE.exists():
    print("skipped: the web console's libraries are not there (scripts/setup fetches them by npm)")
    sys.exit(77)

PICTURES = os.environ.get("CORBEL_SCREENSHOTS")
WIDE, NARROW = (1280, 860), (400, 860)


class Browser:
    """Chromium, headless, that knows no other host than this one."""

    def __init__(self, port):
        self.origin = f"http://127.0.0.1:{port}"
        self.profile = tempfile.mkdtemp(prefix="corbel-chromium-")
        options = webdriver.ChromeOptions()
        for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                         "--no-first-run", "--disable-background-networking",
                         "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
                         f"--user-data-dir={self.profile}"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        service = webdriver.chrome.service.Service(shutil.which("chromedriver"))
        self.driver = webdriver.Chrome(service=service, options=options)
        self.driver.set_window_size(*WIDE)
        self.outside = set()

    def wait(self, condition, what):
        def met(_):
            try:
                return condition()
            except Exception as error:  # elements come and go while a page is drawn
                self.last = type(error).__name__ + ": " + str(error).splitlines()[0]
                return None

        self.last = "never true"
        try:
            return WebDriverWait(self.driver, LIMIT_S, poll_frequency=0.1).until(met)
        except Exception as error:
            text = self.driver.find_element(By.TAG_NAME, "body").text
            raise AssertionError(f"{what} did not come ({self.last}); the page says:\n{text[:2000]}") from error

    def all(self, css):
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def one(self, css):
        return self.wait(lambda: self.driver.find_element(By.CSS_SELECTOR, css), css)

    def text(self):
        return self.driver.find_element(By.TAG_NAME, "body").text

    def button(self, name, within=""):
        def find():
            for element in self.all(f"{within} button, {within} a"):
                if element.text == name and element.is_displayed():
                    return element
            return None
        return self.wait(find, f"the button {name!r}")

    def go(self, route, heading):
        self.driver.get(f"{self.origin}/#/{route}")
        self.wait(lambda: self.one("h1").text == heading, f"the page {heading!r}")

    def fill(self, field, text):
        self.one(f"#field-{field}").send_keys(Keys.CONTROL + "a")
        self.one(f"#field-{field}").send_keys(text)

    def pick(self, field, value):
        self.wait(lambda: Select(self.one(f"#field-{field}")).select_by_visible_text(value) or True,
                  f"the choice {value}")

    def sign_in(self, name, password):
        self.driver.get(self.origin)
        self.fill("name", name)
        self.fill("password", password)
        self.button("Sign in").click()

    def picture(self, name):
        if PICTURES:
            pathlib.Path(PICTURES).mkdir(parents=True, exist_ok=True)
            # What was said of earlier steps is no part of the page.
            self.driver.execute_script("document.querySelector('.toasts').style.visibility = 'hidden'")
            self.driver.save_screenshot(f"{PICTURES}/{name}.png")
            self.driver.execute_script("document.querySelector('.toasts').style.visibility = ''")

    def check_access(self, page):
        """axe finds nothing serious (WCAG 2.1 A and AA)."""
        self.driver.execute_script(AXE.read_text())
        found = self.driver.execute_async_script(
            "const done = arguments[0]; axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21aa']})"
            ".then(r => done(r.violations.map(v => [v.impact, v.id, v.nodes.map(n => n.html).slice(0, 3)])))")
        bad = [violation for violation in found if violation[0] in ("serious", "critical")]
        expect(not bad, f"{page}: {json.dumps(bad, indent=1)}")

    def check_requests(self):
        """Nothing was asked of another host, and nothing was logged as an error."""
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                url = message["params"]["request"]["url"]
                expect(url.startswith((self.origin, "data:", "blob:", "chrome:", "chrome-untrusted:",
                                                 "about:")), f"asked for {url}")
        errors = [entry for entry in self.driver.get_log("browser")
                  if entry["level"] == "SEVERE" and "/v1/session" not in entry["message"]]
        expect(not errors, f"{errors}")

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.driver.quit()
        shutil.rmtree(self.profile, ignore_errors=True)


PAGES = (("", "Dashboard"), ("instances", "Instances"), ("launch", "Launch instance"), ("images", "Images"),
         ("volumes", "Volumes"), ("snapshots", "Snapshots"), ("nics", "Network cards"), ("keys", "Key pairs"), ("alarms", "Alarms"), ("types", "Instance types"),
         ("projects", "Projects"), ("quotas", "Quotas"), ("events", "Events"), ("operations", "Operations"),
         ("tokens", "API tokens"), ("users", "Users"), ("roles", "Roles"))


LOOKS = tuple((theme, size) for theme in ("dark", "light") for size in ("wide", "narrow"))


def look_at_pages(browser, pages, looks=LOOKS):
    """Every page, dark and light, wide and narrow: axe finds nothing, and nothing is too wide."""
    for theme in ("dark", "light"):
        Select(browser.one("header select")).select_by_visible_text(theme.capitalize())
        for size, word in ((WIDE, "wide"), (NARROW, "narrow")):
            if (theme, word) not in looks:
                continue
            browser.driver.set_window_size(*size)
            for route, heading in pages:
                browser.go(route, heading)
                browser.wait(lambda: browser.all("main table, main .empty, main form, main .card, main .tree"), "the page's content")
                browser.picture(f"{(route or 'dashboard').replace('/', '-')}-{theme}-{word}")
                browser.check_access(f"{heading} {theme} {word}")
                wide = browser.driver.execute_script("return document.documentElement.scrollWidth - innerWidth")
                expect(wide <= 0, f"{heading} is {wide} pixels wider than {size}")
    browser.driver.set_window_size(*WIDE)


def nested(browser):
    """The names in the tree, each with the one above it."""
    return browser.driver.execute_script(
        "return Object.fromEntries([...document.querySelectorAll('.tree li')].map(li => [li.querySelector('.name').textContent,"
        " li.parentElement.closest('li')?.querySelector('.name').textContent ?? '']))")


def work_with_snapshots(browser, platform):
    """A tree on the instance's page and on its own; back to one, a volume and a machine from one."""
    browser.go("instances/web/snapshots", "web")
    for count in (1, 2):
        browser.button("Take snapshot").click()
        browser.wait(lambda count=count: len(browser.all(".tree .name")) == count and not browser.all(".tree .badge"), f"{count} snapshots")
    first, second = (row["id"] for row in platform.ok("GET", "/v1/snapshots")["items"])
    for name, number in (("monday", first), ("tuesday", second)):
        browser.one(f"button[aria-label='Rename {number}']").click()
        browser.fill("name", name)
        browser.button("Change", "dialog").click()
        browser.wait(lambda name=name: name in browser.one(".tree").text, name)
    expect(nested(browser) == {"monday": "", "tuesday": "monday"}, f"{nested(browser)}")
    expect(not browser.one("button[aria-label='Restore monday']").is_enabled(), "a running machine's disk goes back")
    browser.button("Stop").click()
    browser.wait(lambda: browser.one("button[aria-label='Restore monday']").is_enabled(), "the machine's end")
    browser.one("button[aria-label='Restore monday']").click()
    browser.button("Restore", "dialog").click()
    browser.wait(lambda: "stands here" in browser.all(".tree .node")[0].text, "the disk at monday")
    browser.button("Take snapshot").click()
    browser.wait(lambda: sorted(nested(browser).values()) == ["", "monday", "monday"] and not browser.all(".tree .badge"), "a fork")
    browser.picture("snapshots-of-instance")

    browser.go("snapshots", "Snapshots")
    browser.one("button[aria-label='New volume from tuesday']").click()
    browser.fill("name", "from-tuesday")
    browser.button("Create", "dialog").click()
    browser.wait(lambda: any(row["name"] == "from-tuesday" and row["state"] == "available"
                             for row in platform.ok("GET", "/v1/volumes")["items"]), "the volume")
    browser.button("New", "main .page-head").click()
    browser.pick("volume", "data")
    browser.fill("name", "of-data")
    browser.button("Create", "dialog").click()
    browser.wait(lambda: "of-data" in nested(browser), "the volume's snapshot")
    browser.one("a[aria-label='New instance from monday']").click()
    browser.wait(lambda: browser.one("h1").text == "Launch instance", "the launch page")
    browser.fill("name", "again")
    browser.pick("engine", "soft")
    browser.fill("memory_mib", "128")
    browser.fill("new_volume_gib", "1")
    browser.wait(lambda: "Instances\n3" in browser.one(".card").text, "the quota with this one")
    browser.button("Launch").click()
    browser.wait(lambda: browser.one("h1").text == "again", "the instance's page")
    browser.wait(lambda: any(b.text == "running" for b in browser.all(".badge")), "running")
    made = platform.ok("GET", "/v1/instances/again")
    expect(made["snapshot"] == first and len(made["volumes"]) == 1, f"{made}")


def work_with_tenants(browser, platform):
    """Limits of projects, and users, one and several at a time."""
    browser.go("projects", "Projects")
    browser.button("New").click()
    browser.fill("name", "blue")
    browser.button("Create", "dialog").click()
    browser.wait(lambda: "blue" in browser.one("table").text, "the project")
    boxes = {name: browser.one(f"input[aria-label='Select {name}']").is_enabled() for name in ("default", "blue")}
    expect(boxes == {"default": False, "blue": True}, f"can be deleted: {boxes}")
    browser.go("quotas", "Quotas")
    browser.one("button[aria-label='Change limits of blue']").click()
    browser.fill("max_snapshots", "3")
    browser.fill("max_cpus", "8")
    browser.fill("max_nics", "1")
    browser.fill("max_keys", "2")
    browser.fill("max_hooks", "5")
    browser.button("Change", "dialog").click()
    browser.wait(lambda: "0 of 8" in browser.one("section[aria-label='Quotas of blue']").text, "the limit")
    made = platform.ok("GET", "/v1/projects/blue")
    expect((made["max_snapshots"], made["max_nics"], made["max_alarms"], made["max_keys"], made["max_hooks"]) == (3, 1, 0, 2, 5), f"{made}")
    platform.ok("POST", "/v1/nics?project=blue", {"name": "only"})
    browser.wait(lambda: "Network cards\n1 of 1" in browser.one("section[aria-label='Quotas of blue']").text, "the used quota")
    expect("Key pairs\n0 of 2" in browser.one("section[aria-label='Quotas of blue']").text, "no quota of key pairs")
    browser.go("nics", "Network cards")
    browser.button("New").click()
    browser.pick("project_of", "blue")
    browser.button("Create", "dialog").click()
    browser.wait(lambda: "1 network cards, of which 1 are given away" in browser.one("dialog .error").text, "the quota's refusal")
    told = [entry["message"] for entry in browser.driver.get_log("browser") if entry["level"] == "SEVERE"]
    expect(len([text for text in told if "/v1/session" not in text]) == 1, f"more than the refusal: {told}")
    browser.button("Cancel", "dialog").click()
    for name in ("bea", "ben"):
        platform.ok("POST", "/v1/users", {"name": name, "password": "correct horse", "role": "viewer"})
    browser.go("users", "Users")
    browser.wait(lambda: "ben" in browser.one("table").text, "the users")
    browser.one("button[aria-label='Change bea']").click()
    browser.pick("project", "blue")
    browser.button("Change", "dialog").click()
    browser.wait(lambda: "blue" in browser.one("table").text, "bea's project")
    browser.one(".filter").send_keys("viewer be")
    browser.wait(lambda: len(browser.all("tbody tr")) == 2, "two rows")
    browser.one("thead input[type=checkbox]").click()
    browser.button("Delete", ".bulk").click()
    browser.button("Delete", "dialog").click()
    browser.wait(lambda: "No user matches" in browser.text(), "that they are gone")
    expect([user["name"] for user in platform.ok("GET", "/v1/users")["items"]] == ["ann"], "others are gone")


def look_at_dialog(browser, name):
    """The open dialog, dark and light, wide and narrow."""
    for theme in ("dark", "light"):
        browser.driver.execute_script("document.documentElement.dataset.theme = arguments[0]", theme)
        for size, word in ((WIDE, "wide"), (NARROW, "narrow")):
            browser.driver.set_window_size(*size)
            wide = browser.driver.execute_script("const d = document.querySelector('dialog[open]');"
                                                 "return Math.max(d.scrollWidth - d.clientWidth, d.offsetWidth - innerWidth)")
            expect(wide <= 0, f"{name} is {wide} pixels too wide at {size}")
            browser.picture(f"{name}-{theme}-{word}")
            browser.check_access(f"{name} {theme} {word}")
            browser.driver.execute_script("document.querySelector('dialog[open] fieldset:last-of-type').scrollIntoView()")
            browser.picture(f"{name}-end-{theme}-{word}")
            browser.driver.execute_script("document.querySelector('dialog[open]').scrollTo(0, 0)")
    browser.driver.set_window_size(*WIDE)


def facts(browser):
    return browser.driver.execute_script("return Object.fromEntries([...document.querySelectorAll('.facts > div')].map("
                                         "one => [one.querySelector('dt').textContent, one.querySelector('dd').textContent]))")


def resize_live(browser, platform):
    """What the wizard said holds; what runs gets more; what has to wait for its end says so."""
    wanted = {"max_cpus": 2, "cpu_weight": 200, "cpu_cap_percent": 90, "pinned_cpus": "0", "memory_limit_mib": 512,
              "disk_iops": 5000, "net_bps": 10000000}
    made = platform.ok("GET", "/v1/instances/web")
    expect({name: made.get(name) for name in wanted} == wanted, f"{made}")
    shown = facts(browser)
    for text in ("weight 200", "at most 90 %", "on CPUs 0", "512 MiB", "5000 operations/s", "10 MB/s"):
        expect(text in shown["Limits"], f"{text}: {shown}")
    expect(shown["vCPUs"] == "1, up to 2 while it runs", f"{shown}")
    card = platform.ok("GET", f"/v1/nics/{made['nic']}")
    expect(card["mac"] in shown["Network card"] and "its own" in shown["Network card"], f"{shown}")

    browser.button("Resize").click()
    browser.wait(lambda: browser.one("#field-cpu_weight").get_attribute("value") == "200", "what it has now")
    for field in ("max_cpus", "max_memory_mib"):
        expect(not browser.one(f"#field-{field}").is_enabled(), f"{field} of a running machine")
        expect("only while it is stopped" in browser.one(f"#field-{field}-help").text, f"{field} does not say so")
    look_at_dialog(browser, "resize")
    # A refusal stands at its field; then it gets what fits.
    browser.fill("pinned_cpus", "1000")
    browser.button("Resize", "dialog").click()
    browser.wait(lambda: "none of number 1000" in browser.one("#field-pinned_cpus-help.error").text, "the refusal")
    told = [entry["message"] for entry in browser.driver.get_log("browser") if entry["level"] == "SEVERE"]
    expect(len([text for text in told if "/v1/session" not in text]) == 1, f"more than the refusal: {told}")
    browser.one("#field-pinned_cpus").send_keys(Keys.CONTROL + "a", Keys.DELETE)
    browser.fill("cpus", "3")
    browser.wait(lambda: "when it is restarted" in browser.one("dialog .note").text, "that three are too many")
    for field, value in (("cpus", "2"), ("memory_mib", "256"), ("cpu_weight", "50"), ("cpu_cap_percent", "0"), ("net_pps", "999")):
        browser.fill(field, value)
    browser.wait(lambda: "when it is restarted" not in browser.one("dialog .note").text, "that two are not")
    browser.button("Resize", "dialog").click()
    browser.wait(lambda: "has what it was to have" in browser.one(".toasts").text, "the end of the resize")
    now = platform.ok("GET", "/v1/instances/web")
    expect((now["state"], now["cpus_now"], now["memory_now_mib"], now["memory_limit_mib"]) == ("running", 2, 256, 640), f"{now}")
    expect((now["cpu_weight"], now["cpu_cap_percent"], now["net_pps"]) == (50, 0, 999) and "pinned_cpus" not in now, f"{now}")
    browser.wait(lambda: "weight 50" in facts(browser)["Limits"] and "on CPUs" not in facts(browser)["Limits"], "the new limits")

    # What else can be changed keeps what it was.
    browser.button("Change").click()
    browser.wait(lambda: browser.one("#field-tags").get_attribute("value") == "env=prod", "its tags")
    expect(not browser.one("#field-engine").is_enabled(), "the engine of a running machine")
    browser.pick("restart", "never")
    browser.button("Change", "dialog").click()
    browser.wait(lambda: not browser.all("dialog[open]"), "the dialog's end")
    now = platform.ok("GET", "/v1/instances/web")
    expect((now["restart"], now["tags"], now["engine"]) == ("never", {"env": "prod"}, "soft"), f"{now}")

    # Off, it shows the last of its console, and may get more room, which holds from its next start.
    browser.button("Stop").click()
    browser.wait(lambda: any(b.text == "stopped" for b in browser.all(".facts .badge")), "its end")
    browser.button("Console").click()
    browser.wait(lambda: "corbel-busybox: ready" in browser.one(".last-words").text, "what the console showed")
    browser.picture("console-stopped")
    browser.check_access("the console of one that is off")
    browser.button("Overview").click()
    browser.button("Resize").click()
    browser.wait(lambda: "from its next start" in browser.one("dialog .note").text, "that it is off")
    browser.fill("max_cpus", "4")
    browser.button("Resize", "dialog").click()
    browser.wait(lambda: not browser.all("dialog[open]"), "the dialog's end")
    browser.button("Start").click()
    browser.wait(lambda: facts(browser).get("vCPUs") == "2, up to 4 while it runs", "four CPUs at most")


def look_at_charts(browser):
    """The last hour comes from history, with values as soon as there is a line of it."""
    browser.button("Hour", ".ranges").click()
    browser.wait(lambda: len(browser.all(".chart canvas")) == 6, "the hour's charts")
    browser.wait(lambda: "no value" not in browser.one(".chart").get_attribute("aria-label"), "a line of history")
    browser.picture("instance-hour")
    for theme in ("Dark", "Light"):
        Select(browser.one("header select")).select_by_visible_text(theme)
        browser.driver.set_window_size(*NARROW)
        browser.driver.execute_script("document.querySelector('.ranges').scrollIntoView()")
        browser.wait(lambda: browser.driver.execute_script(
            "const page = document.documentElement; return page.scrollWidth <= page.clientWidth"), "all in view")
        browser.picture(f"instance-hour-{theme.lower()}-narrow")
        wide = browser.driver.execute_script("return document.documentElement.scrollWidth - innerWidth")
        expect(wide <= 0, f"the charts are {wide} pixels wider than {NARROW}")
        browser.check_access(f"charts {theme}")
    browser.driver.set_window_size(*WIDE)
    browser.button("Day", ".ranges").click()
    browser.wait(lambda: "no value" not in browser.one(".chart").get_attribute("aria-label"), "the day")


def rows_of(browser, label):
    """A table's rows as texts, by their first cell that says something."""
    return {next((cell for cell in cells if cell), ""): cells for cells in browser.driver.execute_script(
        "return [...document.querySelectorAll(`table[aria-label='${arguments[0]}'] tbody tr`)].map(row =>"
        " [...row.querySelectorAll('td')].map(cell => cell.textContent))", label)}


def press(browser, label):
    browser.wait(lambda: browser.one(f"main button[aria-label='{label}']").is_enabled(), f"the button {label!r}")
    browser.one(f"main button[aria-label='{label}']").click()


def work_with_alarms(browser, platform):
    """One on the instance's page, raised and ended; one by tag, with all that can follow."""
    browser.go("instances/web/alarms", "web")
    browser.button("New alarm").click()
    browser.fill("name", "full")
    browser.pick("metric", "Memory of the host (bytes)")
    browser.fill("threshold", "1048576")
    browser.fill("for_s", "0")
    browser.wait(lambda: "memory of the host above 1 MiB: then an event" in browser.one("dialog .note").text, "the alarm in words")
    browser.picture("alarm-new")
    browser.check_access("new alarm")
    browser.button("Create", "dialog").click()
    browser.wait(lambda: "alarm" in rows_of(browser, "Alarms")["full"], "the alarm's state")
    browser.picture("instance-alarms")
    web = platform.ok("GET", "/v1/instances/web")["id"]
    made = platform.ok("GET", "/v1/alarms/full")
    expect((made["instance"], made["firing"], made["for_s"]) == (web, [web], 0), f"{made}")
    browser.button("full").click()
    browser.wait(lambda: browser.one("h1").text == "full", "the alarm's page")
    browser.wait(lambda: "alarm.raised" in browser.one("table[aria-label=Events]").text, "what it did")
    browser.wait(lambda: browser.all(".chart canvas"), "what it watches")
    expect(facts(browser)["In alarm"] == "web", f"{facts(browser)}")
    browser.picture("alarm")
    browser.check_access("alarm")
    browser.button("Change").click()
    browser.wait(lambda: browser.one("#field-threshold").get_attribute("value") == "1048576", "its threshold")
    browser.fill("threshold", str(1 << 40))
    browser.button("Change", "dialog").click()
    browser.wait(lambda: facts(browser)["State"].startswith("ok") and "In alarm" not in facts(browser), "its end")
    browser.wait(lambda: "alarm.ended" in browser.one("table[aria-label=Events]").text, "the event of its end")
    expect(facts(browser)["When"] == "memory of the host above 1 TiB", f"{facts(browser)}")

    browser.go("alarms", "Alarms")
    browser.button("New").click()
    wanted = {"name": "busy", "tag": "env=prod", "threshold": 99, "webhook": "http://192.0.2.1/told"}
    for field, value in wanted.items():
        browser.fill(field, str(value))
    browser.pick("metric", "CPU in use (%)")
    browser.pick("action", "reboot")
    browser.button("Create", "dialog").click()
    browser.wait(lambda: rows_of(browser, "Alarms")["busy"][3:6] == ["CPU in use above 99 % for 1 minute", "each with env=prod",
                                                                     "it is rebooted, 192.0.2.1 is told"], "the second alarm")
    browser.picture("alarms")
    made = platform.ok("GET", "/v1/alarms/busy")
    expect({**wanted, "action": "reboot", "comparison": "above"}.items() <= made.items() and "instance" not in made, f"{made}")


def work_with_secrets(browser, platform):
    """A key pair and a token: what only the answer has is shown, once, and works."""
    browser.go("keys", "Key pairs")
    browser.button("New").click()
    browser.fill("name", "laptop")
    browser.button("Create", "dialog").click()
    browser.wait(lambda: browser.one("dialog .secret").text.startswith("-----BEGIN OPENSSH PRIVATE KEY-----"), "the private key")
    browser.check_access("a new key")
    browser.button("Done", "dialog").click()
    fingerprint = platform.ok("GET", "/v1/keys/laptop")["fingerprint"]
    browser.wait(lambda: fingerprint in rows_of(browser, "Key pairs")["laptop"], "the key")
    expect("PRIVATE" not in browser.driver.page_source, "the private key is still there")

    browser.go("tokens", "API tokens")
    browser.button("New").click()
    browser.fill("name", "ci")
    browser.pick("role", "viewer")
    browser.button("Create", "dialog").click()
    browser.wait(lambda: browser.one("dialog .secret").text.startswith("cbl_"), "the token")
    token = browser.one("dialog .secret").text
    browser.button("Done", "dialog").click()
    expect(platform.ok("GET", "/v1/keys/laptop", token=token)["fingerprint"] == fingerprint, "the token reads nothing")
    platform.refused(403, "POST", "/v1/keys", {"name": "other"}, token=token)
    browser.wait(lambda: rows_of(browser, "API tokens")["ci"][1:3] == ["ann", "viewer"], "the token's row")


def work_with_cards(browser, platform):
    """A card of one's own: to an instance and away again; ports and limits of one that runs."""
    spare = platform.ok("POST", "/v1/instances", {"name": "spare", "image": "busybox", "memory_mib": 128, "desired": "stopped"})
    platform.finish(spare)
    own = spare["instance"]["nic"]
    browser.go("nics", "Network cards")
    browser.button("New").click()
    browser.fill("name", "front")
    browser.fill("mac", "52:54:00:c0:ff:ee")
    browser.button("Create", "dialog").click()
    browser.wait(lambda: rows_of(browser, "Network cards")["front"][2:5] == ["52:54:00:c0:ff:ee", "user", "available"], "the card")
    expect(not browser.one("input[aria-label='Select " + own + "']").is_enabled(), "an instance's own card can be deleted")
    press(browser, "Attach front")
    browser.pick("instance", "spare")
    browser.picture("nic-attach")
    browser.check_access("attach a card")
    browser.button("Attach", "dialog").click()
    browser.wait(lambda: rows_of(browser, "Network cards")["front"][4:6] == ["in-use", "spare"], "the card at its instance")
    expect(platform.ok("GET", "/v1/instances/spare")["nic"] == platform.ok("GET", "/v1/nics/front")["id"], "it has another")
    platform.refused(404, "GET", f"/v1/nics/{own}")
    press(browser, "Detach front")
    browser.button("Detach", "dialog").click()
    browser.wait(lambda: rows_of(browser, "Network cards")["front"][4] == "available", "the card alone")
    platform.refused(404, "GET", f"/v1/nics/{own}")

    browser.go("instances/web/network", "web")
    expect(not browser.button("Change card").is_enabled(), "a running machine changes its card")
    browser.button("Add forward").click()
    browser.fill("guest_port", "80")
    browser.button("Add", "dialog").click()
    browser.wait(lambda: any(row[1:3] == ["80", "open"] for row in rows_of(browser, "Forwarded ports").values()), "the forward")
    (port,) = [one["host_port"] for one in platform.ok("GET", "/v1/instances/web")["ports"] if one["guest_port"] == 80]
    expect(f"127.0.0.1:{port}" in rows_of(browser, "Forwarded ports"), "another port")
    browser.picture("instance-network")
    browser.check_access("the instance's network")
    press(browser, "Remove the forward to 80")
    browser.wait(lambda: "No port leads into it" in browser.text(), "no forward")
    expect(platform.ok("GET", "/v1/instances/web")["forwards"] == [], "it is still wanted")
    browser.button("Change limits").click()
    browser.fill("net_pps", "500")
    browser.button("Change", "dialog").click()
    browser.wait(lambda: "500 frames/s" in facts(browser)["Limits, each way"], "the limit")
    expect(platform.ok("GET", "/v1/instances/web")["net_pps"] == 500, "another limit")


def work_with_volumes(browser, platform):
    """Made with limits, grown, given to an instance and taken away; one that is made for its instance."""
    browser.go("volumes", "Volumes")
    browser.button("New").click()
    for field, value in (("name", "data"), ("size_gib", "1"), ("bps", "20000000")):
        browser.fill(field, value)
    browser.button("Create", "dialog").click()
    browser.wait(lambda: rows_of(browser, "Volumes")["data"][2:6] == ["1 GiB", "available", "", "20 MB/s"], "the volume")
    press(browser, "Change data")
    browser.wait(lambda: browser.one("#field-size_gib").get_attribute("value") == "1", "what it has")
    browser.fill("size_gib", "2")
    browser.fill("iops", "300")
    browser.button("Change", "dialog").click()
    browser.wait(lambda: rows_of(browser, "Volumes")["data"][2:6] == ["2 GiB", "available", "", "20 MB/s, 300 operations/s"], "its growth")
    press(browser, "Attach data")
    browser.pick("instance", "spare")
    browser.button("Attach", "dialog").click()
    browser.wait(lambda: rows_of(browser, "Volumes")["data"][3:5] == ["in-use", "spare"], "the volume at its instance")
    expect(not browser.one("input[aria-label='Select data']").is_enabled(), "one that is in use can be deleted")
    now = platform.ok("GET", "/v1/volumes/data")
    expect((now["size_gib"], now["bps"], now["iops"]) == (2, 20000000, 300), f"{now}")
    browser.picture("volumes")
    browser.button("spare").click()
    browser.wait(lambda: browser.one("h1").text == "spare" and "data" in rows_of(browser, "Volumes"), "the instance's disks")
    browser.button("New volume").click()
    browser.fill("name", "more")
    browser.fill("size_gib", "1")
    browser.button("Create", "dialog").click()
    browser.wait(lambda: rows_of(browser, "Volumes")["more"][1:3] == ["1 GiB", "in-use"], "a volume that was made for it")
    browser.picture("instance-storage")
    browser.check_access("the instance's disks")
    press(browser, "Detach data")
    browser.button("Detach", "dialog").click()
    browser.wait(lambda: "data" not in rows_of(browser, "Volumes"), "that it is gone")
    expect(platform.ok("GET", "/v1/instances/spare")["volumes"] == [platform.ok("GET", "/v1/volumes/more")["id"]], "others")
    expect(platform.ok("GET", "/v1/volumes/data")["state"] == "available", "it is not free")


def work_in_the_console(place):
    with Platform(place, "--history-step", "1") as platform:
        give_disk(platform)
        platform.ok("POST", "/v1/users", {"name": "ann", "password": "correct horse", "role": "admin"})
        with Browser(platform.port) as browser:
            browser.sign_in("ann", "wrong horse")
            browser.wait(lambda: "no user has this name" in browser.text(), "the refusal")
            browser.picture("sign-in")
            browser.check_access("sign-in")
            browser.sign_in("ann", "correct horse")
            browser.wait(lambda: browser.one("h1").text == "Dashboard", "the dashboard")

            browser.button("Launch instance").click()
            browser.fill("name", "web")
            browser.pick("image", "busybox")
            browser.pick("engine", "soft")
            browser.fill("memory_mib", "128")
            for field, value in (("max_cpus", "2"), ("cpu_weight", "200"), ("cpu_cap_percent", "90"), ("pinned_cpus", "0"),
                                 ("memory_limit_mib", "512"), ("disk_iops", "5000"), ("net_bps", "10000000")):
                browser.fill(field, value)
            browser.driver.execute_script("document.querySelector('#field-cpu_weight').closest('fieldset').scrollIntoView()")
            browser.picture("launch-limits")
            browser.driver.execute_script("document.querySelector('#field-nic').closest('fieldset').scrollIntoView()")
            browser.picture("launch-network")
            browser.driver.execute_script("scrollTo(0, 0)")
            browser.picture("launch")
            browser.check_access("launch")
            browser.fill("tags", "env=prod")
            browser.button("Launch").click()
            browser.wait(lambda: browser.one("h1").text == "web", "the instance's page")
            browser.wait(lambda: any(b.text == "running" for b in browser.all(".badge")), "running")
            browser.wait(lambda: len(browser.all(".chart canvas")) == 6, "the charts")
            browser.wait(lambda: all("no value" not in chart.get_attribute("aria-label")
                                     for chart in browser.all(".chart")), "values in the charts")
            if PICTURES:  # charts with something in them
                browser.wait(lambda: browser.driver.execute_script(
                    "return performance.getEntriesByType('resource').filter(one => one.name.endsWith('/statistics')).length") > 20, "values")
            browser.picture("instance")
            browser.check_access("instance")
            look_at_charts(browser)
            resize_live(browser, platform)

            browser.button("Console").click()
            browser.wait(lambda: "connected" in browser.text(), "the console's connection")
            area = browser.one(".console textarea")
            area.send_keys(Keys.ENTER)
            browser.wait(lambda: "#" in browser.one(".console .xterm-rows").text, "a prompt")
            area.send_keys("echo $((6 * 7))-inside" + Keys.ENTER)
            browser.wait(lambda: "42-inside" in browser.one(".console .xterm-rows").text, "the guest's answer")
            browser.picture("console")

            work_with_alarms(browser, platform)
            work_with_secrets(browser, platform)
            work_with_cards(browser, platform)
            work_with_volumes(browser, platform)

            # All at once: filter, select, stop.
            browser.go("instances", "Instances")
            browser.one(".filter").send_keys("prod running")
            browser.wait(lambda: len(browser.all("tbody tr")) == 1, "one row")
            browser.one("thead input[type=checkbox]").click()
            browser.picture("instances")
            browser.check_access("instances")
            browser.button("Pause", ".bulk").click()
            browser.one(".filter").send_keys(Keys.CONTROL + "a")
            browser.one(".filter").send_keys("paused")
            browser.wait(lambda: [b.text for b in browser.all("tbody .badge")] == ["paused"], "paused")
            browser.button("Resume", ".bulk").click()

            work_with_snapshots(browser, platform)
            work_with_tenants(browser, platform)
            look_at_pages(browser, PAGES)
            look_at_pages(browser, [(f"instances/web/{tab}", "web") for tab in ("network", "storage", "alarms")] + [("alarms/full", "full")],
                          (("dark", "narrow"), ("light", "wide")))
            browser.go("snapshots", "Snapshots")
            for box in browser.all(".tree input[type=checkbox]"):
                box.click()
            browser.button("Delete", ".bulk").click()
            browser.button("Delete", "dialog").click()
            browser.wait(lambda: "No snapshot yet" in browser.text(), "no snapshot")
            browser.go("instances", "Instances")
            browser.one("thead input[type=checkbox]").click()
            browser.button("Delete", ".bulk").click()
            browser.button("Delete", "dialog").click()
            browser.wait(lambda: "No instance yet" in browser.text(), "an empty list")
            browser.button("Sign out").click()
            browser.wait(lambda: browser.all(".sign-in"), "the sign-in page")
            browser.check_requests()


TABS = ("overview", "network", "storage", "snapshots", "alarms", "events", "console")


def offer_what_is_allowed(place):
    """Whoever may only look, or is bound to a project, is offered nothing that is refused, and sees nothing of others."""
    with Platform(place) as platform:
        for project, word in (("default", "foreign"), ("blue", "own")):
            if project == "blue":
                platform.ok("POST", "/v1/projects", {"name": project, "max_instances": 3})
            for path, body in (("instances", {"name": f"{word}-vm", "image": "busybox", "memory_mib": 128, "desired": "stopped"}),
                               ("volumes", {"name": f"{word}-data", "size_gib": 1}), ("nics", {"name": f"{word}-card"}),
                               ("keys", {"name": f"{word}-key"}), ("snapshots", {"name": f"{word}-snap", "volume": f"{word}-data"}),
                               ("alarms", {"name": f"{word}-alarm", "metric": "cpu_percent", "threshold": 1, "instance": f"{word}-vm"})):
                answer = platform.ok("POST", f"/v1/{path}?project={project}", body)
                if "operation" in answer:
                    platform.finish(answer)
        machine = platform.ok("GET", "/v1/instances/own-vm?project=blue")["id"]
        for role in ("viewer", "admin"):
            platform.ok("POST", "/v1/users", {"name": role, "password": "correct horse", "role": role, "project": "blue"})
        of_hosts = tuple((route, heading) for route, heading in PAGES if route in ("types", "projects", "quotas", "users", "roles"))
        tours = {"viewer": (*PAGES, *((f"instances/{machine}/{tab}", "own-vm") for tab in TABS), ("alarms/own-alarm", "own-alarm")),
                 "admin": of_hosts}
        with Browser(platform.port) as browser:
            for role, tour in tours.items():
                browser.sign_in(role, "correct horse")
                browser.wait(lambda: browser.one("h1").text == "Dashboard", "the dashboard")
                expect("Users" not in browser.one("nav.menu").text, "users are on the menu")
                browser.wait(lambda: "Instances\n1 of 3" in browser.one("section[aria-label='Quotas of blue']").text, "what the project uses")
                expect("The host" not in browser.text() and "given away" not in browser.text(), f"the host's sums: {browser.text()}")
                for route, heading in tour:
                    browser.go(route, heading)
                    browser.wait(lambda: browser.all("main table, main .empty, main form, main .card, main .tree, main .last-words"),
                                 f"the content of {route}")
                    expect("foreign" not in browser.driver.page_source, f"{role} sees others on {route}")
                    offered = [element.text for element in browser.all("main button:not(.sort), main .button, main input[type=checkbox]")
                               if element.is_displayed() and "ranges" not in element.find_element(By.XPATH, "..").get_attribute("class")]
                    expect(offered == (["New"] if route == "tokens" else []), f"{role} is offered {offered} on {route}")
                browser.check_requests()
                browser.button("Sign out", "header").click()
                browser.wait(lambda: browser.all(".sign-in"), "the sign-in page")

            # Who comes next sees nothing of what the one before saw, even when no list can be had.
            platform.ok("POST", "/v1/users", {"name": "root", "password": "correct horse", "role": "admin"})
            browser.sign_in("root", "correct horse")
            browser.go("instances", "Instances")
            browser.wait(lambda: "foreign-vm" in browser.text(), "all instances")
            browser.button("Sign out", "header").click()
            browser.wait(lambda: browser.all(".sign-in"), "the sign-in page")
            browser.driver.execute_cdp_cmd("Network.enable", {})
            browser.driver.execute_cdp_cmd("Network.setBlockedURLs", {"urls": ["*/v1/keys?*"]})
            browser.fill("name", "viewer")
            browser.fill("password", "correct horse")
            browser.button("Sign in").click()
            browser.wait(lambda: browser.one("h1").text == "Instances", "the page after the sign-in")
            browser.wait(lambda: "cannot be reached" in browser.text(), "that a list did not come")
            expect("foreign" not in browser.driver.page_source, "what another saw is still there")
            browser.driver.execute_cdp_cmd("Network.setBlockedURLs", {"urls": []})

            # One who is bound to another project sees that at once; one who is deleted has to sign in.
            browser.go("nics", "Network cards")
            browser.driver.refresh()
            browser.wait(lambda: "own-card" in browser.text(), "the project's cards")
            platform.ok("PATCH", "/v1/users/viewer", {"project": "default", "role": "member"})
            browser.wait(lambda: "foreign-card" in browser.text() and "own-card" not in browser.text(), "another project's cards")
            browser.button("New", "main")
            platform.ok("DELETE", "/v1/users/viewer")
            browser.wait(lambda: browser.all(".sign-in"), "the sign-in page")
            browser.sign_in("root", "correct horse")
            browser.wait(lambda: browser.one("h1").text == "Dashboard", "the dashboard")
            browser.wait(lambda: browser.all("section[aria-label='Charts of the host']"), "the host's charts")
            browser.wait(lambda: browser.text().count("given away") == 2, "what all have")
            browser.driver.get(f"{browser.origin}/#/%E0%A4%A")
            browser.wait(lambda: browser.one("h1").text == "There is no such page", "a page for an address that is none")


FOLLOW_AT_ONCE = """new MutationObserver((_, observer) => {
  if (document.querySelector("h1")?.textContent === "Dashboard") { observer.disconnect(); location.hash = "#/nics"; }
}).observe(document.body, { childList: true, subtree: true });"""


def follow_a_link_at_once(place):
    """A page that is asked for while another is drawn comes."""
    with Platform(place) as platform:
        platform.ok("POST", "/v1/users", {"name": "kim", "password": "correct horse", "role": "member"})
        with Browser(platform.port) as browser:
            browser.driver.get(browser.origin)
            browser.one("#field-name")
            browser.driver.execute_script(FOLLOW_AT_ONCE)
            browser.fill("name", "kim")
            browser.fill("password", "correct horse")
            browser.button("Sign in").click()
            browser.wait(lambda: browser.one("h1").text == "Network cards", "the page that was asked for last")
            browser.check_requests()


def use_the_keyboard_only(place):
    """From the address bar to a new volume without a mouse."""
    with Platform(place) as platform:
        platform.ok("POST", "/v1/users", {"name": "kim", "password": "correct horse", "role": "member"})
        with Browser(platform.port) as browser:
            browser.sign_in("kim", "correct horse")
            browser.wait(lambda: browser.one("h1").text == "Dashboard", "the dashboard")
            expect("Users" not in browser.one("nav.menu").text, "a member sees the users' page")
            browser.go("volumes", "Volumes")

            def focused():
                return browser.driver.switch_to.active_element

            def tab_to(text):
                for _ in range(60):
                    element = focused()
                    if text in (element.text, element.get_attribute("id"), element.get_attribute("name")):
                        return element
                    element.send_keys(Keys.TAB)
                raise AssertionError(f"no way to {text!r} by keyboard")
            tab_to("New").send_keys(Keys.ENTER)
            browser.one("dialog[open]")
            focused().send_keys(Keys.ESCAPE)
            browser.wait(lambda: not browser.all("dialog") and focused().text == "New", "the way back to where it was opened")
            focused().send_keys(Keys.ENTER)
            browser.one("dialog[open]")
            tab_to("field-name").send_keys("typed")
            tab_to("field-size_gib").send_keys("1" + Keys.ENTER)
            browser.wait(lambda: "typed" in browser.one("table").text, "the volume")
            browser.wait(lambda: "available" in browser.one("table").text, "that it is there")
            expect(focused().text == "New", f"the focus went to {focused().tag_name}")

            # A snapshot of it, and away with that again.
            browser.go("snapshots", "Snapshots")
            tab_to("New").send_keys(Keys.ENTER)
            browser.one("dialog[open]")
            tab_to("field-name").send_keys("kept")
            tab_to("field-volume").send_keys("typed")
            tab_to("field-name").send_keys(Keys.ENTER)
            browser.wait(lambda: "kept" in nested(browser) and not browser.all(".tree .badge"), "the snapshot")
            tab_to("Delete").send_keys(Keys.ENTER)
            browser.one("dialog[open]")
            tab_to("Delete").send_keys(Keys.ENTER)
            browser.wait(lambda: "No snapshot yet" in browser.text(), "that it is gone")


if __name__ == "__main__":
    run_tests([("work in the console", work_in_the_console), ("offer what is allowed", offer_what_is_allowed),
               ("follow a link at once", follow_a_link_at_once), ("use the keyboard only", use_the_keyboard_only)])
