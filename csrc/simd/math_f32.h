/* Elementary functions of float32. Where exactness matters, a product is exact in 24 bits. The "max ulp" figures are
 * measured over every float, baseline SSE2 / AVX2 and AVX-512. Beyond subnormal numbers FTZ and DAZ change nothing (but see
 * expm1_). */

/* ln2 = LN2_HI + LN2_LO (Cody-Waite): 16 bits in LN2_HI leave room for an exact product with any exponent. */
#define LN2_HI 0.693145751953125f
#define LN2_LO 1.42860677e-06f
#define LOG2E 1.44269504f

/* Adding ROUND_BIASED(b) rounds to an integer n and leaves n + b in the low bits, ready to become an exponent field:
 * shifted left by 23, b = 127 gives 2^n for n in [-126, 127], 0 for n = -127 and inf for n = 128. */
#define ROUND_BIASED(bias) (12582912.f + (bias))
INLINE vec exponent_(vec rounded) { return as_real(as_int(rounded) << 23); }

/* x - n ln2, good to about 2^-26 absolutely: n LN2_HI is exact and so is its subtraction. */
INLINE vec minus_n_ln2_(vec x, vec n) { return fma_(n, set(-LN2_LO), fma_(n, set(-LN2_HI), x)); }

/* e^r - 1 for |r| <= ln2/2 = r + r^2 q(r), degree 6 in all; relative error of the fit 2^-26.1. */
INLINE vec expm1_reduced_(vec r)
{
    vec q = POLY(r, 0.49999997f, 0.16666546f, 0.041667443f, 0.008366253f, 0.0013869946f);
    return fma_(r * r, q, r);
}

/* e^x. Full range: +inf above ln(FLT_MAX), 0 below -87.3366. Max ulp 1.40 / 1.50.
 * n is rounded DOWN, r in [0, ln2], degree 6: then e^r is in [1, 2), the exponent field runs over exactly 0..255, and
 * overflow and underflow come out of the one multiplication. The offset is a hair off 1/2 so that x = 0 has n = 0 and
 * e^0 = 1 exactly, yet small enough that n = 127 still holds at ln(FLT_MAX). */
INLINE vec exp_(vec x)
{
    x = min_(max_(x, set(-88.f)), set(89.f));
    vec rounded = fma_(x, set(LOG2E), set(-0.499996f)) + set(ROUND_BIASED(127));
    vec r = minus_n_ln2_(x, rounded - set(ROUND_BIASED(127)));
    vec q = POLY(r, 0.50000226f, 0.1666321f, 0.041854367f, 0.007869288f, 0.0019120505f);
    return (fma_(r * r, q, r) + 1) * exponent_(rounded);
}

/* e^x - 1. Full range: -1 at the left, +inf above ln(FLT_MAX). Max ulp 1.66 / 1.53.
 * 2^n (p + 1) - 1 = 2 (2^(n-1) p + (2^(n-1) - 1/2)): the inner bracket is exact while it matters, and half the scale
 * keeps n = 128 finite. The price: FTZ flushes |x| < 2 FLT_MIN to 0, and -0 becomes +0. */
INLINE vec expm1_(vec x)
{
    x = min_(max_(x, set(-25.f)), set(89.f));
    vec rounded = fma_(x, set(LOG2E), set(ROUND_BIASED(126)));
    vec p = expm1_reduced_(minus_n_ln2_(x, rounded - set(ROUND_BIASED(126))));
    vec half_scale = exponent_(rounded);
    return fma_(half_scale, p, half_scale - 0.5f) * 2;
}

/* ln x. x >= FLT_MIN; below that -inf (so for 0 and subnormals), below 0 NaN, inf and NaN through. Max ulp 0.93 / 0.93.
 * x = 2^e (1 + f) with 1 + f in [sqrt(1/2), sqrt 2): ln(1 + f) = f + f^2 (-1/2 + f q(f)), degree 10, fit 2^-27.3. */
INLINE vec log_(vec x)
{
    const integer sqrt_half = 0x3f3504f3;
    ivec e = (as_int(x) - sqrt_half) >> 23;
    vec n = to_real(e), f = as_real(as_int(x) - (e << 23)) - 1;
    vec q = POLY(f, -0.5f, 0.3333333f, -0.2500082f, 0.20001242f, -0.16623409f, 0.14201581f, -0.13159613f, 0.127622f,
                 -0.076363996f);
    vec y = fma_(n, set(LN2_HI), fma_(f * f, q, n * LN2_LO) + f);
    y = select_(x < set(__FLT_MIN__), set(-__builtin_inff()), y);
    y = select_(x < set(__builtin_inff()), y, x); /* inf and NaN */
    return as_real(as_int(y) | (x < 0));         /* all ones is a NaN */
}

