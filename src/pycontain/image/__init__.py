"""Images: found where the argument says, verified, unpacked once, ready to be mounted.

    store.py       ImageStore                  embedded.py, reference.py    what an argument means
    formats.py, archive.py                     what a layout or an archive holds
    manifest.py, platforms.py                  documents, parsed as hostile; the one for this host
    ingest.py, content.py, collect.py          into the store (an OCI layout), and out of it
    inflate.py, tar.py, pax.py, unpack.py, tree.py    bytes -> files, under limits
    snapshots.py, removal.py                   layers -> an overlay mount; hostile trees -> nothing

The public ones are `ImageStore`, `Image` and `snapshots`.
"""

from __future__ import annotations

from pycontain.image.collect import Pruned
from pycontain.image.store import Image, ImageStore

__all__ = ["Image", "ImageStore", "Pruned"]
