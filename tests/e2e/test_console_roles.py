#!/usr/bin/python3
"""The web console's roles and CPU credits, in a real Chromium: roles are made, given, changed and deleted there, whoever has
one sees what it lets them see, and a machine's page has its credits."""

from harness import expect, run_tests
from platform_rig import Platform
from selenium.webdriver.support.ui import Select
from test_console import Browser, facts, look_at_pages, rows_of
from test_limits import SPIN, Host


def fill_statement(browser, number, **parts):
    for name, text in parts.items():
        if name == "effect":
            browser.pick(f"effect-{number}", text)
        else:
            browser.fill(f"{name}-{number}", text)


def names_of(select):
    return [option.text for option in Select(select).options]


def make_a_role(browser, platform):
    browser.go("roles", "Roles")
    browser.wait(lambda: set(rows_of(browser, "Roles")) == {"viewer", "member", "admin"}, "what is built in")
    expect(not [box for box in browser.all("main input[type=checkbox]") if box.is_enabled()], "what is built in can be deleted")
    browser.button("New").click()
    browser.wait(lambda: browser.one("h1").text == "New role", "the form")
    browser.fill("name", "developer")
    fill_statement(browser, 1, actions="instance.fly", resources="instance volume", conditions="env=dev\nteam=the blue one")
    browser.button("Create").click()
    browser.wait(lambda: "there is no action \"instance.fly\"" in browser.one("main .error").text, "the refusal")
    fill_statement(browser, 1, actions="instance.* volume.*")
    browser.button("Add a statement").click()
    fill_statement(browser, 2, actions="watch event.get event.list", resources="*")
    browser.button("Add a statement").click()
    fill_statement(browser, 3, effect="deny", actions="instance.delete", resources="*")
    browser.button("Add a statement").click()
    browser.one("button[aria-label='Remove statement 4']").click()
    browser.wait(lambda: not browser.all("#field-actions-4"), "one less")
    browser.driver.execute_script("document.querySelector('details').open = true")
    browser.wait(lambda: "volume.create" in browser.one("details").text, "all actions")
    browser.check_access("a new role")
    browser.button("Create").click()
    browser.wait(lambda: browser.one("h1").text == "Roles" and "deny instance.delete" in "".join(rows_of(browser, "Roles")["developer"]), "the new role")
    made = platform.ok("GET", "/v1/roles/developer")["statements"]
    expect(made == [
        {"effect": "allow", "actions": ["instance.*", "volume.*"], "resources": ["instance", "volume"],
         "conditions": {"tag.env": "dev", "tag.team": "the blue one"}},
        {"effect": "allow", "actions": ["watch", "event.get", "event.list"], "resources": ["*"]},
        {"effect": "deny", "actions": ["instance.delete"], "resources": ["*"]}], f"{made}")
    look_at_pages(browser, (("roles", "Roles"), ("roles/developer", "developer"), ("roles/viewer", "viewer")))


def change_a_role(browser, platform):
    """What the form shows is what there is: only what was changed is another."""
    before = platform.ok("GET", "/v1/roles/developer")["statements"]
    browser.go("roles/developer", "developer")
    expect(browser.one("#field-conditions-1").get_attribute("value") == "env=dev\nteam=the blue one", "the tags")
    browser.fill("conditions-1", "env=dev")
    browser.button("Save").click()
    browser.wait(lambda: browser.one("h1").text == "Roles", "the list")
    after = platform.ok("GET", "/v1/roles/developer")["statements"]
    expect(after == [{**before[0], "conditions": {"tag.env": "dev"}}, *before[1:]], f"{after}")


def give_a_role(browser, platform):
    browser.go("users", "Users")
    browser.button("New").click()
    browser.wait(lambda: "developer" in names_of(browser.one("#field-role")), "the new role among the others")
    browser.fill("name", "dev")
    browser.fill("password", "correct horse")
    browser.pick("role", "developer")
    browser.button("Create", "dialog").click()
    browser.wait(lambda: browser.all("select[aria-label='Role of dev']"), "the user")
    choice = browser.one("select[aria-label='Role of dev']")
    browser.wait(lambda: names_of(choice) == ["viewer", "member", "admin", "developer"], "what a user may be")
    expect(Select(choice).first_selected_option.text == "developer", "another role is shown")
    expect(platform.ok("GET", "/v1/users")["items"][1]["role"] == "developer", "another role")
    browser.go("tokens", "API tokens")
    browser.button("New").click()
    browser.wait(lambda: "developer" in names_of(browser.one("#field-role")), "the new role for a token")
    browser.button("Cancel", "dialog").click()
    browser.go("roles", "Roles")
    browser.one("input[aria-label='Select developer']").click()
    browser.button("Delete", ".bulk").click()
    browser.button("Delete", "dialog").click()
    browser.wait(lambda: "user dev has the role" in browser.text(), "the refusal")


