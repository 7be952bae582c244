/* Elementary functions of float64: the methods of math_f32.h with longer polynomials. Where exactness matters, a product is
 * exact in 53 bits. The "max ulp" figures are measured over random and critical arguments, baseline SSE2 / AVX2 and
 * AVX-512. */

/* ln2 = LN2_HI + LN2_LO (Cody-Waite): 33 bits in LN2_HI leave room for an exact product with any exponent. */
#define LN2_HI 0.6931471804855391
#define LN2_LO 7.440617110012397e-11
#define LOG2E 1.4426950408889634

/* Adding ROUND_BIASED(b) rounds to an integer n and leaves n + b in the low bits, ready to become an exponent field:
 * shifted left by 52, b = 1023 gives 2^n for n in [-1022, 1023], 0 for n = -1023 and inf for n = 1024. */
#define ROUND_BIASED(bias) (6755399441055744. + (bias))
INLINE vec exponent_(vec rounded) { return as_real(as_int(rounded) << 52); }

/* x - n ln2, good to about 2^-55 absolutely: n LN2_HI is exact and so is its subtraction. */
INLINE vec minus_n_ln2_(vec x, vec n) { return fma_(n, set(-LN2_LO), fma_(n, set(-LN2_HI), x)); }

/* e^r - 1 for |r| <= ln2/2 = r + r^2 q(r), degree 12 in all; relative error of the fit 2^-61.7. */
INLINE vec expm1_reduced_(vec r)
{
    vec q = POLY(r, 0.5, 0.16666666666666677, 0.04166666666666663, 0.008333333333321494, 0.001388888888891218,
                 0.00019841269886371445, 2.4801587260177477e-05, 2.7557244024459933e-06, 2.7557334357261193e-07,
                 2.5109086797180715e-08, 2.0894937771514525e-09);
    return fma_(r * r, q, r);
}

/* e^x. Full range: +inf above ln(DBL_MAX), 0 below -708.396. Max ulp 1.58 / 1.70.
 * n is rounded down, as in float32: x = 0 has n = 0 and e^0 = 1 exactly. ln(DBL_MAX) is nearer to 1024 ln2 than any offset
 * can tell, so n is held at 1023, from where the multiplication overflows by itself. */
INLINE vec exp_(vec x)
{
    x = min_(max_(x, set(-709)), set(710));
    vec rounded = fma_(x, set(LOG2E), set(-0.499999999999)) + set(ROUND_BIASED(1023));
    rounded = min_(rounded, set(ROUND_BIASED(1023) + 1023));
    vec r = minus_n_ln2_(x, rounded - set(ROUND_BIASED(1023)));
    vec q = POLY(r, 0.4999999999999741, 0.16666666666789853, 0.04166666664389715, 0.008333333556326341,
                 0.0013888875787221558, 0.00019841759827766474, 2.478964822166347e-05, 2.7745716462797224e-06,
                 2.571209536521826e-07, 3.5064142365875446e-08);
    return (fma_(r * r, q, r) + 1) * exponent_(rounded);
}

/* e^x - 1. Full range: -1 at the left, +inf above ln(DBL_MAX). Max ulp 1.94 / 1.83.
 * 2^n (p + 1) - 1 = 2 (2^(n-1) p + (2^(n-1) - 1/2)), as in float32; -0 becomes +0. */
INLINE vec expm1_(vec x)
{
    x = min_(max_(x, set(-50)), set(710));
    vec rounded = fma_(x, set(LOG2E), set(ROUND_BIASED(1022)));
    vec p = expm1_reduced_(minus_n_ln2_(x, rounded - set(ROUND_BIASED(1022))));
    vec half_scale = exponent_(rounded);
    return fma_(half_scale, p, half_scale - 0.5) * 2;
}

/* s and t with f - ln(1 + f) = s t for f in [sqrt(1/2) - 1, 1]: with s = f / (2 + f) and z = s^2, ln(1 + f) = 2 artanh s =
 * 2s + s z q(z) and 2s = f - s f. What is subtracted from f is small beside it; relative error of the fit 2^-59. */
typedef struct log1p_parts { vec s, t; } log1p_parts;
INLINE log1p_parts minus_log1p_(vec f)
{
    vec s = f / (f + 2), z = s * s;
    vec q = POLY(z, 0.666666666666663, 0.4000000000015895, 0.28571428547691263, 0.22222223978068675,
                 0.18181743671795025, 0.1538656468256538, 0.13300917538273016, 0.12106488965746953,
                 0.08338486200245865, 0.170213486732214);
    return (log1p_parts){s, fma_(-z, q, f)};
}

/* ln x. x >= DBL_MIN; below that -inf (so for 0 and subnormals), below 0 NaN, inf and NaN through. Max ulp 0.91 / 0.91.
 * x = 2^e (1 + f) with 1 + f in [sqrt(1/2), sqrt 2). */
