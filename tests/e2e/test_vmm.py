#!/usr/bin/env python3
"""corbel-vmm as its user meets it: mistakes, consoles, control socket, signals, ends.

usage: test_vmm.py CORBEL_VMM GUEST   (GUEST is built from vmm_guest.S)
The environment's CORBEL_ENGINE is what --engine gets, auto by default.
Prints TAP. Waits for events only; LIMIT_S keeps a broken build from hanging.
"""

import contextlib
import json
import os
import pathlib
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback

from harness import LIMIT_S, Control, expect

VMM, GUEST = (str(pathlib.Path(path).resolve()) for path in sys.argv[1:3])
ENGINE = os.environ.get("CORBEL_ENGINE", "auto")


def flags(mode, *more):
    return [VMM, "--engine", ENGINE, "--memory", "32M", "--kernel", GUEST, "--cmdline", mode, *more]


def run(*command, stdin=subprocess.DEVNULL):
    return subprocess.run(command, stdin=stdin, capture_output=True, text=True, timeout=LIMIT_S,
                          check=False)


def expect_refused(result, status, *words):
    """One sentence on standard error, nothing on standard output."""
    lines = result.stderr.splitlines()
    expect(result.returncode == status, f"status {result.returncode}, not {status}: {lines}")
    expect(len(lines) == 1 and lines[0].startswith("corbel-vmm: error: "), f"not one line: {lines}")
    for word in words:
        expect(word in lines[0], f"no {word!r} in {lines[0]!r}")
    expect(result.stdout == "", f"output {result.stdout!r}")


@contextlib.contextmanager
def started(*command, stdin=subprocess.DEVNULL):
    """A monitor whose guest has printed "up"."""
    with subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as process:
        try:
            wait_for(process.stdout.fileno(), b"up")
            yield process
        finally:
            process.kill()


def wait_for(fd, text, seen=b""):
    """Reads until text has come; returns all that came."""
    while text not in seen:
        ready, _, _ = select.select([fd], [], [], LIMIT_S)
        expect(ready, f"no {text!r} after {seen!r}")
        data = os.read(fd, 4096)
        expect(data, f"the end came before {text!r}, after {seen!r}")
        seen += data
    return seen


def end_of(process):
    return process.wait(LIMIT_S)


# --- Mistakes ---------------------------------------------------------------------------------


def test_no_kernel_flag(_):
    expect_refused(run(VMM), 2, "--kernel")


def test_wrong_flag_values_end_with_status_2(_):
    expect_refused(run(*flags("o", "--cpus", "0")), 2, "--cpus", '"0"', "from 1 to")
    expect_refused(run(*flags("o", "--memory", "lots")), 2, "--memory", '"lots"', "512M")
    expect_refused(run(*flags("o", "--turbo")), 2, '"--turbo"', "--help")


def test_kernel_that_is_missing_or_none(directory):
    expect_refused(run(VMM, "--kernel", "missing.elf"), 1, "missing.elf")
    for name, content in {"text": b"#!/bin/sh\necho no kernel\n" * 100, "empty": b"",
                          "half": pathlib.Path(GUEST).read_bytes()[:100]}.items():
        path = directory / name
        path.write_bytes(content)
        expect_refused(run(VMM, "--kernel", str(path)), 1, str(path))
    expect_refused(run(VMM, "--kernel", str(directory)), 1, str(directory))


def test_missing_files_leave_nothing_behind(directory):
    result = run(*flags("o", "--disk", str(directory / "no.raw"), "--control",
                        str(directory / "control"), "--serial", f"file:{directory}/serial"))
    expect_refused(result, 1, "no.raw")
    result = run(*flags("o", "--initrd", str(directory / "no.img"), "--serial",
                        f"socket:{directory}/serial", "--serial-log", f"{directory}/log"))
    expect_refused(result, 1, "no.img")
    expect(not list(directory.iterdir()), f"left behind: {list(directory.iterdir())}")


def test_memory_beyond_the_host(_):
    expect_refused(run(VMM, "--memory", "255G", "--kernel", GUEST), 1, "memory", "host")


def test_host_limits_are_told(_):
    for limit in ("ulimit -f 1000", "ulimit -v 35000"):
        expect_refused(run("sh", "-c", f'{limit}; exec "$@"', "sh", *flags("o")), 1, "memory")


