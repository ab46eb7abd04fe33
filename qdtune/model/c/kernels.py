"""Texts of C that exported models share: types, rounding, averaged images, and activations in floats.

Each is written into a file once if the file needs it. All is C99 without a library. Nothing is shared between files,
because each model is self-contained. `products` has the functions that sum products.
"""

from __future__ import annotations

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
