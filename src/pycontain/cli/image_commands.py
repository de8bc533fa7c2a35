"""`image import`, `ls`, `rm` and `inspect`: the images in the store."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any

from pycontain.cli.arguments import Arguments, Command, Option
from pycontain.cli.errors import EXIT_FAILED, describe, exit_code_of
from pycontain.cli.format import FORMAT, Template, print_rows, to_json
from pycontain.cli.tables import ago, size
from pycontain.errors import NotFound, PycontainError

if TYPE_CHECKING:
    from pycontain.cli.app import Context
    from pycontain.image import Image

__all__ = ["COMMANDS"]

_COLUMNS = (
    ("REPOSITORY", "Repository"),
    ("TAG", "Tag"),
    ("IMAGE ID", "ID"),
    ("CREATED", "CreatedSince"),
    ("SIZE", "Size"),
)
_NONE = "<none>"
_SHORT_ID_LENGTH = 12
_TRANSPORTS = ("oci:", "oci-archive:", "docker-archive:")


def _import(arguments: Arguments, context: Context) -> int:
    """Put an image into the store and print its id.

    SOURCE is oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:REF], a file or directory
    in one of these formats, or with --rootfs a tar of a whole root file system.
    """
    images = context.engine().images
    source = arguments.operands[0]
    name = arguments.operands[1] if len(arguments.operands) > 1 else None
    if arguments.rootfs:
        image = images.import_rootfs_tar(source, name)
    elif source.startswith(_TRANSPORTS) and not os.path.exists(source):
        _, path, reference = (*source.split(":", 2), "")[:3]
        image = images.import_archive(path, name, ref=reference)
    else:
        image = images.import_archive(source, name)
    print(image.id)
    return 0


def _list(arguments: Arguments, context: Context) -> int:
    """Print the images, one line per name."""
    images = context.engine().images.ls()
    if arguments.quiet:
        for image in images:
            print(image.id if arguments.no_trunc else _short(image.id))
        return 0
    now = time.time()
    wanted = arguments.operands[0] if arguments.operands else None
    rows = []
    for image in images:
        for name in image.names or (_NONE,):
            row = _row(image, name, now, whole=arguments.no_trunc)
            if wanted is None or wanted in (row["Repository"], row["Reference"]):
                rows.append(row)
    print_rows(rows, arguments.format, _COLUMNS)
    return 0


def _row(image: Image, name: str, now: float, *, whole: bool) -> dict[str, Any]:
    """What `image ls` says about one name of an image, under docker's keys."""
    repository, _, tag = name.rpartition(":") if ":" in name.rpartition("/")[2] else (name, "", "")
    created = _seconds(image.created)
    return {
        "Reference": image.id if name == _NONE else name,
        "Repository": repository,
        "Tag": tag or _NONE,
        "ID": image.id if whole else _short(image.id),
        "CreatedAt": image.created,
        "CreatedSince": "N/A" if created is None else f"{ago(now - created)} ago",
        "Size": size(image.size_bytes),
    }


def _short(image_id: str) -> str:
    return image_id.rpartition(":")[2][:_SHORT_ID_LENGTH]


def _seconds(date: str) -> float | None:
    """Seconds since the epoch of an image's date, which anybody may have written; None if none."""
    if not date:
        return None
    from datetime import datetime

    try:
        return datetime.fromisoformat(date).timestamp()
    except (ValueError, OverflowError):
        return None


def _remove(arguments: Arguments, context: Context) -> int:
    """Remove names of images, and images that have no other."""
    images = context.engine().images
    code = 0
    for reference in arguments.operands:
        try:
            images.remove(reference, arguments.force)
        except PycontainError as error:
            print(f"pycontain: {reference}: {describe(error)}", file=sys.stderr)
            code = exit_code_of(error)
        else:
            print(reference)
    return code


def _inspect(arguments: Arguments, context: Context) -> int:
    """Print all that is known of images, as JSON."""
    images = context.engine().images
    layout = arguments.format
    template = Template(layout) if layout not in (None, "", "json") else None
    documents = []
    code = 0
    for reference in arguments.operands:
        try:
            documents.append(images.inspect(reference))
        except NotFound as error:
            print(f"pycontain: {describe(error)}", file=sys.stderr)
            code = EXIT_FAILED
    if template is not None:
        for document in documents:
            print(template.render(document))
    else:
        print(to_json(documents, indent=None if layout == "json" else 4))
    return code


COMMANDS = {
    "image import": Command(
        "put an image into the store: an OCI layout or archive, or a docker save archive",
        "SOURCE [NAME]",
        _import,
        (Option(("--rootfs",), "SOURCE is a tar of a whole root file system"),),
        least=1,
        most=2,
        complete="file",
    ),
    "image inspect": Command(
        "print all that is known of images, as JSON",
        "IMAGE [IMAGE...]",
        _inspect,
        (FORMAT._replace(flags=("-f", "--format")),),
        least=1,
        most=None,
        complete="image",
    ),
    "image ls": Command(
        "list the images in the store",
        "[NAME]",
        _list,
        (
            Option(("-q", "--quiet"), "ids only"),
            Option(("--no-trunc",), "cut nothing short"),
            FORMAT,
        ),
        most=1,
        complete="image",
    ),
    "image rm": Command(
        "remove images",
        "IMAGE [IMAGE...]",
        _remove,
        (Option(("-f", "--force"), "also if a container uses it"),),
        least=1,
        most=None,
        complete="image",
    ),
}
