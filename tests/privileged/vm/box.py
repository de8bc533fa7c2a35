"""Prepare what the Vagrantfile needs: a box made from the VM image, and the staged tests.

``python tests/privileged/vm/box.py`` prints the paths as JSON. A box is a gzipped tar of
box.img (qcow2), metadata.json and a Vagrantfile; the kernel is booted directly, as run.py does, so
the disk needs no boot loader.
Source: vagrant-libvirt's documentation, "Box Format".
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import image
import run
import stage

BOX_VAGRANTFILE = 'Vagrant.configure("2") { |config| config.vm.provider :libvirt }\n'
STAGE = stage.REPOSITORY / "build" / "vagrant-stage"


def box_file(booted: image.Image) -> Path:
    """Return the .box of an image, packed beside it if it is not there yet."""
    target = booted.disk_path.with_name("pycontain.box")
    if target.exists():
        return target
    with tempfile.TemporaryDirectory(dir=target.parent) as directory:
        parts = Path(directory)
        convert = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(booted.disk_path)]
        subprocess.run([*convert, str(parts / "box.img")], check=True)
        size_gib = image.DISK_BYTES >> 30
        metadata = {"provider": "libvirt", "format": "qcow2", "virtual_size": size_gib}
        (parts / "metadata.json").write_text(json.dumps(metadata))
        (parts / "Vagrantfile").write_text(BOX_VAGRANTFILE)
        names = ["metadata.json", "Vagrantfile", "box.img"]
        packed = parts / "packed"
        command = ["tar", "--use-compress-program=gzip -1", "-cf", str(packed), "-C", str(parts)]
        subprocess.run([*command, *names], check=True)
        packed.rename(target)
    return target


def main() -> int:
    booted = image.build(box=True)
    if STAGE.exists():
        shutil.rmtree(STAGE)
    stage.stage_tree(STAGE, run.guest_command([]))
    paths = {
        "box": str(box_file(booted)),
        "kernel": str(booted.kernel_path),
        "initrd": str(booted.initrd_path),
        "ssh_key": str(booted.disk_path.with_name("ssh_key")),
        "stage": str(STAGE),
        "driver": "kvm" if run.accelerator(booted)[1] == "kvm" else "qemu",
    }
    (STAGE.parent / "vagrant.json").write_text(json.dumps(paths))
    print(json.dumps(paths))
    return 0


if __name__ == "__main__":
    sys.exit(main())
