// The way to a new instance: from what, how large, with which disks, network and access, and
// whether the project may have it.

import { post } from "./api.js";
import { finish } from "./actions.js";
import { useLive } from "./hooks.js";
import { quotasOf, Quota } from "./tenants.jsx";
import { useNetworks } from "./nics.jsx";
import { choicesFor, namesOf, nicsFor, projectField, projectOf, useSchema } from "./pages.jsx";
import { nameOf, size } from "./format.js";
import { Empty, Form, Page } from "./ui.jsx";
import { useWho } from "./who.js";


// What may be changed of a machine that runs, within these two.
export const ROOM = ["max_cpus", "max_memory_mib"];
export const LIMITS = ["cpu_weight", "cpu_cap_percent", "cpu_baseline_percent", "cpu_reserved_percent", "pinned_cpus", "memory_limit_mib", "balloon_mib",
  "disk_bps", "disk_iops", "net_bps", "net_pps"];

// The fields of each part; what the interface has beyond these comes last, under "More".
const PARTS = [
  { title: "Name and project", names: ["name", "project_of"] },
  { title: "What it begins as", names: ["image", "snapshot"] },
  { title: "Size", names: ["type", "cpus", "memory_mib", "disk_gib"] },
  { title: "Resize while it runs", names: ROOM, isDense: true },
  { title: "Volumes", names: ["volumes", "new_volume_gib"] },
  { title: "Network", names: ["nic", "network", "forwards"] },
  { title: "Access", names: ["key", "user_data"] },
  { title: "Limits", names: LIMITS, isDense: true },
  { title: "Tags", names: ["tags"] },
];

// The interface's own fields, with two of this page: the project, and a volume that is made for it.
function complete(schema, live, who) {
  const { name, ...rest } = schema.properties;
  return {
    ...schema,
    properties: {
      name,
      ...projectField(live, who),
      ...rest,
      new_volume_gib: { type: "integer", minimum: 1, maximum: 65536, description: "makes a new, empty volume of that size for it" },
    },
  };
}

// Everything is checked before the first thing is made.
async function launch({ project_of: project, new_volume_gib: gib, ...wanted }) {
  const where = project ? `project=${encodeURIComponent(project)}&` : "";
  if (gib) {
    await post(`/v1/instances?${where}dry_run=true`, wanted);
    const made = await post(`/v1/volumes?${where}dry_run=false`, { size_gib: gib, ...(wanted.name ? { name: `${wanted.name}-data` } : {}) });
    await finish(made);
    wanted.volumes = [...(wanted.volumes ?? []), made.volume.id];
  }
  const answer = await post(`/v1/instances?${where}dry_run=false`, wanted);
  location.hash = `#/instances/${answer.instance.id}`;
}

function Summary({ values, live, project }) {
  const type = live.find("type", values.type ?? "small");
  const adds = { Instances: 1, vCPUs: values.cpus ?? type?.cpus ?? 0, Memory: values.memory_mib ?? type?.memory_mib ?? 0,
    "Volumes and snapshots": values.new_volume_gib ?? 0, "Network cards": values.nic ? 0 : 1 };
  return (
    <div class="card" role="region" aria-label="The project's quota">
      <h2>{project ? `Quota of ${nameOf(project)}, with this` : "Quota"}</h2>
      {project && quotasOf(project, live).map((quota) =>
        <Quota key={quota.title} quota={{ ...quota, used: quota.used + (adds[quota.title] ?? 0) }} />)}
    </div>
  );
}

const typeText = (type) => `${nameOf(type)} (${type.cpus} vCPU, ${size(type.memory_mib)}${type.disk_gib ? `, ${type.disk_gib} GiB` : ""})`;

// What there is to choose from in the project.
function choicesIn(live, schema, project, networks) {
  const own = (kind) => live.all(kind).filter((object) => object.project === project?.id);
  return {
    ...choicesFor(live, schema, project?.id),
    type: live.all("type").sort((a, b) => a.memory_mib - b.memory_mib).map((type) => ({ value: nameOf(type), text: typeText(type) })),
    snapshot: own("snapshot").filter((one) => one.instance && one.state === "available")
      .map((one) => ({ value: one.id, text: `${nameOf(one)} (of ${one.source})` })),
    volumes: own("volume").filter((volume) => volume.state === "available")
      .map((volume) => ({ value: volume.id, text: `${nameOf(volume)}, ${volume.size_gib} GiB` })),
    nic: nicsFor(live, project?.id), network: networks,
    project_of: namesOf(live.all("project")),
  };
}

export function Launch({ snapshot }) {
  const live = useLive();
  const who = useWho();
  const networks = useNetworks();
  const described = useSchema("/v1/instances", "post");
  if (!described || !live.isLoaded) return <Page title="Launch instance"><Empty>Loading ...</Empty></Page>;
  const images = live.all("image");
  const from = snapshot && live.find("snapshot", snapshot);
  const initial = { ...(from && projectField(live, who).project_of ? { project_of: nameOf(live.find("project", from.project)) } : {}),
    ...(from ? { snapshot: from.id } : images.length === 1 ? { image: nameOf(images[0]) } : {}) };
  return (
    <Page title="Launch instance">
      {images.length === 0 && <p class="note">There is no image on this host yet. <code>corbel image build debian</code> makes one.</p>}
      <Form schema={complete(described, live, who)} sections={PARTS} verb="Launch" initial={initial}
        choices={(values) => choicesIn(live, described, projectOf(live, who, values), networks)} onSubmit={launch} onCancel={() => history.back()}>
        {(values) => <Summary values={values} live={live} project={projectOf(live, who, values)} />}
      </Form>
    </Page>
  );
}
