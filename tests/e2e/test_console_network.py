#!/usr/bin/python3
"""The web console where the host has bridges: in a network namespace of the test's own, with a DHCP
server on the bridge, a real Chromium and a real machine."""

from harness import expect, run_tests
from platform_rig import Platform
from test_console import WIDE, Browser, facts, rows_of
from test_network import BRIDGE, FIRST, HOST, dhcp_server, enter, ip, privileged

ADDRESS = "10.9.0.10"
ON_BRIDGE = f"bridge {BRIDGE}: on a wire of the host"


def choose_a_bridge(place):
    """A card on a bridge, a machine with it that gets an address there, and back to the user-mode network."""
    with privileged(place), dhcp_server(place, {FIRST: ADDRESS}), \
            Platform(place, "--bridge", BRIDGE, "--bridge", "br9") as platform:
        platform.ok("POST", "/v1/users", {"name": "ann", "password": "correct horse", "role": "admin"})
        with Browser(platform.port) as browser:
            browser.sign_in("ann", "correct horse")
            browser.go("nics", "Network cards")
            browser.wait(lambda: "The bridge br9 is not ready" in browser.text(), "what is wrong with the other")
            browser.button("New").click()
            browser.wait(lambda: browser.all("#field-network option[value='bridge:br9']"), "the other bridge")
            expect(not browser.one("#field-network option[value='bridge:br9']").is_enabled(), "one that is not ready is offered")
            browser.fill("name", "wire")
            browser.fill("mac", FIRST)
            browser.pick("network", ON_BRIDGE)
            browser.check_access("a card on a bridge")
            browser.button("Create", "dialog").click()
            browser.wait(lambda: f"bridge:{BRIDGE}" in rows_of(browser, "Network cards")["wire"], "the card")
            expect(platform.ok("GET", "/v1/nics/wire")["network"] == f"bridge:{BRIDGE}", "it leads elsewhere")

            browser.go("launch", "Launch instance")
            for field, value in (("name", "vm"), ("memory_mib", "128")):
                browser.fill(field, value)
            browser.pick("image", "busybox")
            browser.pick("engine", "soft")
            browser.pick("nic", f"wire, {FIRST}, bridge:{BRIDGE}")
            browser.button("Launch").click()
            browser.wait(lambda: browser.one("h1").text == "vm" and facts(browser).get("Address") == ADDRESS, "its address on the bridge")
            expect(platform.ok("GET", "/v1/instances/vm")["address"] == ADDRESS, "another address")
            browser.button("Network", ".tabs").click()
            browser.wait(lambda: facts(browser)["Network"] == f"bridge:{BRIDGE}", "its network")
            expect("ports are not forwarded" in browser.text() and not browser.all("button[aria-label^='Remove']"), "forwards are offered")
            browser.driver.set_window_size(*WIDE)
            browser.picture("instance-bridge")
            browser.check_access("the network of a machine on a bridge")

            browser.go("instances", "Instances")
            browser.wait(lambda: ADDRESS in rows_of(browser, "Instances")["vm"], "its address in the list")
            browser.go(f"instances/{platform.ok('GET', '/v1/instances/vm')['id']}/network", "vm")
            browser.button("Stop").click()
            browser.wait(lambda: browser.button("Change card").is_enabled(), "its end")
            browser.button("Change card").click()
            browser.pick("nic", "(one of its own)")
            browser.pick("network", "user: behind an address of the host")
            browser.button("Change", "dialog").click()
            browser.wait(lambda: facts(browser)["Network"] == "user" and browser.button("Add forward").is_enabled(), "the user-mode network")
            now = platform.ok("GET", "/v1/instances/vm")
            expect(now["network"] == "user" and platform.ok("GET", "/v1/nics/wire")["state"] == "available", f"{now}")
            browser.check_requests()


def main():
    enter("busybox")
    ip("link", "set", "lo", "up")
    ip("link", "add", BRIDGE, "type", "bridge")
    ip("address", "add", f"{HOST}/24", "dev", BRIDGE)
    ip("link", "set", BRIDGE, "up")
    run_tests([("choose a bridge", choose_a_bridge)])


if __name__ == "__main__":
    main()
