"""Functions of C that sum products of weights and inputs, by the way in which the weights are stored."""

from __future__ import annotations

from dataclasses import dataclass

from qdtune.spec.choices import FLOAT_BITS

TYPES = {"uint8_t": "u8", "int8_t": "i8", "uint16_t": "u16", "int16_t": "i16", "float": "f32"}


@dataclass(frozen=True)
class Scheme:
    """How the weights of a layer are stored and multiplied.

    Attributes:
        bits: 1..16, or 32 for floats.
        is_packed_ternary: whether five codes are a byte.
        low: the code of the bits 0.
        is_binary: whether the codes are -1 and 1.
    """

    bits: int
    is_packed_ternary: bool
    low: int
    is_binary: bool

    @property
    def name(self) -> str:
        """Part of the names of its functions."""
        if self.bits == FLOAT_BITS:
            return "float"
        if self.is_packed_ternary:
            return "ternary"
        is_full = not self.is_binary and self.low == -(2 ** (self.bits - 1))
        return f"{self.bits}bit{'_ternary' if self.is_ternary else '_full' if is_full else ''}"

    @property
    def is_ternary(self) -> bool:
        """Whether the codes are -1, 0 and 1."""
        return self.low == -1 and self.bits == 2

    @property
    def read(self) -> str:
        """Statements that read one code, unsigned, into `u`, from `at`, `buffer` and `held`."""
        if self.is_packed_ternary:
            return """if (held == 0U) { buffer = *at++; held = 5U; }
        const uint32_t rest = (buffer * 171U) >> 9;  /* a third, of a byte */
        const uint32_t u = buffer - 3U * rest;
        buffer = rest;
        held--;"""
        fill = "if" if 8 % self.bits == 0 else "while"
        add = "buffer = *at++; held = 8U;" if fill == "if" else "buffer |= (uint32_t)*at++ << held; held += 8U;"
        return f"""{fill} (held < {self.bits}U) {{ {add} }}
        const uint32_t u = buffer & {2**self.bits - 1}U;
        buffer >>= {self.bits};
        held -= {self.bits}U;"""


def _name_width(total: str) -> str:
    """Part of the name of a function that sums in 64 bits: another layer of the same types may need 32 alone."""
    return "_wide" if total == "int64_t" else ""


def dot(scheme: Scheme, x: str, total: str) -> tuple[str, str]:
    """The name and text of the function that sums the products of one row of weights and the inputs.

    Of whole numbers it returns the sum of unsigned codes times inputs, or of codes if they are ternary.

    Args:
        scheme: of the weights.
        x: the type of the inputs.
        total: the type of the sum.
    """
    name = f"qd_dot_{scheme.name}_{TYPES[x]}{_name_width(total)}"
    if scheme.bits == FLOAT_BITS:
        return _dot_floats(name, x)
    value = "*x" if x == total else f"({total})*x"
    if scheme.is_ternary:
        add = f"if (u == 2U) {{ sum += {value}; }} else if (u == 0U) {{ sum -= {value}; }}"
    elif scheme.bits == 1 and total != "float":
        add = f"if (u != 0U) {{ sum += {value}; }}"
    elif scheme.is_binary:
        add = f"if (u != 0U) {{ sum += {value}; }} else {{ sum -= {value}; }}"
    elif total == "float":
        add = f"sum += (float)((int32_t)u + ({scheme.low})) * {value};"
    else:
        add = f"sum += ({total})u * {value};"
    zero = "0.0f" if total == "float" else "0"
    return (
        name,
        f"""
static {total} {name}(qd_stream *w, const {x} *x, uint32_t n)
{{
    const uint8_t *at = w->at;
    uint32_t buffer = w->buffer, held = w->held;
    {total} sum = {zero};
    for (const {x} *end = x + n; x != end; x++) {{
        {scheme.read}
        {add}
    }}
    w->at = at;
    w->buffer = buffer;
    w->held = held;
    return sum;
}}
""",
    )


def _dot_floats(name: str, x: str) -> tuple[str, str]:
    """As `dot`, of weights that are floats."""
    value = "x[i]" if x == "float" else "(float)x[i]"
    return (
        name,
        f"""
static float {name}(const float *w, const {x} *x, uint32_t n)
{{
    float sum = 0.0f;
    for (uint32_t i = 0U; i < n; i++) {{ sum += w[i] * {value}; }}
    return sum;
}}
""",
    )


# bits -> codes and bytes of a group that begins and ends with a byte
GROUPS = {1: (8, 1), 2: (4, 1), 3: (8, 3), 4: (4, 2), 8: (4, 4)}


