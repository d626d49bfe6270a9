#!/usr/bin/python3
"""The web console's pages of who signs in how, of what projects use, and of who is told what happens:
a real Chromium, a real machine, and real servers that hear."""

import pathlib
import shutil
import subprocess
import sys
import time

from harness import expect, run_tests
from platform_rig import Platform
from test_accounts import code_of
from test_console import NARROW, WIDE, Browser, Keys, Select, facts, look_at_pages, rows_of
from test_metrics import STEP, Receiver


if shutil.which("zbarimg") is None:
    print("skipped: zbarimg is not installed")
    sys.exit(77)


def look_here(browser, name):
    """The page as it stands, dark and light, wide and narrow."""
    for theme in ("dark", "light"):
        browser.driver.execute_script("document.documentElement.dataset.theme = arguments[0]", theme)
        for size, word in ((WIDE, "wide"), (NARROW, "narrow")):
            browser.driver.set_window_size(*size)
            wide = browser.driver.execute_script("return document.documentElement.scrollWidth - innerWidth")
            expect(wide <= 0, f"{name} is {wide} pixels wider than {size}")
            browser.picture(f"{name}-{theme}-{word}")
            browser.check_access(f"{name} {theme} {word}")
    browser.driver.set_window_size(*WIDE)


def read_code(place, picture):
    """What a QR code says to a reader that is not ours."""
    path = pathlib.Path(place.home) / "code.png"
    path.write_bytes(picture)
    return subprocess.run(["zbarimg", "--quiet", "--raw", "-Sdisable", "-Sqrcode.enable", path], stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, text=True, check=True).stdout.strip()


def refusals(browser, count):
    """So many answers that refuse, and nothing else, were said to be errors."""
    told = [entry["message"] for entry in browser.driver.get_log("browser") if entry["level"] == "SEVERE"]
    told = [text for text in told if not text.split()[0].endswith("/v1/session")]
    expect(len(told) == count, f"{told}")


def sign_in_with_a_second_factor(place):
    """Set up, used, used up, taken away by an administrator, and by its user."""
    with Platform(place) as platform:
        for name, role in (("ann", "admin"), ("bea", "viewer")):
            platform.ok("POST", "/v1/users", {"name": name, "password": "correct horse", "role": role})
        with Browser(platform.port) as browser:
            browser.sign_in("ann", "correct horse")
            browser.wait(lambda: browser.one("h1").text == "Dashboard", "the dashboard")
            browser.button("Second factor", "nav.menu").click()
            browser.wait(lambda: browser.button("Set up"), "the page")
            look_here(browser, "factor-off")
            browser.fill("password", "wrong horse")
            browser.button("Set up").click()
            browser.wait(lambda: "not the password" in browser.one("#field-password-help.error").text, "the refusal")
            browser.fill("password", "correct horse" + Keys.ENTER)
            secret = browser.wait(lambda: browser.one("code.secret").text.replace(" ", ""), "the secret")
            address = browser.one("main a[href^='otpauth:']").get_attribute("href")
            expect(f"secret={secret}&" in address, "another secret")
            for theme in ("dark", "light"):
                browser.driver.execute_script("document.documentElement.dataset.theme = arguments[0]", theme)
                expect(read_code(place, browser.one("svg.qr").screenshot_as_png) == address, f"the picture says something else, {theme}")
            look_here(browser, "factor-secret")
            browser.fill("code", "12345" + Keys.ENTER)
            browser.wait(lambda: "not the code" in browser.one("#field-code-help.error").text, "the refusal")
            refusals(browser, 2)
            code = code_of(secret, time.time())
            browser.fill("code", f"{code[:3]} {code[3:]}" + Keys.ENTER)
            spare = browser.wait(lambda: browser.one("pre.secret").text, "the recovery codes").splitlines()
            expect(len(set(spare)) == 8, f"{spare}")
            look_here(browser, "factor-codes")
            browser.button("I have kept them").click()
            browser.wait(lambda: facts(browser) == {"State": "on", "Recovery codes left": "8"}, "that it is on")
            platform.ok("POST", "/v1/keys", {"name": "after"})
            browser.go("keys", "Key pairs")
            browser.wait(lambda: "after" in rows_of(browser, "Key pairs"), "the stream of the new session")

            browser.button("Sign out").click()
            browser.wait(lambda: browser.all(".sign-in"), "the sign-in page")
            expect(not browser.all("#field-code"), "everybody is asked for a code")
            browser.sign_in("ann", "correct horse")
            browser.wait(lambda: browser.driver.switch_to.active_element.get_attribute("id") == "field-code", "the question for a code")
            browser.wait(lambda: "is needed" in browser.one("#field-code-help.error").text, "why")
            look_here(browser, "sign-in-code")
            browser.fill("code", code + Keys.ENTER)  # it has confirmed
            browser.wait(lambda: "was used" in browser.one("#field-code-help.error").text, "the refusal")
            browser.fill("code", spare[0].lower() + Keys.ENTER)
            browser.wait(lambda: browser.all("nav.menu"), "that it is signed in")
            browser.go("second-factor", "Second factor")
            browser.wait(lambda: facts(browser).get("Recovery codes left") == "7", "that one is used up")
            look_here(browser, "factor-on")

            browser.go("users", "Users")
            browser.wait(lambda: "Reset" in rows_of(browser, "Users")["ann"], "who has one")
            expect("Reset" not in rows_of(browser, "Users")["bea"], "who has none")
            look_at_pages(browser, [("users", "Users")], [("light", "wide"), ("dark", "narrow")])
            browser.one("button[aria-label='Reset second factor of ann']").click()
            browser.button("Reset", "dialog").click()
            browser.wait(lambda: "Reset" not in rows_of(browser, "Users")["ann"], "that it is gone")
            expect("second_factor" not in platform.ok("GET", "/v1/users")["items"][0], "it is there still")

            # Once more, and taken away by a code.
            browser.go("second-factor", "Second factor")
            browser.fill("password", "correct horse" + Keys.ENTER)
            again = browser.wait(lambda: browser.one("code.secret").text.replace(" ", ""), "another secret")
            browser.fill("code", code_of(again, time.time()) + Keys.ENTER)
            spare = browser.wait(lambda: browser.one("pre.secret").text, "other recovery codes").splitlines()
            browser.button("I have kept them").click()
            browser.fill("code", spare[-1] + Keys.ENTER)
            browser.wait(lambda: browser.button("Set up"), "that it is gone")
            browser.check_requests()

            browser.button("Sign out").click()
            browser.wait(lambda: browser.all(".sign-in"), "the sign-in page")
            browser.sign_in("bea", "correct horse")
            browser.wait(lambda: browser.all("nav.menu"), "that it is signed in without a code")


