"""The export formats, the default first.

To add one, write its `Format` in a file beside this one and name it in `FORMATS`; `qdtune export` follows from that.
"""

from __future__ import annotations

from qdtune.model.formats.c import C
from qdtune.model.formats.format import Format, FormatOption
from qdtune.model.formats.onnx import ONNX
from qdtune.model.formats.packed import PACKED

FORMATS: tuple[Format, ...] = (PACKED, ONNX, C)
FORMAT_NAMES = tuple(known.name for known in FORMATS)
FORMAT_OPTIONS: tuple[FormatOption, ...] = tuple(dict.fromkeys(one for known in FORMATS for one in known.options))


def format_of(name: str) -> Format:
    """The format of this name."""
    return FORMATS[FORMAT_NAMES.index(name)]
