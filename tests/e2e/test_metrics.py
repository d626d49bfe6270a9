#!/usr/bin/python3
"""What the platform tells of machines over time: the endpoint that Prometheus scrapes, history for
charts, alarms."""

import contextlib
import hmac
import http.server
import json
import os
import pathlib
import re
import signal
import socket
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


def count_usage(place):
    """Hours of what a project has, which stay when the daemon is killed and the instance is gone."""
    def used(platform, query="", **more):
        items = platform.ok("GET", "/v1/usage" + query, **more)["items"]
        return {item.get("id") or item["project_name"]: item for item in items}

    with Platform(place, *STEP) as platform:
        platform.ok("POST", "/v1/projects", {"name": "red"})
        red = platform.ok("POST", "/v1/tokens", {"name": "r", "role": "viewer", "project": "red"})["token"]
        machine = platform.launch("first", cpus=2)
        platform.finish(platform.ok("POST", "/v1/volumes", {"name": "v", "size_gib": 3}))
        while not ((one := used(platform, "?by=instance").get(machine)) and one["vcpu_hours"] > 0):
            pass  # the next count
        expect(one["name"] == "first", f"{one}")
        expect(abs(one["vcpu_hours"] / 2 - one["memory_gib_hours"] * 8) < 1e-9, f"2 CPUs, 128 MiB: {one}")
        while not (all_of := used(platform)["default"])["storage_gib_hours"] > 0:
            pass
        expect(used(platform, token=red) == {}, "another project's usage is told")
        platform.refused(404, "GET", "/v1/usage?project=default", token=red)
        platform.refused(400, "GET", "/v1/usage?since=2&until=1", field="since")
        platform.refused(400, "GET", "/v1/usage?format=xml", field="format")
        platform.stop_daemon(signal.SIGKILL)
        platform.start_daemon()
        platform.finish(platform.ok("DELETE", f"/v1/instances/{machine}"))
        after = used(platform, "?by=instance")[machine]
        expect(after["vcpu_hours"] >= one["vcpu_hours"], f"{one}, then {after}")
        table = platform.ok("GET", "/v1/usage?format=csv").decode().split("\r\n")
        expect(table[0] == "project,project_name,vcpu_hours,memory_gib_hours,storage_gib_hours,network_bytes",
               f"{table}")
        project, name, hours = table[1].split(",")[:3]
        expect((project, name) == (f'"{all_of["project"]}"', '"default"') and
               float(hours) >= round(all_of["vcpu_hours"], 5) - 1e-5, f"{table} {all_of}")
        expect(used(platform, "?since=3600&until=7200") == {}, "something was used in 1970")
        platform.refused(400, "GET", "/v1/usage?since=3600", field="since")  # a century at once
        hours = platform.ok("GET", "/v1/usage?by=hour")["items"]
        expect(sum(one["vcpu_hours"] for one in hours) >= after["vcpu_hours"] and
               all(one["time"] % 3600 == 0 for one in hours), f"{hours}")
        table = platform.ok("GET", "/v1/usage?by=day&format=csv").decode().split("\r\n")
        expect(table[0].split(",")[2] == "time" and re.fullmatch(r"\d{4}-\d\d-\d\dT00:00:00Z", table[1].split(",")[2]),
               f"{table}")


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
        self.got, self.raw, self.changed = [], [], threading.Condition()
        waiting = list(statuses)

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(handler):
                body = handler.rfile.read(int(handler.headers["Content-Length"]))
                handler.send_response(waiting.pop(0) if waiting else 200)
                handler.send_header("Location", "file:///etc/passwd")
                handler.send_header("Content-Length", "0")
                handler.end_headers()
                with self.changed:
                    self.raw.append(body)
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


@contextlib.contextmanager
def silence():
    """The address of a server that takes connections and never says a word."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0), backlog=64)) as silent:
        yield f"http://127.0.0.1:{silent.getsockname()[1]}/"


def raise_alarms_meanwhile(place):
    """A receiver that never answers keeps another project's alarms from nothing."""
    receiver = Receiver()
    with silence() as silent, Platform(place, *STEP, "--local-webhooks") as platform:
        platform.ok("POST", "/v1/projects", {"name": "red"})
        for project in ("red", "default"):
            platform.finish(platform.ok("POST", f"/v1/instances?project={project}", {
                "name": project, "image": "busybox", "engine": "soft", "memory_mib": 128}))
        mute = [platform.ok("POST", "/v1/alarms?project=red", {**ALWAYS, "instance": "red", "webhook": silent})["alarm"]["id"]
                for _ in range(4)]
        for alarm in mute:
            in_state(platform, alarm, "alarm")
        platform.ok("POST", "/v1/alarms", {**ALWAYS, "instance": "default", "webhook": receiver.url})
        receiver.wait(1)
        expect(not any(alarm_events(platform, alarm, "alarm.action") for alarm in mute), "those of silence were given up first")


