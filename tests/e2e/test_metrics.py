#!/usr/bin/python3
"""What the platform tells of machines over time: the endpoint that Prometheus scrapes, history for
charts, alarms."""

import contextlib
import http.server
import json
import os
import pathlib
import re
import signal
import subprocess
import threading
import time
import urllib.parse
import urllib.request

from harness import LIMIT_S, expect, free_port, run_tests
from platform_rig import Platform

STEP = ("--history-step", "1")


def parse(text):
    """{(name, labels): value} of an exposition."""
    series = {}
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        name, labels, value = re.fullmatch(r"([a-z_0-9]+)(?:\{(.*)\})? ([^ ]+)", line).groups()
        pairs = frozenset(re.findall(r'([a-z_]+)="([^"]*)"', labels or ""))
        expect((name, pairs) not in series, f"twice: {line}")
        series[name, pairs] = float(value)
    return series


def scrape(platform, **more):
    text = platform.ok("GET", "/metrics", **more)
    expect(isinstance(text, bytes), f"{text}")
    return text.decode()


def of(series, wanted, /, **labels):
    found = [value for (got, pairs), value in series.items()
             if got == wanted and set(labels.items()) <= pairs]
    expect(len(found) == 1, f"{wanted} {labels}: {found}")
    return found[0]


def expose_counters(place):
    """promtool finds nothing wrong; each project sees its own; counters grow."""
    with Platform(place) as platform:
        platform.ok("POST", "/v1/projects", {"name": "blue"})
        token = platform.ok("POST", "/v1/tokens", {"name": "b", "role": "viewer", "project": "blue"})["token"]
        admin = platform.ok("POST", "/v1/tokens", {"name": "a", "role": "viewer"})["token"]
        machine = platform.launch("first", cpus=2)
        platform.finish(platform.ok("POST", "/v1/instances?project=blue", {
            "name": "second", "image": "busybox", "engine": "soft", "memory_mib": 128}))
        mine = {"id": machine, "name": "first", "project": "default"}
        while not of(parse(scrape(platform)), "corbel_instance_exits_total", kind="pio", **mine):
            pass  # the guest's first words to its devices
        text = scrape(platform, token=admin)
        checked = subprocess.run(["promtool", "check", "metrics"], input=text, text=True,
                                 capture_output=True, timeout=LIMIT_S)
        expect(checked.returncode == 0 and not checked.stderr, f"promtool: {checked}\n{text}")
        before = parse(text)
        expect(of(before, "corbel_instance_up", **mine) == 1, text)
        expect(of(before, "corbel_instance_memory_configured_bytes", **mine) == 128 << 20, text)
        expect(of(before, "corbel_instance_vcpu_seconds_total", vcpu="1", **mine) >= 0, text)
        expect(of(before, "corbel_instance_exits_total", kind="pio", **mine) > 0, text)
        expect(of(before, "corbel_instance_exit_latency_seconds_count", kind="pio", **mine) > 0, text)
        expect(of(before, "corbel_instances_running") == 2, text)
        expect(of(before, "process_resident_memory_bytes") > 1 << 20, text)
        after = parse(scrape(platform))
        for (name, labels), value in before.items():
            if name.endswith("_total"):
                expect(after[name, labels] >= value, f"{name} {labels}: {value}, then {after[name, labels]}")
        expect(of(after, "corbel_api_requests_total", code="2xx") >
               of(before, "corbel_api_requests_total", code="2xx"), "calls are not counted")
        theirs = parse(scrape(platform, token=token))
        names = {dict(labels).get("name") for _, labels in theirs}
        expect(names == {"second"}, f"another project's instances, or the host: {names}")
        platform.refused(401, "GET", "/metrics", token="")
        platform.refused(404, "GET", "/metrics?project=default", token=token)
        platform.finish(platform.ok("POST", f"/v1/instances/{machine}/stop", {"force": True}))
        expect("first" not in scrape(platform), "a stopped instance is counted")