def tell_by_webhooks(place):
    """Made, told, changed to one that refuses, looked at by who may only look, and deleted."""
    receiver, refusing = Receiver(503), Receiver(410)
    with Platform(place, *STEP, "--local-webhooks") as platform, Browser(platform.port) as browser:
        for name, role in (("ann", "member"), ("bea", "viewer")):
            platform.ok("POST", "/v1/users", {"name": name, "password": "correct horse", "role": role})
        browser.sign_in("ann", "correct horse")
        browser.go("hooks", "Webhooks")
        browser.wait(lambda: "No webhooks." in browser.text(), "the empty page")
        browser.button("New", "main .page-head").click()
        browser.fill("webhook", "ftp://example.org/")
        browser.button("Create", "dialog").click()
        browser.wait(lambda: "http://" in browser.one("#field-webhook-help.error").text, "the refusal")
        refusals(browser, 1)
        browser.button("Cancel", "dialog").click()
        browser.button("New", "main .page-head").click()
        browser.fill("name", "ops")
        browser.fill("webhook", receiver.url)
        browser.fill("action", "key.")
        browser.picture("hook-new")
        browser.check_access("new webhook")
        browser.button("Create", "dialog").click()
        browser.wait(lambda: len(browser.one("dialog code.secret").text) == 64, "the secret")
        browser.check_access("the secret")
        browser.button("Done", "dialog").click()
        browser.wait(lambda: "new" in rows_of(browser, "Webhooks")["ops"] and "key.*" in rows_of(browser, "Webhooks")["ops"], "the webhook")

        platform.ok("POST", "/v1/keys", {"name": "one"})
        browser.button("ops").click()
        browser.wait(lambda: browser.one("h1").text == "ops", "its page")
        browser.wait(lambda: facts(browser)["Told"] == "1", "that it was told")
        row = browser.wait(lambda: list(rows_of(browser, "Deliveries").values())[0], "the delivery")
        expect(row[1:4] == ["told", "key.create", 'key "one" is wanted'] and row[4].startswith("200 after ") and row[5] == "2", f"{row}")
        browser.button("Change").click()
        browser.wait(lambda: browser.one("#field-webhook").get_attribute("value") == receiver.url, "its address")
        browser.fill("webhook", refusing.url)
        browser.button("Change", "dialog").click()
        browser.wait(lambda: facts(browser)["Address"] == refusing.url, "the other address")
        platform.ok("POST", "/v1/keys", {"name": "two"})
        browser.wait(lambda: facts(browser)["Lost"] == "1" and facts(browser)["State"] == "failing", "that one was lost")
        browser.wait(lambda: "hook.failed" in browser.one("table[aria-label=Events]").text, "the event of that")
        rows = [cells[1] for cells in browser.driver.execute_script(
            "return [...document.querySelectorAll(`table[aria-label=Deliveries] tbody tr`)].map(row => [...row.querySelectorAll('td')]"
            ".map(cell => cell.textContent))")]
        expect(rows == ["lost", "told"], f"{rows}")
        hook = platform.ok("GET", "/v1/hooks/ops")["id"]
        look_at_pages(browser, [("hooks", "Webhooks"), (f"hooks/{hook}", "ops")])
        browser.check_requests()

        browser.button("Sign out").click()
        browser.sign_in("bea", "correct horse")
        browser.wait(lambda: browser.all("nav.menu"), "that it is signed in")
        browser.go(f"hooks/{hook}", "ops")
        browser.wait(lambda: facts(browser)["Address"] == "http://127.0.0.1:" + refusing.url.split(":")[2].split("/")[0] + "/…", "less of the address")
        expect(not [b.text for b in browser.all("main .page-head button")], "a viewer may change it")
        browser.button("Sign out").click()
        browser.sign_in("ann", "correct horse")
        browser.wait(lambda: browser.all("nav.menu"), "that it is signed in")
        browser.go(f"hooks/{hook}", "ops")
        browser.button("Delete").click()
        browser.button("Delete", "dialog").click()
        browser.wait(lambda: "No webhooks." in browser.text(), "that it is gone")
        browser.go("quotas", "Quotas")
        browser.wait(lambda: "Webhooks\n0, no limit" in browser.text(), "their quota")