def tell_events(place):
    """A hook hears what it is for, in order and with one key however often it is tried, signed; what happens
    while the daemon is away, too."""
    def make(platform, name):
        platform.ok("POST", "/v1/keys", {"name": name})

    receiver, everything = Receiver(500), Receiver()
    with Platform(place, *STEP, "--local-webhooks") as platform:
        make(platform, "before")
        hook = platform.ok("POST", "/v1/hooks", {"name": "h", "webhook": receiver.url, "action": "key.create"})["hook"]
        expect((hook["told"], hook["lost"], hook["level"], hook["state"]) == (0, 0, "info", "new") and "after" not in hook, f"{hook}")
        secret = hook["secret"]
        platform.ok("POST", "/v1/hooks", {"name": "all", "webhook": everything.url})
        platform.refused(400, "POST", "/v1/hooks", {"webhook": "file:///etc/passwd"}, field="webhook")
        platform.refused(400, "POST", "/v1/hooks", {"webhook": everything.url, "level": "loud"}, field="level")
        platform.refused(400, "POST", "/v1/hooks", {"webhook": everything.url, "secret": "short"}, field="secret")
        platform.refused(400, "PATCH", "/v1/hooks/h", {"secret": None}, field="secret")
        viewer = platform.ok("POST", "/v1/tokens", {"name": "r", "role": "viewer"})["token"]
        expect(platform.ok("GET", "/v1/hooks/h", token=viewer)["webhook"].endswith("/…"), "a viewer sees it")
        for name in ("one", "two"):
            make(platform, name)
        make(platform, "three")
        got = receiver.wait(4)
        expect([body["text"].split('"')[1] for _, body in got] == ["one", "one", "two", "three"], f"{got}")
        expect(len({headers["Idempotency-Key"] for headers, _ in got}) == 3, "a key for each event")
        for (headers, _), raw in zip(got, receiver.raw):
            at, signed = (part.split("=")[1] for part in headers["Corbel-Signature"].split(","))
            expect(abs(int(at) - time.time()) < LIMIT_S and
                   hmac.new(secret.encode(), f"{at}.".encode() + raw, "sha256").hexdigest() == signed, f"{headers}")
        while (hook := platform.ok("GET", "/v1/hooks/h"))["told"] < 3:
            pass
        expect([(one["state"], one["tries"], one["status"]) for one in hook["deliveries"]] ==
               [("told", 1, 200), ("told", 1, 200), ("told", 2, 200)] and hook["state"] == "ok", f"{hook}")
        make(platform, "last")
        platform.stop_daemon(signal.SIGKILL)
        platform.start_daemon()
        while not any('"last"' in body["text"] for _, body in receiver.got):
            pass
        actions = [body["action"] for _, body in everything.wait(4)]
        expect("key.create" in actions and not any(name.startswith("hook") for name in actions), f"{actions}")
        while (hook := platform.ok("GET", "/v1/hooks/h"))["told"] < 4:
            pass
        expect(hook["lost"] == 0 and secret not in json.dumps(hook), f"{hook}")
        platform.ok("DELETE", "/v1/hooks/h")


def tell_others_meanwhile(place):
    """Receivers that never answer keep only their own project waiting; one that fails is tried again, wherever the hook
    leads then, and one that says no is not."""
    good, failing, refusing = Receiver(), Receiver(*[503] * 1000), Receiver(410)
    with silence() as silent, Platform(place, *STEP, "--local-webhooks") as platform:
        platform.ok("POST", "/v1/projects", {"name": "red"})
        for number in range(12):
            platform.ok("POST", "/v1/hooks?project=red", {
                "name": f"h{number}", "webhook": silent, "action": "key."})
        for name, receiver in (("good", good), ("failing", failing), ("refusing", refusing)):
            platform.ok("POST", "/v1/hooks", {"name": name, "webhook": receiver.url, "action": "key."})
        platform.ok("POST", "/v1/keys?project=red", {"name": "k"})
        platform.ok("POST", "/v1/keys", {"name": "k"})
        good.wait(1)
        red = platform.ok("GET", "/v1/hooks?project=red")["items"]
        expect(not any(hook["lost"] for hook in red), "the silent ones were given up first")
        failing.wait(2)
        while (hook := platform.ok("GET", "/v1/hooks/failing"))["state"] != "failing":
            pass
        expect(hook["deliveries"][0]["status"] == 503 and hook["deliveries"][0]["error"] and hook["lost"] == 0, f"{hook}")
        platform.ok("PATCH", "/v1/hooks/failing", {"webhook": good.url})
        keys = [headers["Idempotency-Key"] for headers, _ in good.wait(2)]
        expect(keys[1] == failing.got[0][0]["Idempotency-Key"] and keys[0] != keys[1], f"{keys}")
        while (hook := platform.ok("GET", "/v1/hooks/refusing"))["lost"] < 1:
            pass
        expect(len(refusing.got) == 1 and hook["deliveries"][0]["status"] == 410, f"{hook}")
        platform.stop_daemon(signal.SIGTERM)  # ends, with letters under way
        platform.start_daemon()


def keep_webhooks_from_the_host(place):
    receiver = Receiver()
    with Platform(place, *STEP) as platform:
        platform.launch("m")
        alarm = platform.ok("POST", "/v1/alarms", {**ALWAYS, "instance": "m",
                                                   "webhook": receiver.url})["alarm"]["id"]
        while not (events := alarm_events(platform, alarm, "alarm.action")):
            pass
        expect("--local-webhooks" in events[0]["text"] and not receiver.got, f"{events} {receiver.got}")
        platform.ok("POST", "/v1/hooks", {"name": "h", "webhook": receiver.url, "action": "key."})
        platform.ok("POST", "/v1/keys", {"name": "k"})
        while not (events := platform.ok("GET", "/v1/events?limit=1000&action=hook.failed")["items"]):
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
        ("leave guests asleep", leave_guests_asleep), ("keep history", keep_history), ("count usage", count_usage),
        ("begin a damaged history anew", begin_a_damaged_history_anew),
        ("refuse wrong alarms", refuse_wrong_alarms), ("tell a webhook", tell_a_webhook),
        ("raise alarms meanwhile", raise_alarms_meanwhile), ("tell events", tell_events), ("tell others meanwhile", tell_others_meanwhile),
        ("keep webhooks from the host", keep_webhooks_from_the_host), ("act once", act_once),
    ])
