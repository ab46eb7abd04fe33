"""The functions of C that exported models share: reading codes, sums of products, pools, rounding.

Each is text, and is written into a file once if the file needs it. All is C99 without a library. Nothing is shared
between files, because each model is self-contained.
"""

from __future__ import annotations

from dataclasses import dataclass

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
        if self.bits == 32:
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


BITS = """
/* A stream of codes: where it goes on, and the bits or digits that are already read. */
typedef struct { const uint8_t *at; uint32_t buffer; uint32_t held; } qd_stream;
"""
SHIFT_CHECK = """
/* A shift to the right must keep the sign, as compilers do. */
typedef char qd_shift_keeps_the_sign[((-1) >> 1) == -1 ? 1 : -1];
"""
WINDOW = """
/* How a kernel slides over one channel; before: the padding above and to the left. */
typedef struct { int32_t height, width, out_height, out_width, stride[2], before[2], dilation[2]; } qd_window;
"""
MULTIPLY = """
/* A product that is rounded before anything is added to it. */
static float qd_mul(float a, float b) { volatile float product = a * b; return product; }
"""
ROUND = """
/* x / step, rounded to the nearest whole number, halves to the even one, between two codes. */
static int32_t qd_round(float x, float step, int32_t low, int32_t high)
{
    volatile float number = x / step;
    if (!(number > (float)low)) { return low; }
    if (number >= (float)high) { return high; }
    number = number + 12582912.0f;  /* 1.5 * 2^23: no bits are left for a fraction */
    number = number - 12582912.0f;
    return (int32_t)number;
}
"""
AVERAGE = """
/* The mean of the pixels that lie under pixel (i, j) of an image of {h} x {w} instead of {H} x {W}, halves up. */
static uint8_t qd_average(const uint8_t *image, uint32_t i, uint32_t j)
{{
    uint{bits}_t sum = 0U;
    for (uint32_t y = i * {H}U / {h}U; y * {h}U < (i + 1U) * {H}U; y++) {{
        const uint32_t top = i * {H}U > y * {h}U ? i * {H}U : y * {h}U;
        const uint32_t bottom = (i + 1U) * {H}U < (y + 1U) * {h}U ? (i + 1U) * {H}U : (y + 1U) * {h}U;
        for (uint32_t x = j * {W}U / {w}U; x * {w}U < (j + 1U) * {W}U; x++) {{
            const uint32_t left = j * {W}U > x * {w}U ? j * {W}U : x * {w}U;
            const uint32_t right = (j + 1U) * {W}U < (x + 1U) * {w}U ? (j + 1U) * {W}U : (x + 1U) * {w}U;
            sum += (uint{bits}_t)(bottom - top) * (right - left) * image[y * {W}U + x];
        }}
    }}
    return (uint8_t)({quotient});
}}
"""


def divide(number: str, largest: int, by: int) -> str:
    """The expression of a whole number divided by a constant, rounded down: a product and a shift if that is exact.

    A core without a division calls a function of some hundred instructions for it.

    Args:
        number: its expression, uint32_t.
        largest: that it can be.
        by: the constant.
    """
    halvings = (by & -by).bit_length() - 1
    number, largest, by = f"(({number}) >> {halvings})", largest >> halvings, by >> halvings
    for shift in range(32):
        factor = -(-(1 << shift) // by)
        # Granlund and Montgomery 1994, theorem 4.2: exact if what the factor is too large stays below a unit.
        if (factor * by - (1 << shift)) * largest < 1 << shift and factor * largest < 1 << 32:
            return f"({number} * {factor}U) >> {shift}" if shift else number
    return f"{number} / {by}U"


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
    if scheme.bits == 32:
        return (
            name,
            f"""
static float {name}(const float *w, const {x} *x, uint32_t n)
{{
    float sum = 0.0f;
    for (uint32_t i = 0U; i < n; i++) {{ sum += w[i] * {"x[i]" if x == "float" else "(float)x[i]"}; }}
    return sum;
}}
""",
        )
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


# tanh and erf of float32, for activations that are computed in floats. The coefficients are fitted to the functions
# in double precision. Their relative errors are 2e-9, 3e-11, 4e-11 and 4e-12, far less than a bit of float32.
POLYNOMIAL = """
static float qd_polynomial(const float *factors, uint32_t n, float x)
{
    float sum = factors[0];
    for (uint32_t k = 1U; k < n; k++) { sum = sum * x + factors[k]; }
    return sum;
}
"""
EXP = """
static float qd_exp(float x)  /* x <= 0 */
{
    static const float factors[7] = {
        0.00138368315f, 0.00837482403f, 0.0416682263f, 0.166664201f, 0.499999921f, 1.0f, 1.0f
    };
    if (x < -87.0f) { return 0.0f; }
    const int32_t halvings = (int32_t)(0.5f - x * 1.44269504f);
    /* ln 2 in two parts, so that what is left is exact */
    const float rest = (x + (float)halvings * 0.693359375f) - (float)halvings * 2.12194440e-4f;
    float power = qd_polynomial(factors, 7U, rest);
    for (int32_t n = 0; n < halvings; n++) { power *= 0.5f; }
    return power;
}
"""
TANH = """
static float qd_tanh(float x)
{
    static const float factors[6] = {
        0.00239581984f, -0.00841395524f, 0.021782825f, -0.0539596501f, 0.133332937f, -0.333333327f
    };
    const float size = x < 0.0f ? -x : x;
    if (size < 0.55f) { return x + x * x * x * qd_polynomial(factors, 6U, x * x); }
    const float small = qd_exp(-2.0f * size), found = (1.0f - small) / (1.0f + small);
    return x < 0.0f ? -found : found;
}
"""
GELU = """
static float qd_gelu(float x)
{
    static const float inner[8] = {
        -9.64151481e-06f, 0.000112569474f, -0.000848282878f, 0.00522094543f, -0.0268654f,
        0.11283782f, -0.376126384f, 1.12837917f
    };
    static const float outer[10] = {
        -0.0860793221f, 0.400297675f, -0.700836446f, 0.500417284f, -0.169988245f, 0.26192694f,
        0.227440078f, 0.284929846f, 0.281853014f, 9.12245777e-06f
    };
    const float u = (x < 0.0f ? -x : x) * 0.707106781f;
    if (u < 1.0f) { return 0.5f * x * (1.0f + (x < 0.0f ? -u : u) * qd_polynomial(inner, 8U, u * u)); }
    const float tail = qd_exp(-u * u) * qd_polynomial(outer, 10U, 1.0f / (1.0f + 0.5f * (u < 4.1f ? u : 4.1f)));
    return 0.5f * x * (x < 0.0f ? tail : 2.0f - tail);
}
"""
# name of an activation -> what it needs, in this order: the name and the text of each function
FLOAT_ACTIVATIONS = {
    "tanh": (("qd_polynomial", POLYNOMIAL), ("qd_exp", EXP), ("qd_tanh", TANH)),
    "gelu": (("qd_polynomial", POLYNOMIAL), ("qd_exp", EXP), ("qd_gelu", GELU)),
}
