#!/usr/bin/python3
"""`make test-kernel`: the kernel's features as in test_kernel.py, more often and with Debian's own
tools, a live patch built in the guest, and stress-ng's classes with verification, while the host
watches memory and descriptors of the monitor and its processes.

usage: test_kernel_soak.py [WORD...]     only the tests whose names hold a word
CORBEL_KERNEL_SECONDS is the time of the stress with each number of vCPUs; it ends no test early or
late, and nothing is expected of how much is done in it.
"""

import contextlib
import os
import re
import threading
import time

import test_kernel
from harness import expect, guest, run_tests
from test_kernel import (CALLS, FUNCTION, OVERHEAD_KIB, PROBED, SEED, Session, TROUBLE, Usage,
                         expect_bounded, host_usage)

SECONDS = int(os.environ.get("CORBEL_KERNEL_SECONDS", "3600"))
WATCH_EVERY_S = 10
MAX_MAPPINGS = 65530  # what Linux lets a process have
SPARE_MAPPINGS = 8  # the C library's heaps come as threads first allocate
WORKER_MAPPINGS = 4  # of a thread: its stack, its heap, and what guards them
KIND = "debian-kernel"
PACKAGES = "stress-ng,kexec-tools,linux-perf,bpftrace,gcc,make,linux-headers-cloud-amd64"
# All of arch/x86/crypto; one whose instructions the host lacks is not loaded.
CRYPTO = ["aesni-intel", "ghash-clmulni-intel", "sha1-ssse3", "sha256-ssse3", "sha512-ssse3",
          "chacha-x86_64", "poly1305-x86_64", "curve25519-x86_64", "nhpoly1305-sse2",
          "nhpoly1305-avx2", "camellia-x86_64", "camellia-aesni-avx-x86_64", "camellia-aesni-avx2",
          "serpent-sse2-x86_64", "serpent-avx-x86_64", "serpent-avx2", "twofish-x86_64",
          "twofish-x86_64-3way", "twofish-avx-x86_64", "blowfish-x86_64", "cast5-avx-x86_64",
          "cast6-avx-x86_64", "des3_ede-x86_64", "crc32-pclmul", "crc32c-intel", "crct10dif-pclmul",
          "aegis128-aesni"]
# stress-ng's stressors of memory, processes, scheduler and signals; left out is what needs hardware,
# fills disks, or may end the guest.
STRESSORS = {
    "vm": "vm,mmap,mmapfork,mmaphuge,mmapmany,mremap,msync,madvise,mincore,munmap,shm,shm-sysv,"
          "bigheap,brk,stack,stackmmap,userfaultfd,vm-rw,vm-segv,vm-splice,vm-addr,pageswap,remap,"
          "mprotect,mlock,ksm,tmpfs,full,zero",
    "memory": "memcpy,memrate,memthrash,malloc,matrix,matrix-3d,stream,bsearch,qsort,heapsort,"
              "hsearch,lsearch,tsearch,radixsort,mergesort,skiplist,tree,list,judy,hash,atomic,"
              "lockbus,membarrier,pipe,prefetch,str,wcs,sparsematrix,trie,vecwide,vecmath,fma,rmap",
    "fork": "fork,vfork,vforkmany,clone,exec,daemon,zombie,wait,pthread,spawn,switch,context,sem,"
            "sem-sysv,futex,mutex,affinity,nice,sched,schedpolicy,yield,session,tsc",
    "signal": "sigabrt,sigchld,sigfd,sigfpe,sigio,signal,signest,sigpending,sigpipe,sigq,sigrt,"
              "sigsegv,sigsuspend,sigtrap,alarm,itimer,timer,timerfd,trap,sigbus,sigxcpu,sigxfsz",
    "cpu": "cpu,branch,funccall,funcret,jpeg,crypt,longjmp,nop,goto,getrandom,x86syscall,"
           "x86cpuid,far-branch,jit,mcontend,icache,flushcache,cacheline,fp,intmath,physpage,"
           "bad-altstack,loadavg,rseq,seccomp,syscall,enosys,null,dynlib,kcmp,ptrace,vdso",
}
SHARES = {"vm": 4, "memory": 4, "fork": 4, "signal": 4, "cpu": 20}  # of SECONDS, the last on top
LIVE_PATCH = r"""
#include <linux/module.h>
#include <linux/livepatch.h>
#include <linux/seq_file.h>
#include <linux/utsname.h>
static int patched_show(struct seq_file *m, void *v)
{
    seq_printf(m, "patched %s\n", THIS_MODULE->name);
    return 0;
}
static struct klp_func funcs[] = {{.old_name = "cmdline_proc_show", .new_func = patched_show}, {}};
static struct klp_object objects[] = {{.funcs = funcs}, {}};
static struct klp_patch patch = {.mod = THIS_MODULE, .objs = objects};
static int __init patch_init(void) { return klp_enable_patch(&patch); }
static void __exit patch_exit(void) {}
module_init(patch_init);
module_exit(patch_exit);
MODULE_LICENSE("GPL");
MODULE_INFO(livepatch, "Y");
"""