@contextlib.contextmanager
def prometheus(place, targets, token):
    """A Prometheus of its own on loopback; yields a function that queries it."""
    home = pathlib.Path(place.home) / "prometheus"
    home.mkdir()
    config = {"global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
              "scrape_configs": [{"job_name": "corbel", "static_configs": [{"targets": targets}],
                                  "authorization": {"credentials": token}}]}
    (home / "prometheus.yml").write_text(json.dumps(config))  # which is YAML, too
    port = free_port()
    with open(home / "log", "w", encoding="utf-8") as log, subprocess.Popen(
            ["prometheus", f"--config.file={home}/prometheus.yml", f"--storage.tsdb.path={home}/data",
             f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log, cwd=home) as process:
        def ask(query):
            expect(process.poll() is None, f"prometheus ended: {(home / 'log').read_text()}")
            url = f"http://127.0.0.1:{port}/api/v1/query?" + urllib.parse.urlencode({"query": query})
            try:
                with urllib.request.urlopen(url, timeout=LIMIT_S) as answer:
                    return json.load(answer)["data"]["result"]
            except OSError:
                return []  # it is not there yet
        try:
            yield ask
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(LIMIT_S)


def be_scraped_by_prometheus(place):
    with Platform(place) as platform:
        token = platform.ok("POST", "/v1/tokens", {"name": "p", "role": "viewer"})["token"]
        machine = platform.launch("watched")
        with prometheus(place, [f"127.0.0.1:{platform.port}"], token) as ask:
            while not (up := ask("up{job='corbel'}")) or up[0]["value"][1] != "1":
                pass
            while not (found := ask(f"rate(corbel_instance_exits_total{{id='{machine}',kind='pio'}}[10s])")):
                pass  # a rate needs two scrapes
            labels = found[0]["metric"]
            expect(labels["name"] == "watched" and labels["project"] == "default", f"{labels}")
            quantile = "histogram_quantile(0.9, rate(corbel_instance_exit_latency_seconds_bucket[30s]))"
            expect(ask(quantile), "there are no quantiles of latencies")
            for name in ("corbel_instance_vcpu_steal_seconds_total", "corbel_instance_memory_resident_bytes",
                         "corbel_instance_network_bytes_total", "corbel_host_cpu_seconds_total"):
                expect(ask(name), f"Prometheus has no {name}")


def leave_guests_asleep(place):
    """Who reads counters wakes no guest: a Linux with a balloon, which could be asked for its own."""
    reads = 500
    with Platform(place, *STEP) as platform:
        machine = platform.launch("idle")
        counted = f"/v1/instances/{machine}/statistics"
        # At rest, as its executor sees it, while it is looked at: then it drops what it translated.
        while not platform.ok("GET", counted)["translator_flushes"]:
            time.sleep(0.2)  # a poll, not a limit
        before = platform.ok("GET", counted)
        expect(before["guest.total_bytes"] > 64 << 20, f"the guest's driver said nothing: {before}")
        for _ in range(reads):
            after = platform.ok("GET", counted)
            scrape(platform)
        woken = after["interrupts"] - before["interrupts"]
        slept = after["apic_halts"] - before["apic_halts"]
        expect(max(woken, slept) < reads, f"{2 * reads} reads, {woken} interrupts, slept {slept} times")
        expect(after["translator_cache_used"] < 2 << 20, f"{after['translator_cache_used']} bytes of code")


def known(history, name):
    return [value for value in history["series"][name] if value is not None]


def keep_history(place):
    """Lines come by themselves, survive the daemon, belong to one project and go with the instance."""
    with Platform(place, *STEP) as platform:
        machine = platform.launch("first")
        path = f"/v1/instances/{machine}/history"
        history = platform.ok("GET", path + "?step=1")
        while len(known(history, "cpu_percent")) < 2 or not any(known(history, "exits_per_s")):
            history = platform.ok("GET", path + "?step=1")
        expect(len({len(values) for values in history["series"].values()}) == 1, f"{history}")
        expect(max(known(history, "memory_resident_bytes")) <= 128 << 20, f"{history}")
        one = platform.ok("GET", path + "?metric=cpu_percent,exits_per_s&step=5")
        expect(set(one["series"]) == {"cpu_percent", "exits_per_s"} and one["step"] == 5, f"{one}")
        expect(known(platform.ok("GET", "/v1/host/history?step=1"), "memory_used_bytes"), "the host has none")
        platform.refused(400, "GET", path + "?metric=colour", code="invalid", field="metric")
        platform.refused(400, "GET", path + f"?since={2 ** 32 - 1}", code="invalid", field="since")
        platform.refused(400, "GET", path + "?step=x", code="invalid", field="step")
        platform.refused(404, "GET", "/v1/instances/none/history", code="not-found")
        platform.ok("POST", "/v1/projects", {"name": "red"})
        token = platform.ok("POST", "/v1/tokens", {"name": "r", "role": "viewer", "project": "red"})["token"]
        platform.refused(404, "GET", path, token=token)
        before = platform.ok("GET", path + "?step=1")
        platform.stop_daemon(signal.SIGKILL)
        file = pathlib.Path(platform.home) / ".local/share/corbel/daemon/machines" / machine / "history"
        expect(file.stat().st_size <= 600 << 10, f"{file.stat()}")
        platform.start_daemon()
        after = platform.ok("GET", f"{path}?step=1&since={before['since']}")
        for name, values in before["series"].items():
            expect(after["series"][name][:len(values) - 1] == values[:-1], f"{name} is another after a restart")
        platform.finish(platform.ok("DELETE", f"/v1/instances/{machine}"))
        expect(not file.parent.exists(), "what belonged to the instance is still there")
        platform.refused(404, "GET", path)


def begin_a_damaged_history_anew(place):
    with Platform(place, *STEP) as platform:
        machine = platform.launch("first")
        file = pathlib.Path(platform.home) / ".local/share/corbel/daemon/machines" / machine / "history"
        path = f"/v1/instances/{machine}/history?step=1&metric=memory_resident_bytes"
        for damage in (b"", b"x" * 100, os.urandom(600 << 10)):
            while not known(platform.ok("GET", path), "memory_resident_bytes"):
                pass
            file.write_bytes(damage)
            expect(all(value is None or 0 <= value <= 128 << 20
                       for value in platform.ok("GET", path)["series"]["memory_resident_bytes"]), "noise is told")


class Receiver:
    """A server on loopback that answers with the statuses it was given, then 200."""

    def __init__(self, *statuses):
        self.got, self.changed = [], threading.Condition()
        waiting = list(statuses)

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(handler):
                body = handler.rfile.read(int(handler.headers["Content-Length"]))
                handler.send_response(waiting.pop(0) if waiting else 200)
                handler.send_header("Location", "file:///etc/passwd")
                handler.send_header("Content-Length", "0")
                handler.end_headers()
                with self.changed:
                    self.got.append((handler.headers, json.loads(body)))
                    self.changed.notify_all()

            def do_GET(handler):
                raise AssertionError("a redirection was followed")

            def log_message(self, *unused):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def wait(self, count):
        with self.changed:
            expect(self.changed.wait_for(lambda: len(self.got) >= count, LIMIT_S), f"{self.got}")
            return list(self.got)


ALWAYS = {"metric": "memory_resident_bytes", "threshold": 1, "for_s": 0}
NEVER = {"metric": "memory_resident_bytes", "threshold": 1 << 50, "for_s": 0}


def alarm_events(platform, alarm, action):
    page = platform.ok("GET", f"/v1/events?limit=1000&kind=alarm&target={alarm}&action={action}")
    return page["items"]


def in_state(platform, alarm, state):
    while (shown := platform.ok("GET", f"/v1/alarms/{alarm}"))["state"] != state:
        pass
    return shown


def lines_more(platform, machine, count):
    path = f"/v1/instances/{machine}/history?step=1&metric=memory_resident_bytes"
    before = len(known(platform.ok("GET", path), "memory_resident_bytes"))
    while len(known(platform.ok("GET", path), "memory_resident_bytes")) < before + count:
        pass


def refuse_wrong_alarms(place):
    with Platform(place) as platform:
        machine = platform.ok("POST", "/v1/instances", {"name": "m", "image": "busybox",
                                                        "desired": "stopped"})["instance"]["id"]
        for wanted, field in (({**ALWAYS}, "instance"), ({**ALWAYS, "instance": "m", "tag": "a=b"}, "instance"),
                              ({**ALWAYS, "instance": "m", "metric": "mood"}, "metric"),
                              ({**ALWAYS, "tag": "env"}, "tag"), ({**ALWAYS, "tag": "a=b", "for_s": -1}, "for_s"),
                              ({**ALWAYS, "tag": "a=b", "webhook": "file:///etc/passwd"}, "webhook"),
                              ({**ALWAYS, "tag": "a=b", "action": "explode"}, "action"),
                              ({"metric": "cpu_percent", "instance": "m"}, "threshold")):
            platform.refused(400, "POST", "/v1/alarms", wanted, field=field)
        platform.refused(404, "POST", "/v1/alarms", {**ALWAYS, "instance": "none"}, field="instance")
        platform.ok("POST", "/v1/projects", {"name": "red"})
        red = platform.ok("POST", "/v1/tokens", {"name": "r", "role": "member", "project": "red"})["token"]
        platform.refused(404, "POST", "/v1/alarms", {**ALWAYS, "instance": machine}, token=red)
        made = platform.ok("POST", "/v1/alarms", {**ALWAYS, "instance": "m"})["alarm"]
        expect(made["instance"] == machine and made["state"] == "no-data" and "owed" not in made, f"{made}")
        platform.refused(404, "GET", f"/v1/alarms/{made['id']}", token=red)
        platform.ok("DELETE", f"/v1/alarms/{made['id']}")
        expect(platform.ok("GET", "/v1/alarms")["items"] == [], "it is still there")


def tell_a_webhook(place):
    """Each transition once, however often it is tried; a redirection is not followed."""
    receiver, strange = Receiver(500, 503), Receiver(302)
    with Platform(place, *STEP, "--local-webhooks") as platform:
        machine = platform.launch("m")
        alarm = platform.ok("POST", "/v1/alarms", {**ALWAYS, "instance": "m", "name": "full",
                                                   "webhook": receiver.url})["alarm"]["id"]
        other = platform.ok("POST", "/v1/alarms", {**ALWAYS, "instance": "m",
                                                   "webhook": strange.url})["alarm"]["id"]
        got = receiver.wait(3)
        expect(len({headers["Idempotency-Key"] for headers, _ in got}) == 1, "one transition, several keys")
        expect(got[0][1]["alarm"]["name"] == "full" and got[0][1]["state"] == "alarm" and
               got[0][1]["instance"] == machine, f"{got[0][1]}")
        expect(in_state(platform, alarm, "alarm")["firing"] == [machine], "which instance?")
        while not alarm_events(platform, other, "alarm.action"):
            pass
        expect(len(strange.got) == 1, "it was tried again although it was refused")
        # One that is changed is raised as it was: its end is told, its beginning not again.
        platform.ok("PATCH", f"/v1/alarms/{alarm}", {"name": "fuller", "threshold": 2})
        lines_more(platform, machine, 3)
        expect(len(receiver.got) == 3 and len(alarm_events(platform, alarm, "alarm.raised")) == 1, f"raised again: {receiver.got}")
        platform.ok("PATCH", f"/v1/alarms/{alarm}", {"threshold": 1 << 50})
        in_state(platform, alarm, "ok")
        expect(receiver.wait(4)[3][1]["state"] == "ok", f"{receiver.got}")
        platform.ok("PATCH", f"/v1/alarms/{alarm}", {"threshold": 1})
        expect(receiver.wait(5)[4][1]["state"] == "alarm", f"{receiver.got}")
        lines_more(platform, machine, 3)
        expect(len(receiver.got) == 5, f"told more than once: {receiver.got}")
        platform.finish(platform.ok("POST", f"/v1/instances/{machine}/stop", {"force": True}))
        in_state(platform, alarm, "no-data")
        expect(receiver.wait(6)[5][1]["state"] == "ok", f"{receiver.got}")


def keep_webhooks_from_the_host(place):
    receiver = Receiver()
    with Platform(place, *STEP) as platform:
        platform.launch("m")
        alarm = platform.ok("POST", "/v1/alarms", {**ALWAYS, "instance": "m",
                                                   "webhook": receiver.url})["alarm"]["id"]
        while not (events := alarm_events(platform, alarm, "alarm.action")):
            pass
        expect("--local-webhooks" in events[0]["text"] and not receiver.got, f"{events} {receiver.got}")


def act_once(place):
    """An alarm on a tag stops what has it, once per transition, whatever happens to the daemon."""
    with Platform(place, *STEP) as platform:
        machine = platform.launch("tagged", tags={"tier": "batch"})
        other = platform.launch("other")
        alarm = platform.ok("POST", "/v1/alarms", {**ALWAYS, "tag": "tier=batch", "for_s": 2,
                                                   "action": "stop"})["alarm"]["id"]
        watching = platform.ok("POST", "/v1/alarms", {**ALWAYS, "instance": "other"})["alarm"]["id"]
        in_state(platform, watching, "alarm")
        for time in (1, 2):
            while platform.state(machine) not in ("stopping", "stopped"):
                pass
            platform.stop_daemon(signal.SIGKILL)
            platform.start_daemon()
            platform.call("POST", f"/v1/instances/{machine}/stop", {"force": True})  # if it takes its time
            while platform.state(machine) != "stopped":
                pass
            lines_more(platform, other, 2)
            stops = [row for row in platform.ok("GET", "/v1/operations?limit=1000")["items"]
                     if row.get("actor") == f"alarm:{alarm}"]
            expect(len(stops) == time and stops[0]["action"] == "instance.stop", f"{stops}")
            expect(len(alarm_events(platform, alarm, "alarm.raised")) == time, "raised more than once")
            if time == 1:
                in_state(platform, alarm, "no-data")
                platform.finish(platform.ok("POST", f"/v1/instances/{machine}/start"))
        expect(platform.state(other) == "running", "another instance was stopped")
        expect(len(alarm_events(platform, watching, "alarm.raised")) == 1 and
               platform.ok("GET", f"/v1/alarms/{watching}")["state"] == "alarm", "it was raised again")


if __name__ == "__main__":
    run_tests([
        ("expose counters", expose_counters), ("be scraped by Prometheus", be_scraped_by_prometheus),
        ("leave guests asleep", leave_guests_asleep), ("keep history", keep_history),
        ("begin a damaged history anew", begin_a_damaged_history_anew),
        ("refuse wrong alarms", refuse_wrong_alarms), ("tell a webhook", tell_a_webhook),
        ("keep webhooks from the host", keep_webhooks_from_the_host), ("act once", act_once),
    ])