def test_configuration_file(directory):
    path = directory / "vm.json"
    path.write_text(json.dumps({"kernel": GUEST, "cmdline": "o", "memory": "32M",
                                "engine": ENGINE, "rng": False, "log-level": "error"}))
    result = run(VMM, "--config", str(path))
    expect(result.returncode == 0 and "up" in result.stdout, f"{result}")
    path.write_text('{"kernel": "x", "cpus": "many"}')
    expect_refused(run(VMM, "--config", str(path)), 2, "vm.json", '"cpus"', '"many"')
    expect_refused(run(VMM, "--config", str(directory / "none.json")), 2, "none.json")


def test_second_start_on_the_same_disk(directory):
    disk = directory / "disk.raw"
    disk.write_bytes(bytes(1 << 20))
    with started(*flags("h", "--disk", str(disk))):
        expect_refused(run(*flags("o", "--disk", str(disk))), 1, "disk.raw")
    result = run(*flags("o", "--disk", str(disk)))
    expect(result.returncode == 0, f"the lock outlived its process: {result}")


def test_ready_is_told_once_or_not_at_all(directory):
    def told(*words):
        reader, writer = os.pipe()
        with subprocess.Popen([*words, "--ready-fd", str(writer)], pass_fds=[writer],
                              stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL) as process:
            os.close(writer)
            with open(reader, encoding="ascii") as file:
                text = file.read()  # to the end: closed while the guest runs
            if "--control" in words:
                Control(directory / "control").expect_ok("quit")
            end_of(process)
        return text

    expect(told(*flags("h", "--control", str(directory / "control"))) == "ready\n", "no line")
    expect(told(*flags("h", "--disk", str(directory / "no.raw"))) == "", "ready without a disk")
    expect_refused(run(*flags("o", "--ready-fd", "two")), 2, "--ready-fd", '"two"')
    expect_refused(run(*flags("o", "--ready-fd", "99")), 1, "--ready-fd", "99")


# --- Ends -------------------------------------------------------------------------------------


def test_power_off_ends_with_status_0_and_names_the_engine(_):
    result = run(*flags("o"))
    expect(result.returncode == 0 and result.stdout == "up\n", f"{result}")
    expect(re.search(r"engine (kvm|soft): \S", result.stderr), result.stderr)


def test_triple_fault_does_as_told(directory):
    expect(run(*flags("t")).returncode == 3, "exit is the default")
    with started(*flags("t", "--on-crash", "restart")) as process:
        wait_for(process.stdout.fileno(), b"up\nup\nup\n")
    control = directory / "control"
    with started(*flags("t", "--on-crash", "pause", "--control", str(control))) as process:
        wait_for(process.stderr.fileno(), b"crashed")
        client = Control(control)
        status = client.expect_ok("status")
        expect(status["state"] == "ended" and status["end"] == "crash", f"{status}")
        expect(not client.ask("resume")["ok"], "resumed after a crash")
        client.expect_ok("quit")
        expect(end_of(process) == 3, "status of a crash")


def test_reset_restarts_or_exits(_):
    result = run(*flags("r"))
    expect(result.returncode == 0 and result.stdout == "up\nup\n", f"{result}")
    result = run(*flags("r", "--on-reset", "exit"))
    expect(result.returncode == 0 and result.stdout == "up\n", f"{result}")


def test_terminate_presses_the_power_button(_):
    with started(*flags("b")) as process:
        process.send_signal(signal.SIGTERM)
        expect(end_of(process) == 0, "status")
    with started(*flags("i")) as process:
        process.send_signal(signal.SIGTERM)
        wait_for(process.stderr.fileno(), b"asked the guest to power off")
        process.send_signal(signal.SIGTERM)
        expect(end_of(process) == 0, "second signal")


def test_terminate_ends_a_guest_that_has_no_power_button(_):
    for mode in "hs":
        with started(*flags(mode)) as process:
            process.send_signal(signal.SIGTERM)
            expect(end_of(process) == 0, f"mode {mode}")
        with started(*flags(mode)) as process:
            process.send_signal(signal.SIGINT)
            expect(end_of(process) == 0, f"interrupt, mode {mode}")


# --- Consoles ---------------------------------------------------------------------------------