def dot_groups(scheme: Scheme, x: str, total: str) -> tuple[str, str]:
    """As `dot` for whole numbers, if each row is whole groups of codes: no bit is left over from row to row.

    Codes that are -1, 0 or 1 need no multiplication: each bit is a mask for the input, and the sums of both bits are
    put together at the end.
    """
    name = f"qd_groups_{scheme.name}_{TYPES[x]}{_name_width(total)}"
    codes, size = GROUPS[scheme.bits]
    read = " | ".join(f"(uint32_t)at[{i}] << {8 * i}" if i else "at[0]" for i in range(size))
    has_masks = scheme.is_binary or scheme.is_ternary
    lines = [_add_code(scheme.bits, codes, i, f"({total})x[{i}]", total, has_masks) for i in range(codes)]
    body = "\n        ".join(lines if scheme.bits == 8 else [f"const uint32_t u = {read};", *lines])
    more = f"    {total} high = 0;\n" if has_masks and scheme.bits == 2 else ""
    return (
        name,
        f"""
static {total} {name}(qd_stream *w, const {x} *x, uint32_t n)
{{
    const uint8_t *at = w->at;
    {total} low = 0;
{more}    for (const {x} *end = x + n; x != end; x += {codes}, at += {size}) {{
        {body}
    }}
    w->at = at;
    return {"low + 2 * high" if more else "low"};
}}
""",
    )


def _add_code(bits: int, codes: int, i: int, value: str, total: str, has_masks: bool) -> str:
    """The statements that add an input times code `i` of a group."""
    if has_masks:
        names = ("low", "high")[:bits]
        return " ".join(f"{name} += {_mask(value, bits * i + k, total)};" for k, name in enumerate(names))
    if bits == 8:
        return f"low += ({total})at[{i}] * {value};"
    code = f"(u >> {bits * i})" if i else "u"
    return f"low += ({total}){f'({code} & {2**bits - 1}U)' if i < codes - 1 or bits * codes < 8 else code} * {value};"


def _mask(value: str, bit: int, total: str) -> str:
    """The value where a bit of `u` is set, else 0."""
    return f"({value} & -({total})({f'(u >> {bit})' if bit else 'u'} & 1U))"


def sum_inputs(x: str, total: str) -> tuple[str, str]:
    """The name and text of the function that sums inputs."""
    name = f"qd_sum_{TYPES[x]}{_name_width(total)}"
    return (
        name,
        f"""
static {total} {name}(const {x} *x, uint32_t n)
{{
    {total} sum = 0;
    for (uint32_t i = 0U; i < n; i++) {{ sum += x[i]; }}
    return sum;
}}
""",
    )


def read_code(scheme: Scheme) -> tuple[str, str]:
    """The name and text of the function that reads one weight of a stream, as its code."""
    name = f"qd_next_{scheme.name}"
    code = "u != 0U ? 1 : -1" if scheme.is_binary else f"(int32_t)u + ({scheme.low})"
    return (
        name,
        f"""
static int32_t {name}(qd_stream *w)
{{
    const uint8_t *at = w->at;
    uint32_t buffer = w->buffer, held = w->held;
        {scheme.read}
    w->at = at;
    w->buffer = buffer;
    w->held = held;
    return {code};
}}
""",
    )


def tap(x: str, plane: str, weight: str, is_small: bool) -> tuple[str, str]:
    """The name and text of the function that adds one weight of a kernel, times the inputs under it, to all sums.

    Args:
        x: the type of the inputs.
        plane: of the sums.
        weight: of the weight.
        is_small: whether it is -1, 0 or 1.
    """
    by = "_floats" if weight == "float" else "_small" if is_small else ""
    name = f"qd_tap_{TYPES[x]}_{plane.removesuffix('_t')}{by}"
    value = f"({plane})*from" if plane != x else "*from"
    w = "w" if plane == weight else f"({plane})w"
    loop = "for (int32_t n = count; n > 0; n--, from += stride, to++) {{ *to {} {}; }}"
    one, minus, times = loop.format("+=", value), loop.format("-=", value), loop.format("+=", f"{w} * {value}")
    inner = f"if (w > 0) {{ {one} }} else {{ {minus} }}" if is_small else times
    return (
        name,
        f"""
static void {name}({plane} *sums, const {x} *x, {weight} w, const qd_window *s, int32_t ky, int32_t kx)
{{
    const int32_t stride = s->stride[1];
    int32_t top = ky * s->dilation[0] - s->before[0], left = kx * s->dilation[1] - s->before[1], first = 0;
    for (; left < 0; left += stride) {{ first++; }}
    int32_t count = left < s->width ? (s->width - left + stride - 1) / stride : 0;
    if (count > s->out_width - first) {{ count = s->out_width - first; }}
    for (int32_t row = 0; row < s->out_height; row++, top += s->stride[0]) {{
        if (top < 0 || top >= s->height) {{ continue; }}
        const {x} *from = x + top * s->width + left;
        {plane} *to = sums + row * s->out_width + first;
        {inner}
    }}
}}
""",
    )