def build_image():
    """The image with more packages, as guest() builds those without."""
    guest(KIND, "debian", "--name", KIND, "--packages", PACKAGES, "--size", "6G")


def use_live_patch(s):
    """A function of the running kernel is replaced and comes back, while work goes on."""
    s.run(f"""set -e; mkdir -p /root/patch; cd /root/patch; echo 'obj-m := patch.o' >Makefile
        cat >patch.c <<'END'
{LIVE_PATCH}
END
        make -s -C /lib/modules/$(uname -r)/build M=$PWD modules 2>&1""")
    s.ssh.run("cat /proc/cmdline >/tmp/cmdline")
    patched = "/sys/kernel/livepatch/patch"
    wait = f"while test \"$(cat {patched}/transition 2>/dev/null)\" = 1; do :; done"
    expect(s.while_working(
        f"insmod /root/patch/patch.ko; {wait}; test \"$(cat /proc/cmdline)\" = 'patched patch'; "
        f"echo 0 >{patched}/enabled; while test -e {patched}; do :; done; "
        "cmp /proc/cmdline /tmp/cmdline; rmmod patch", f"processes {SEED} 20") > 0,
        "the work ended too early")


def use_bpftrace(s):
    """Compiled probes count each call."""
    output = s.run(f"bpftrace -e 'kprobe:{PROBED} {{ @in = count(); }} "
                   f"kretprobe:{PROBED} {{ @out = count(); @sum = sum(retval); }} "
                   "uprobe:/root/kernel-work:probed_mix { @user = count(); }' "
                   f"-c '/root/kernel-work calls {CALLS}'")
    for name in ("in", "out", "sum", "user"):
        expect(f"@{name}: {CALLS}\n" in output, f"not {CALLS} calls were counted:\n{output}")


def use_perf_tools(s):
    """perf stat counts, perf record finds the function that works, perf probe and trace see calls."""
    output = s.run("cd /tmp; perf stat -x, -e page-faults,context-switches,task-clock "
                   "/root/kernel-work perf 3000 2>&1")
    faults = int(re.search(r"^(\d+),,page-faults", output, re.MULTILINE).group(1))
    expect(3000 < faults < 3400, f"3000 pages touched:\n{output}")
    s.run(f"cd /tmp; perf record -q -g -e cpu-clock -F 500 -o /tmp/perf.data -- "
          f"/root/kernel-work processes {SEED} 60")
    report = s.run("perf report -i /tmp/perf.data --stdio --no-children -g none -s dso,sym 2>/dev/null")
    expect("] work_processes" in report, f"the busy function is missing:\n{report}")
    output = s.run(f"perf trace -s -e sched_get_priority_min /root/kernel-work calls {CALLS} 2>&1")
    expect(re.search(rf"sched_get_priority_min +{CALLS} ", output), f"not {CALLS} calls:\n{output}")


def use_kexec_tools(s):
    """Both of the kernel's ways to load another, by Debian's program."""
    for flag in ("-s", "-c"):
        s.run(f"set -e; kexec {flag} -l /boot/vmlinuz-* --initrd=$(ls /boot/initrd.img-*) --reuse-cmdline; "
              "test $(cat /sys/kernel/kexec_loaded) = 1; touch /run/before")
        start = s.machine.mark()
        s.ssh.start("sync; kexec -e")
        s.login(start)
        s.run(f"! test -e /run/before; test $(nproc) = {s.cpus}; /root/kernel-work processes {SEED} 5")