def test_stdio_passes_bytes_both_ways_and_survives_end_of_input(_):
    with started(*flags("e"), stdin=subprocess.PIPE) as process:
        process.stdin.write(b"hello, \x01 world")
        process.stdin.flush()
        wait_for(process.stdout.fileno(), b"hello, \x01 world")
        process.stdin.write(b"q")
        process.stdin.close()
        expect(end_of(process) == 0, "status")
    with tempfile.TemporaryFile() as file:
        file.write(b"x" * 3000 + b"q")
        file.seek(0)
        result = run(*flags("e"), stdin=file)
        expect(result.stdout == "up\n" + "x" * 3000, f"{len(result.stdout)} bytes")


def test_stdio_shared_with_others_stays_blocking(_):
    reader, writer = os.pipe()
    with subprocess.Popen(flags("e"), stdin=subprocess.PIPE, stdout=writer) as process:
        wait_for(reader, b"up")
        expect(os.get_blocking(writer), "standard output became non-blocking for everybody")
        process.communicate(b"q", LIMIT_S)
        expect(process.returncode == 0, "status")
    os.close(reader)
    os.close(writer)


def test_closed_standard_descriptors_are_no_trap(_):
    for closed in ("<&-", "<&- >&-", "<&- >&- 2>&-"):
        result = run("sh", "-c", f'"$@" {closed}', "sh", *flags("o"))
        expect(result.returncode == 0, f"{closed}: {result}")


def test_reader_that_goes_away_ends_nothing(directory):
    control = directory / "control"
    with started(*flags("e", "--control", str(control)), stdin=subprocess.PIPE) as process:
        process.stdout.close()
        process.stdin.write(b"x" * 100)
        process.stdin.flush()
        client = Control(control)
        client.expect_ok("status")
        client.expect_ok("stop")
        expect(end_of(process) == 0, "status")


def test_serial_file_and_socket(directory):
    result = run(*flags("o", "--serial", f"file:{directory}/out"))
    expect(result.returncode == 0 and result.stdout == "", f"{result}")
    expect((directory / "out").read_text() == "up\n", "the file's content")
    path = directory / "serial"
    control = directory / "control"
    with subprocess.Popen(flags("e", "--serial", f"socket:{path}", "--control", str(control)),
                          stderr=subprocess.PIPE) as process:
        wait_for(process.stderr.fileno(), b"engine")
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(path))
            peer.sendall(b"abc")
            wait_for(peer.fileno(), b"abc")
            peer.sendall(b"q")
            expect(end_of(process) == 0, "status")
    expect(not path.exists() and not control.exists(), "sockets left behind")


def test_serial_log_goes_on_behind_what_is_there(directory):
    log = directory / "log"
    for lives in (1, 2):
        result = run(*flags("o", "--serial", "none", "--serial-log", str(log)))
        expect(result.returncode == 0 and result.stdout == "", f"{result}")
        expect(log.read_text() == "up\n" * lives, f"{log.read_text()!r}")
    result = run(*flags("o", "--serial-log", str(log)))
    expect(result.stdout == "up\n" and log.read_text() == "up\n" * 3, "not both have it")
    pipe, link = directory / "pipe", directory / "link"
    os.mkfifo(pipe)
    link.symlink_to(log)
    for wrong in (directory / "no/log", pipe, link, directory):
        expect_refused(run(*flags("o", "--serial-log", str(wrong))), 1, "--serial-log", str(wrong))


def test_terminal_is_raw_and_restored(_):
    pid, fd = pty.fork()
    if pid == 0:
        os.execvp("sh", ["sh", "-c", '"$@"; echo status $?; stty -a | tr ";" "\n"', "sh",
                         *flags("e")])
    seen = wait_for(fd, b"up")
    os.write(fd, b"a\x03\x01hz")
    seen = wait_for(fd, b"this help", seen)
    seen = wait_for(fd, b"z", seen[seen.index(b"this help"):])
    os.write(fd, b"\x01x")
    seen = wait_for(fd, b"echoke", seen)
    os.waitpid(pid, 0)
    os.close(fd)
    expect(b"status 0" in seen, f"{seen!r}")
    expect(b" icanon" in seen and b" echo " in seen, f"terminal not restored: {seen!r}")


# --- Sleep ------------------------------------------------------------------------------------