INLINE vec log_(vec x)
{
    /* e + 1023: AVX2 shifts and converts 64-bit lanes without a sign only, the latter by way of 2^52 */
    const integer from = INT64_C(0x3fe6a09e667f3bcd) - (INT64_C(1023) << 52);
    ivec biased = (ivec)((wide)(as_int(x) - from) >> 52);
    vec n = as_real(biased | as_int(set(0x1p52))) - set(0x1p52 + 1023);
    vec f = as_real(as_int(x) - ((biased - 1023) << 52)) - 1;
    log1p_parts m = minus_log1p_(f);
    vec y = fma_(n, set(LN2_HI), f - fma_(m.s, m.t, n * -LN2_LO));
    y = select_(x < set(__DBL_MIN__), set(-__builtin_inf()), y);
    y = select_(x < set(__builtin_inf()), y, x); /* inf and NaN */
    return as_real(as_int(y) | (x < 0));        /* all ones is a NaN */
}

/* ln(1 + u) for u in [0, 1] only. Max ulp 1.30 / 1.06. */
INLINE vec log1p_unit_(vec u)
{
    log1p_parts m = minus_log1p_(u);
    return fma_(-m.s, m.t, u);
}

/* tanh x. Odd bit for bit, |result| <= 1, exactly +-1 from |x| = 19.062 on. Max ulp 2.53 / 2.58. */
INLINE vec tanh_(vec x)
{
    vec a = min_(abs_(x) * 2, set(40));
    vec rounded = fma_(a, set(LOG2E), set(ROUND_BIASED(1023)));
    vec p = expm1_reduced_(minus_n_ln2_(a, rounded - set(ROUND_BIASED(1023))));
    vec scale = exponent_(rounded);
    vec e = fma_(scale, p, scale - 1);
    vec y = e / (e + 2);
    return as_real(as_int(y) | (as_int(x) & iset(SIGN_BIT)));
}

/* 1 / (1 + e^-x). Max ulp 2.42 / 2.42 where the result is normal; 0 below -709.436 (n = 1024, an infinite e^-x). */
INLINE vec sigmoid_(vec x)
{
    x = min_(max_(x, set(-710)), set(709));
    vec rounded = fma_(x, set(-LOG2E), set(ROUND_BIASED(1023)));
    vec n = rounded - set(ROUND_BIASED(1023));
    vec p = expm1_reduced_(minus_n_ln2_(-x, n));
    return 1 / fma_(p + 1, exponent_(rounded), set(1)); /* the factored form: inf * p + inf may be NaN */
}

/* e^(-a^2/2) for 0 <= a <= 37.66, where it has become 0. The top 26 bits of a are h: h^2 is exact, and the small rest
 * (a - h)(a + h) joins the argument after reduction. */
#define GAUSS_END 37.66
INLINE vec gauss_(vec a)
{
    vec h = as_real(as_int(a) & ~iset(0x7ffffff));
    vec rounded = fma_(a * a, set(-0.5 * LOG2E), set(ROUND_BIASED(1023)));
    vec r = minus_n_ln2_(h * h * -0.5, rounded - set(ROUND_BIASED(1023)));
    vec p = expm1_reduced_(fma_((a - h) * -0.5, a + h, r));
    return (p + 1) * exponent_(rounded); /* not fma: scale * p alone could be subnormal, and flushed */
}

/* Phi(x), the standard normal distribution function. Max ulp 11.56 / 8.85; 0 from x = -37.65 down.
 * Phi(-a) = e^(-a^2/2) P(a) / Q(a), degrees 10 and 11, fit 2^-60 on [0, 37.66], all coefficients positive as in float32. */
INLINE vec normal_cdf_(vec x)
{
    vec a = min_(abs_(x), set(GAUSS_END));
    vec p = POLY(a, 0.5, 0.8267533973533869, 0.677778606957797, 0.3559306818529582, 0.13135182253230257,
                 0.03543127340952244, 0.007065116675430906, 0.0010296009592558868, 0.0001053429856439172,
                 6.880967959901672e-06, 2.2057009791459653e-07);
    vec q = POLY(a, 1, 2.4513913555096396, 2.8114845289623376, 1.9953673048139753, 0.9760099179068521,
                 0.3464372232504751, 0.09135936286842015, 0.017972571144188626, 0.0025980749051296615,
                 0.0002646085935894947, 1.7248028845153745e-05, 5.528872439707059e-07);
    vec tail = gauss_(a) * (p / q);
    return select_(x < 0, tail, 1 - tail);
}

/* e^(-x^2/2) / sqrt(2 pi). Max ulp 2.26 / 2.19 where the result is normal; 0 from |x| = 37.65 on. */
INLINE vec normal_pdf_(vec x) { return gauss_(min_(abs_(x), set(GAUSS_END))) * 0.3989422804014327; }
