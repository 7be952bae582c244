/* What the rows of *.def need beside math.h: helpers for formulas with a shared part. */
INLINE vec sign_(vec e)
{
    const vec zero = {0};
    return select_((e < zero) | (e > zero), copysign_(set(1), e), e); /* 0 and NaN as they are */
}

INLINE vec huber_value(vec e, vec delta)
{
    vec size = abs_(e), half = set((real)0.5);
    return select_(size <= delta, half * e * e, delta * (size - half * delta));
}

INLINE vec gelu_tanh_argument(vec z)
{
    const vec scale = set((real)1.5957691216057308), cubic = set((real)0.044715); /* 2 sqrt(2 / pi) */
    return scale * fma_(cubic * z * z, z, z);
}

INLINE vec gelu_tanh_slope(vec z)
{
    z = min_(max_(z, set((real)-1e4)), set((real)1e4)); /* z^2 overflows later, beside a factor that is 0 */
    const vec scale = set((real)1.5957691216057308), cubic = set((real)(3 * 0.044715)), one = set(1);
    vec s = sigmoid_(gelu_tanh_argument(z));
    return s + z * s * (one - s) * scale * fma_(cubic * z, z, one);
}

INLINE vec silu_slope(vec z)
{
    const vec one = set(1);
    vec s = sigmoid_(z);
    return s * fma_(z, one - s, one);
}