def threads(process):
    """Of the monitor and of the process for guest code: what the host says of each."""
    pids = [process.pid, *([executor_of(process)] if ENGINE == "soft" else [])]
    return {path: path.read_text() for pid in pids
            for path in pathlib.Path(f"/proc/{pid}/task").glob("*/status")}


def switches(process):
    return sum(int(n) for text in threads(process).values()
               for n in re.findall(r"ctxt_switches:\s*(\d+)", text))


def awake(process):
    return {path for path, text in threads(process).items() if re.search(r"^State:\s*R", text, re.M)}


def expect_asleep(*processes):
    """All of them sleep while another machine's clock ticks some hundred times."""
    with started(*flags("c")) as clock:
        seen = wait_for(clock.stdout.fileno(), b"..")
        before = [switches(process) for process in processes]
        busy = [awake(process) for process in processes]
        for _ in range(8):
            seen = wait_for(clock.stdout.fileno(), seen + b".", seen)
            busy = [was & awake(process) for was, process in zip(busy, processes)]
        woken = [switches(process) - count for process, count in zip(processes, before)]
        expect(switches(clock) > 8 * 64, "the clock itself is not counted")
    expect(not any(busy), f"never asleep: {busy}")
    expect(max(woken) < 64, f"woken {woken} times")


def test_sleep_of_halted_guests(_):
    with started(*flags("h")) as halted, started(*flags("d", "--cpus", "2")) as deaf:
        expect_asleep(halted, deaf)


def wakes_of(counters):
    """How often vCPUs came to sleep and what ended it, wherever their local APICs are."""
    return {name: counters[name] for name in ("vcpu.halts", "apic_halts", "interrupts", "exits",
                                              "vcpu.pio", "vcpu.mmio", "vcpu.msr", "vcpu.other")
            if name in counters}


def test_sleep_of_a_guest_whose_counters_are_read(directory):
    path = directory / "control"
    with started(*flags("h", "--control", str(path))) as process:
        client = Control(path)
        before = {}
        while not before.get("vcpu.halts", 0) + before.get("apic_halts", 0):
            before = wakes_of(client.expect_ok("statistics")["statistics"])
        expect(client.expect_ok("status")["state"] == "running", "it runs")
        for _ in range(300):
            now = wakes_of(client.expect_ok("statistics")["statistics"])
            expect(now == before, f"woken: {before}, then {now}")
        process.kill()


def test_sleep_of_a_paused_machine(directory):
    path = directory / "control"
    with started(*flags("c", "--control", str(path))) as ticking, \
            started(*flags("s", "--control", str(path) + "2")) as spinning:
        clients = [Control(path), Control(str(path) + "2")]
        seen = wait_for(ticking.stdout.fileno(), b".")
        for client in clients:
            client.expect_ok("pause")
        expect_asleep(ticking, spinning)
        while select.select([ticking.stdout], [], [], 0)[0]:
            seen += os.read(ticking.stdout.fileno(), 4096)
        clients[0].expect_ok("resume")
        wait_for(ticking.stdout.fileno(), seen + b"..", seen)


# --- Control socket ---------------------------------------------------------------------------


def test_control_commands_follow_the_state(directory):
    path = directory / "control"
    with started(*flags("s", "--control", str(path), "--cpus", "2")) as process:
        expect(path.stat().st_mode & 0o777 == 0o600, "others may connect")
        client = Control(path)
        status = client.expect_ok("status", id="first")
        expect(status["id"] == "first" and status["state"] == "running", f"{status}")
        expect(status["cpus"] == 2 and status["memory_bytes"] == 32 << 20, f"{status}")
        expect(status["pid"] == process.pid, f"{status}")
        expect(not client.ask("resume")["ok"], "resumed what runs")
        client.expect_ok("pause")
        client.expect_ok("pause")
        expect(client.expect_ok("status")["state"] == "paused", "not paused")
        expect(not client.ask("powerdown")["ok"], "powered down what is paused")
        client.expect_ok("resume")
        expect(client.expect_ok("statistics")["statistics"], "no statistics")
        expect(not client.ask("fly")["ok"], "flew")
        client.expect_ok("reset")
        wait_for(process.stdout.fileno(), b"up")
        expect(client.expect_ok("status")["resets"] == 1, "resets")
        client.expect_ok("stop")
        expect(end_of(process) == 0, "status")
    expect(not path.exists(), "the socket is left behind")