def show_usage(place):
    """What a machine and a volume used, by project and by each, over time; and after they are gone."""
    with Platform(place, *STEP) as platform, Browser(platform.port) as browser:
        platform.ok("POST", "/v1/users", {"name": "ann", "password": "correct horse", "role": "member"})
        platform.ok("POST", "/v1/projects", {"name": "blue"})
        machine = platform.launch("web", cpus=2)
        platform.finish(platform.ok("POST", "/v1/volumes", {"name": "data", "size_gib": 300}))
        while platform.ok("GET", "/v1/usage")["items"][0:1] == [] or platform.ok("GET", "/v1/usage")["items"][0]["storage_gib_hours"] < 1:
            pass  # 12 seconds of 300 GiB
        browser.sign_in("ann", "correct horse")
        browser.go("usage", "Usage")
        browser.wait(lambda: len(browser.all(".chart canvas")) == 4, "the charts")
        row = browser.wait(lambda: rows_of(browser, "Usage")["default"], "the project")
        expect(float(row[3]) >= 1 and row[1] != "0" and row[2] != "0", f"{row}")
        expect("no value" not in browser.one(".chart").get_attribute("aria-label"), "a chart says nothing")
        browser.button("By object").click()
        browser.wait(lambda: {"web", "data"} <= set(rows_of(browser, "Usage")), "each of them")
        expect(browser.one(f"table[aria-label=Usage] a[href='#/instances/{machine}']").text == "web", "no way to the instance")
        browser.driver.execute_script("document.querySelector('table').scrollIntoView()")
        browser.picture("usage-table")
        look_at_pages(browser, [("usage", "Usage")])
        for name in ("30 days", "Year", "Day"):
            browser.button(name, ".ranges").click()
            browser.wait(lambda: len(browser.all(".chart canvas")) == 4, f"the charts of {name}")
        look_here(browser, "usage-by-project")
        browser.button("By object").click()
        platform.finish(platform.ok("DELETE", f"/v1/instances/{machine}"))
        browser.wait(lambda: "web (gone)" in rows_of(browser, "Usage"), "that it is gone, and counted")
        table = browser.driver.execute_async_script("const done = arguments[1]; fetch(arguments[0]).then(a => a.text()).then(done)",
                                                    browser.one("main a[download]").get_attribute("href")).split("\r\n")
        expect(table[0].startswith("project,project_name,id,name,vcpu_hours") and any(machine in line for line in table), f"{table}")
        Select(browser.one("select[aria-label='Whose usage']")).select_by_visible_text("blue")
        browser.wait(lambda: "Nothing was used." in browser.text(), "another project's")
        browser.check_requests()


if __name__ == "__main__":
    run_tests([("sign in with a second factor", sign_in_with_a_second_factor), ("tell by webhooks", tell_by_webhooks),
               ("show usage", show_usage)])