class Watch:
    """Looks at the monitor's processes all the time, beside the test."""

    def __init__(self, pid):
        self.pid, self.samples, self.ended = pid, [], threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)

    def _look(self):
        while not self.ended.wait(WATCH_EVERY_S):
            with contextlib.suppress(OSError):  # a process that has just ended
                self.samples.append(host_usage(self.pid))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *unused):
        self.ended.set()
        self.thread.join()

    def most(self):
        return Usage(*map(max, zip(*self.samples)))

    def story(self):
        return f"{len(self.samples)} looks, at most {self.most()}" if self.samples else "no looks"


def stress(s, name, seconds, seen):
    """Each stressor of a class for its share of the time; what went wrong. A later one may find
    more, so none ends the test. seen: what the kernel has said already."""
    known = s.run("stress-ng --stressors").split()
    chosen = [one for one in STRESSORS[name].split(",") if one in known]
    each = max(1, seconds // len(chosen))
    problems = []
    for one in chosen:
        script = (f"cd /var/tmp; stress-ng --verify --{one} {s.cpus} --timeout {each}s --oomable "
                  "--vm-bytes 64M --stream-l3-size 4M 2>&1; echo status=$?; dmesg")
        output, _, log = s.ssh.run(script).partition("status=")
        if not log.startswith("0\n") or re.search("fail:|unexpected signal", output):
            problems.append(f"{script}: status {log.splitlines()[:1]}\n{output[-3000:]}")
        bad = [line for line in log.splitlines() if TROUBLE.search(line) and line not in seen]
        if bad:
            seen.update(bad)
            problems.append(f"the guest's kernel complains after {one}:\n" + "\n".join(bad))
    print("".join(f"# {line}\n" for text in problems for line in text.splitlines()), end="", flush=True)
    return problems


def use_features(place, cpus):
    print(f"# seed {SEED}", flush=True)
    build_image()
    with Session(place, cpus, KIND, "1G", 20) as s:
        s.run(f"/root/kernel-work processes {SEED} 1")
        before = host_usage(s.machine.process.pid)
        for step in (*test_kernel.STEPS, use_live_patch, use_bpftrace, use_perf_tools, use_kexec_tools):
            step(s)
            print(f"# {step.__name__} held", flush=True)
        test_kernel.use_crypto(s, CRYPTO)
        expect_bounded(s, before)
        s.ssh.start("systemctl poweroff")
        expect(s.machine.wait_exit() == 0, s.machine.story())


def use_stress(place, cpus):
    """SECONDS of stress, watched from outside all the time."""
    build_image()
    with Session(place, cpus, KIND, "1G") as s:
        s.run(f"/root/kernel-work processes {SEED} 1")
        before = host_usage(s.machine.process.pid)
        problems, seen = [], set()
        with Watch(s.machine.process.pid) as watch:
            for name, share in SHARES.items():
                begin = time.monotonic()
                problems += stress(s, name, SECONDS // share, seen)
                print(f"# {name}, {cpus} vCPU: {time.monotonic() - begin:.0f} s; so far {watch.story()}",
                      flush=True)
        expect(not problems, "\n".join(problems))
        expect_bounded(s, before)
        most, after = watch.most(), host_usage(s.machine.process.pid)
        print(f"# before {before}, after {after}", flush=True)
        expect(most.kib <= OVERHEAD_KIB, f"the monitor held {most.kib} KiB")
        expect(most.guest_mappings + most.mappings < MAX_MAPPINGS, f"mappings at most: {most}")
        workers = after.disk_workers - before.disk_workers
        spare = SPARE_MAPPINGS + WORKER_MAPPINGS * max(workers, 0)
        expect(after.threads <= before.threads and after.mappings <= before.mappings + spare,
               f"the monitor went from {before} to {after}")
        s.ssh.start("systemctl poweroff")
        expect(s.machine.wait_exit() == 0, s.machine.story())


TESTS = [(f"{name}, {cpus} vCPU", lambda p, f=function, c=cpus: f(p, c))
         for cpus in (1, 2)
         for name, function in (("kernel features", use_features), ("stress", use_stress))]

if __name__ == "__main__":
    run_tests(TESTS)