def test_control_watch_tells_each_change(directory):
    path = directory / "control"
    with started(*flags("b", "--control", str(path))) as process:
        watcher, client = Control(path), Control(path)
        watcher.expect_ok("watch")
        client.expect_ok("pause")
        event = watcher.line()
        expect(event["event"] == "state" and event["state"] == "paused", f"{event}")
        client.expect_ok("resume")
        expect(watcher.line()["state"] == "running", "resume")
        client.expect_ok("powerdown")
        expect(watcher.line()["end"] == "power-off", "end")
        expect(end_of(process) == 0, "status")


def test_control_hostile_peers_lose_only_their_connection(directory):
    path = directory / "control"
    with started(*flags("h", "--control", str(path))) as process:
        for garbage in (b"\n", b"{\n", b"[1]\n", b"\xff\xfe\n", b'{"command": 3}\n',
                        b"[" * 4000 + b"\n", b'{"command": "balloon", "bytes": -1}\n'):
            client = Control(path)
            client.file.write(garbage)
            client.file.flush()
            expect(client.line()["ok"] is False, f"{garbage[:20]!r}")
            client.expect_ok("status")
            client.close()
        long = Control(path)
        long.file.write(b"x" * 5000)
        long.file.flush()
        expect(long.line()["ok"] is False and long.line() is None, "a long line")
        deaf = socket.socket(socket.AF_UNIX)
        deaf.connect(str(path))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while True:  # the monitor ends the connection when answers pile up
                deaf.sendall(b'{"command": "status"}\n' * 100)
        crowd = [Control(path) for _ in range(9)]
        refused = [peer for peer in crowd[8:] if peer.line()["ok"] is False]
        expect(len(refused) == 1, "the ninth client")
        crowd[0].expect_ok("status")
        crowd[0].expect_ok("quit")
        expect(end_of(process) == 0, "status")


def test_socket_names_in_use_and_left_over(directory):
    path = directory / "control"
    with started(*flags("h", "--control", str(path))) as process:
        expect_refused(run(*flags("o", "--control", str(path))), 1, "--control", "control")
        Control(path).expect_ok("status")
        process.kill()
        end_of(process)
    expect(path.exists(), "a killed process cannot tidy up")
    result = run(*flags("o", "--control", str(path)))
    expect(result.returncode == 0, f"a left-over socket is in the way: {result}")
    path.write_text("precious")
    expect_refused(run(*flags("o", "--control", str(path))), 1, "no socket")
    expect(path.read_text() == "precious", "a file was overwritten")


def executor_of(monitor):
    """The process that runs guest code."""
    children = pathlib.Path(f"/proc/{monitor.pid}/task/{monitor.pid}/children").read_text().split()
    expect(len(children) == 1, f"children {children}")
    return int(children[0])


def test_dead_executor_ends_the_machine(_):
    if ENGINE != "soft":
        return
    for mode in "hse":  # halted for good, spinning, waiting for input
        with started(*flags(mode)) as process:
            os.kill(executor_of(process), signal.SIGKILL)
            _, errors = process.communicate(timeout=LIMIT_S)
            expect(process.returncode == 4, f"status {process.returncode}, mode {mode}")
            expect(b"killed by signal 9" in errors, f"{errors!r}")


def test_executor_does_not_outlive_the_monitor(_):
    if ENGINE != "soft":
        return
    with started(*flags("s")) as process:
        executor = os.pidfd_open(executor_of(process))
        process.kill()
        process.wait(timeout=LIMIT_S)
        with contextlib.closing(os.fdopen(executor)):
            ready, _, _ = select.select([executor], [], [], LIMIT_S)
        expect(ready, "the executor goes on")


def main():
    if ENGINE == "kvm" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        print("/dev/kvm cannot be opened here")
        return 77
    tests = [(name, function) for name, function in globals().items() if name.startswith("test_")]
    print(f"1..{len(tests)}", flush=True)
    failed = False
    for number, (name, function) in enumerate(tests, 1):
        with tempfile.TemporaryDirectory(prefix="corbel-test-") as directory:
            try:
                function(pathlib.Path(directory))
                print(f"ok {number} - {name}", flush=True)
            except Exception:  # pylint: disable=broad-except
                failed = True
                print("# " + traceback.format_exc().replace("\n", "\n# "))
                print(f"not ok {number} - {name}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