def work_with_a_role(browser, platform):
    """Whoever has it sees what it allows, live, and no more; what it forbids is said when it is tried."""
    browser.button("Sign out", "header").click()
    browser.wait(lambda: browser.all(".sign-in"), "the sign-in page")
    browser.sign_in("dev", "correct horse")
    browser.wait(lambda: browser.one("h1").text == "Dashboard", "the dashboard")
    browser.go("roles", "Roles")
    expect("does not go so far" in browser.text(), "roles are shown")
    expect("Roles" not in browser.one("nav.menu").text, "roles are on the menu")
    browser.go("instances", "Instances")
    browser.wait(lambda: list(rows_of(browser, "Instances")) == ["of-dev"], "its instance alone")
    platform.ok("PATCH", "/v1/instances/of-prod", {"tags": {"env": "dev"}})
    browser.wait(lambda: set(rows_of(browser, "Instances")) == {"of-dev", "of-prod"}, "another that became its own")
    browser.go("nics", "Network cards")
    browser.wait(lambda: "No network cards" in browser.text(), "no cards")
    browser.go(f"instances/{platform.ok('GET', '/v1/instances/of-dev')['id']}", "of-dev")
    browser.button("Delete").click()
    browser.button("Delete", "dialog").click()
    browser.wait(lambda: "its role does not allow instance.delete" in browser.text(), "the refusal")
    expect(platform.state("of-dev") == "stopped", "it is gone")
    # Without the stream the lists are asked for again.
    platform.ok("PATCH", "/v1/roles/developer", {"statements": [
        {"effect": "allow", "actions": ["instance.get", "instance.list"], "resources": ["*"]}]})
    platform.ok("PATCH", "/v1/instances/of-prod", {"name": "renamed"})
    browser.go("instances", "Instances")
    browser.wait(lambda: "renamed" in rows_of(browser, "Instances"), "the new name")
    browser.wait(lambda: "reconnecting" not in browser.text(), "no word of a connection that cannot be had")


def work_with_roles(place):
    with Platform(place) as platform:
        platform.ok("POST", "/v1/users", {"name": "ann", "password": "correct horse", "role": "admin"})
        for env in ("dev", "prod"):
            platform.finish(platform.ok("POST", "/v1/instances", {"name": f"of-{env}", "image": "busybox", "desired": "stopped",
                                                                  "tags": {"env": env}}))
        with Browser(platform.port) as browser:
            browser.sign_in("ann", "correct horse")
            browser.wait(lambda: browser.one("h1").text == "Dashboard", "the dashboard")
            make_a_role(browser, platform)
            change_a_role(browser, platform)
            give_a_role(browser, platform)
            work_with_a_role(browser, platform)
            browser.button("Sign out", "header").click()
            browser.wait(lambda: browser.all(".sign-in"), "the sign-in page")
            browser.sign_in("ann", "correct horse")
            platform.ok("DELETE", "/v1/users/dev")
            browser.go("roles", "Roles")
            browser.one("input[aria-label='Select developer']").click()
            browser.button("Delete", ".bulk").click()
            browser.button("Delete", "dialog").click()
            browser.wait(lambda: set(rows_of(browser, "Roles")) == {"viewer", "member", "admin"}, "that it is gone")


def show_credits(place):
    with Host(place, "--history-step", "1") as host:
        host.ok("POST", "/v1/users", {"name": "ann", "password": "correct horse", "role": "admin"})
        busy = host.tiny("busy", SPIN, cpu_baseline_percent=1)["id"]
        with Browser(host.port) as browser:
            browser.sign_in("ann", "correct horse")
            browser.wait(lambda: browser.one("h1").text == "Dashboard", "the dashboard")
            browser.go(f"instances/{busy}", "busy")
            browser.wait(lambda: "held at 1 %" in facts(browser).get("CPU credits", ""), "that it is held")
            shown = facts(browser)
            expect(shown["CPU credits"].startswith("0 s of 14 min 24 s") and "1 % earned as credits" in shown["Limits"], f"{shown}")
            browser.picture("instance-credits")
            browser.check_access("a machine that is held")
            browser.button("Resize").click()
            browser.fill("cpu_baseline_percent", "100")
            browser.button("Resize", "dialog").click()
            browser.wait(lambda: "held" not in facts(browser)["CPU credits"], "that it is let go")
            browser.check_requests()


if __name__ == "__main__":
    run_tests([
        ("work with roles", work_with_roles),
        ("show credits", show_credits),
    ])