/* ln(1 + u) for u in [0, 1] only. Max ulp 1.54 / 1.18.
 * u + u^2 q(u), degree 10, fit 2^-27.5: [1, 2] is no wider a ratio than log_'s interval, so reduction gains nothing. */
INLINE vec log1p_unit_(vec u)
{
    vec q = POLY(u, -0.4999993f, 0.33330464f, -0.2495802f, 0.19692121f, -0.15344977f, 0.10661371f, -0.057460483f,
                 0.02008846f, -0.0032910742f);
    return fma_(u * u, q, u);
}

/* tanh x. Odd bit for bit, |result| <= 1, exactly +-1 from |x| = 9.010914 on. Max ulp 2.61 / 2.57.
 * e / (e + 2) with e = e^(2|x|) - 1 as in expm1_: near 0 e is accurate relatively, and further out the quotient forgets
 * the errors of e. (A rational x P/Q is an operation shorter and cannot stay below 4 ulp as it nears 1.) */
INLINE vec tanh_(vec x)
{
    vec a = min_(abs_(x) * 2, set(20.f));
    vec rounded = fma_(a, set(LOG2E), set(ROUND_BIASED(127)));
    vec p = expm1_reduced_(minus_n_ln2_(a, rounded - set(ROUND_BIASED(127))));
    vec scale = exponent_(rounded);
    vec e = fma_(scale, p, scale - 1);
    vec y = e / (e + 2);
    return as_real(as_int(y) | (as_int(x) & iset(SIGN_BIT)));
}

/* 1 / (1 + e^-x). Max ulp 2.49 / 2.49 where the result is normal; 0 below -88.376 (n = 128, an infinite e^-x).
 * Relative accuracy on both sides because 1 + e^-x never cancels. */
INLINE vec sigmoid_(vec x)
{
    x = min_(max_(x, set(-89.f)), set(88.f));
    vec rounded = fma_(x, set(-LOG2E), set(ROUND_BIASED(127)));
    vec n = rounded - set(ROUND_BIASED(127));
    vec p = expm1_reduced_(minus_n_ln2_(-x, n));
    return 1 / fma_(p + 1, exponent_(rounded), set(1)); /* the factored form: inf * p + inf may be NaN */
}

/* e^(-a^2/2) for 0 <= a <= 13.27, where it has become 0.
 * Rounding a^2 would cost up to 90 * 2^-24 relatively. The top 12 bits of a are h: h^2 is exact, and the small rest
 * (a - h)(a + h) joins the argument after reduction. */
#define GAUSS_END 13.27f
INLINE vec gauss_(vec a)
{
    vec h = as_real(as_int(a) & ~iset(0xfff));
    vec rounded = fma_(a * a, set(-0.5f * LOG2E), set(ROUND_BIASED(127)));
    vec r = minus_n_ln2_(h * h * -0.5f, rounded - set(ROUND_BIASED(127)));
    vec p = expm1_reduced_(fma_((a - h) * -0.5f, a + h, r));
    return (p + 1) * exponent_(rounded); /* not fma: scale * p alone could be subnormal, and flushed */
}

/* Phi(x), the standard normal distribution function. Max ulp 7.18 / 6.28, far out on the left;
 * 0 from x = -13.243 down.
 * Phi(-a) = e^(-a^2/2) R(a) with R = P/Q, degrees 4 and 5 in a, fit 2^-26.0 on [0, 13.3]; R is erfcx-like: smooth,
 * falling from 1/2, and all coefficients are positive, so the tail keeps its relative accuracy. */
INLINE vec normal_cdf_(vec x)
{
    vec a = min_(abs_(x), set(GAUSS_END));
    vec p = POLY(a, 0.5f, 0.43500173f, 0.18080068f, 0.039813798f, 0.0039947685f);
    vec q = POLY(a, 1.f, 1.6678883f, 1.1923801f, 0.4630439f, 0.09980602f, 0.010013251f);
    vec tail = gauss_(a) * p / q;
    return select_(x < 0, tail, 1 - tail);
}

/* e^(-x^2/2) / sqrt(2 pi). Max ulp 2.24 / 2.19 where the result is normal; 0 from |x| = 13.243 on. */
INLINE vec normal_pdf_(vec x) { return gauss_(min_(abs_(x), set(GAUSS_END))) * 0.398942280f; }
