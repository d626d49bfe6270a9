#!/usr/bin/python3
"""An exported OVA, judged by what VirtualBox and ESXi read of it: order of the archive, manifest,
description (DSP0243, DSP8023), disk; and imported again."""

import hashlib
import os
import pathlib
import random
import subprocess
import tarfile
import xml.etree.ElementTree

from harness import expect, run_tests
from test_cli import User
from test_image_get import image_disk

MIB = 1 << 20
OVF = "{http://schemas.dmtf.org/ovf/envelope/1}"
CIM = "{http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/"
RASD = CIM + "CIM_ResourceAllocationSettingData}"
VSSD = CIM + "CIM_VirtualSystemSettingData}"
STREAM = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"
DISK = random.Random(2).randbytes(2 * MIB) + bytes(30 * MIB) + random.Random(3).randbytes(MIB)


def item(system, kind):
    """The only hardware item of a kind, as {property: value}."""
    items = [{child.tag.removeprefix(RASD): child.text for child in element}
             for element in system.iter(OVF + "Item")]
    found = [i for i in items if i["ResourceType"] == str(kind)]
    expect(len(found) == 1, f"items of the kind {kind}: {found}")
    return found[0]


def judge(path, name, size):
    with tarfile.open(path) as archive:
        members = archive.getmembers()
        names = [m.name for m in members]
        expect(names == [f"{name}.ovf", f"{name}.mf", f"{name}-disk1.vmdk"], names)
        expect(all(m.isreg() and m.mode == 0o644 for m in members), "members are no plain files")
        files = {m.name: archive.extractfile(m).read() for m in members}
    expect(os.stat(path).st_size % 512 == 0, "the archive does not end with a block")
    digests = {n: hashlib.sha256(data).hexdigest() for n, data in files.items()}
    lines = files[f"{name}.mf"].decode().splitlines()
    expect(lines == [f"SHA256({n})= {digests[n]}" for n in (names[0], names[2])], lines)

    root = xml.etree.ElementTree.fromstring(files[f"{name}.ovf"])
    expect(root.tag == OVF + "Envelope", root.tag)
    expect([e.tag.removeprefix(OVF) for e in root] ==
           ["References", "DiskSection", "NetworkSection", "VirtualSystem"], list(root))
    file = root.find(f"{OVF}References/{OVF}File")
    expect(file.get(OVF + "href") == names[2] and
           int(file.get(OVF + "size")) == len(files[names[2]]), file.attrib)
    disk = root.find(f"{OVF}DiskSection/{OVF}Disk")
    expect(disk.get(OVF + "fileRef") == file.get(OVF + "id") and
           disk.get(OVF + "format") == STREAM and int(disk.get(OVF + "capacity")) == size, disk.attrib)
    for section in root.iter():
        if section.tag.endswith(("Section", "}VirtualSystem")):
            expect(section[0].tag == OVF + "Info" and section[0].text, f"{section.tag} lacks Info")

    system = root.find(OVF + "VirtualSystem")
    expect(system.get(OVF + "id") == name, system.attrib)
    hardware = system.find(OVF + "VirtualHardwareSection")
    expect(hardware.find(f"{OVF}System/{VSSD}VirtualSystemType").text.startswith("vmx-"), "family")
    for element in (*hardware.iter(OVF + "Item"), hardware.find(OVF + "System")):
        tags = [child.tag for child in element]
        expect(tags == sorted(tags), f"properties are not in the schema's order: {tags}")
        expect({"ElementName", "InstanceID"} <= {t.partition("}")[2] for t in tags}, tags)
    ids = [e.text for e in hardware.iter(RASD + "InstanceID")]
    expect(len(ids) == len(set(ids)), f"ids are given twice: {ids}")
    expect(item(system, 3)["VirtualQuantity"] == "1", "CPUs")
    expect(item(system, 4)["VirtualQuantity"] == "1024" and
           item(system, 4)["AllocationUnits"] == "byte * 2^20", "memory")
    controller, drive, network = item(system, 6), item(system, 17), item(system, 10)
    expect(controller["ResourceSubType"] == "lsilogic" and
           drive["Parent"] == controller["InstanceID"] and
           drive["HostResource"] == "ovf:/disk/" + disk.get(OVF + "diskId"), drive)
    networks = [n.get(OVF + "name") for n in root.iter(OVF + "Network")]
    expect(network["Connection"] in networks and network["ResourceSubType"] == "E1000", network)
    return files[names[2]]


def export_and_import(place):
    with User(place) as user:
        raw = pathlib.Path(user.home, "d.raw")
        raw.write_bytes(DISK)
        raw.chmod(0o644)
        user.run("image", "import", str(raw), "--name", "box.1")
        target = f"{user.home}/out.ova"
        user.run("image", "export", "box.1", target)
        vmdk = judge(target, "box.1", len(DISK))
        expect(len(vmdk) < 4 * MIB, "zeroes take room in the archive")
        (raw.parent / "d.vmdk").write_bytes(vmdk)
        subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "vmdk", raw,
                        raw.parent / "d.vmdk"], check=True, stdout=subprocess.DEVNULL)
        user.run("image", "import", target, "--name", "back")
        expect(image_disk(user, "back").read_bytes() == DISK, "the disk comes back another one")
        _, err = user.run("image", "export", "box.1", target, status=4)
        expect("already" in err, err)
        # One bit in the disk, and the manifest tells.
        data = bytearray(pathlib.Path(target).read_bytes())
        data[-MIB // 2] ^= 1
        bent = raw.parent / "bent.ova"
        bent.write_bytes(data)
        bent.chmod(0o644)
        _, err = user.run("image", "import", str(bent), "--name", "bent", status=1)
        expect("manifest" in err, err)
        user.run("image", "export", "box.1", f"{user.home}/no/such/dir.ova", status=3)
        expect(not [n for n in os.listdir(user.home) if "making" in n], "an export left something")


TESTS = [("an exported OVA is what others expect, and comes in again", export_and_import)]

if __name__ == "__main__":
    run_tests(TESTS)
