"""`image import`, `ls`, `rm` and `inspect`: the images in the store."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from pycontain.cli.arguments import Arguments, Command, Option
from pycontain.cli.errors import describe, exit_code_of
from pycontain.cli.format import FORMAT, Template, print_rows, to_json
from pycontain.cli.tables import ago, size
from pycontain.errors import NotFound, PycontainError

if TYPE_CHECKING:
    from pycontain.cli.app import Context
    from pycontain.engine import Engine

__all__ = ["COMMANDS", "image_document"]
