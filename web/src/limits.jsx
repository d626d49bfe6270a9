// What an instance may use: as facts, and as the dialog that changes it.

import { report } from "./actions.js";
import { ChangeDialog, isOff } from "./change.jsx";
import { LIMITS, ROOM } from "./launch.jsx";
import { sizes } from "./pages.jsx";
import { duration, nameOf, rate, size } from "./format.js";

const SIZES = ["type", "cpus", "memory_mib"];
const PARTS = [
  { title: "Size", names: SIZES, isDense: true },
  { title: "Room to grow", names: ROOM, isDense: true },
  { title: "Limits", names: LIMITS, isDense: true },
];
export const RESIZABLE = new Set([...SIZES, ...ROOM, ...LIMITS]);

const vcpus = (count) => `${count} vCPU${count === 1 ? "" : "s"}`;

// Those that are set, in words.
export function limitsOf(instance) {
  const words = {
    cpu_weight: (n) => n !== 100 && `weight ${n}`, cpu_cap_percent: (n) => `at most ${n} % of its vCPUs`,
    cpu_baseline_percent: (n) => `${n} % earned as credits`,
    cpu_reserved_percent: (n) => `${n} % of a CPU reserved`, pinned_cpus: (list) => `on CPUs ${list}`,
    memory_limit_mib: (n) => `${size(n)} for its process`, balloon_mib: (n) => `${size(n)} asked back`,
    disk_bps: (n) => `disk ${rate(n)}B/s`, disk_iops: (n) => `disk ${rate(n)}operations/s`,
    net_bps: (n) => `network ${rate(n)}B/s`, net_pps: (n) => `network ${rate(n)}frames/s`,
  };
  return LIMITS.map((name) => instance[name] && words[name](instance[name])).filter(Boolean).join(", ");
}

// What it may use above its baseline, of what it can keep: a day's.
export function creditsFact(instance) {
  const { cpu_credits: credits, cpu_baseline_percent: percent, cpu_held: isHeld } = instance;
  if (credits === undefined || !percent) return undefined;
  const most = (instance.cpus_now ?? sizes(instance).cpus ?? 1) * percent * 864;
  return <>{duration(credits)} of {duration(most)}{isHeld && <span class="warn">, held at {percent} % until it has more</span>}</>;
}

// "2, up to 4 while it runs"; what the guest has not followed yet, too.
export function sizeFact(instance, wanted, now, most, write) {
  if (wanted === undefined) return undefined;
  const parts = [write(wanted)];
  if (now !== undefined && now !== wanted) parts.push(`${write(now)} now`);
  if (most !== undefined && most > wanted) parts.push(`up to ${write(most)} while it runs`);
  return parts.join(", ");
}

function Intro({ instance, values }) {
  if (isOff(instance)) return <p class="note">It is off: what is set holds from its next start on.</p>;
  const { live_cpus: cpus, live_memory_mib: memory } = instance;
  const wanted = { cpus: values.cpus ?? 0, memory: values.memory_mib ?? 0 };
  const isTooMuch = (cpus && wanted.cpus > cpus) || (memory && wanted.memory > memory);
  return (
    <p class="note" aria-live="polite">It runs with {vcpus(instance.cpus_now ?? sizes(instance).cpus)} and {size(instance.memory_now_mib ?? sizes(instance).memory)}{cpus &&
      `, and can have ${vcpus(cpus)} and ${size(memory)} without a restart`}.
      {isTooMuch && <strong class="warn"> What is beyond that it gets when it is restarted.</strong>}</p>
  );
}

export function Resize({ instance, onClose }) {
  const name = nameOf(instance);
  return <ChangeDialog object={instance} plural="instances" verb="Resize" isIn={(field) => RESIZABLE.has(field)} sections={PARTS}
    done={(answer) => report(answer, name, `${name} has what it was to have`)}
    intro={(values) => <Intro instance={instance} values={values} />} onClose={onClose} />;
}
