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

INLINE vec quantile_slope(vec e, vec below, vec above)
{
    const vec zero = {0};
    return select_(e < zero, -below, select_(e > zero, above, e)); /* 0 and NaN as they are */
}

/* y e^x for y >= 0: 0 where y is, also where e^x is infinite. */
INLINE vec times_exp_(vec y, vec x) { return select_(y > 0, y * exp_(x), (vec){0}); }

/* With p = sigmoid(z): u = -ln(1 - p) and v = -ln p, so that (1 - p)^gamma = e^(-gamma u). */
INLINE vec focal_value(vec z, vec y, vec positive, vec negative, vec gamma)
{
    const vec zero = {0}, one = set(1), tail = log1p_unit_(exp_(-abs_(z)));
    const vec u = max_(z, zero) + tail, v = max_(-z, zero) + tail;
    return positive * y * (exp_(-gamma * u) * v) + negative * (one - y) * (exp_(-gamma * v) * u);
}

INLINE vec focal_slope(vec z, vec y, vec positive, vec negative, vec gamma)
{
    const vec zero = {0}, one = set(1), tail = log1p_unit_(exp_(-abs_(z)));
    const vec u = max_(z, zero) + tail, v = max_(-z, zero) + tail, p = sigmoid_(z), q = sigmoid_(-z);
    return negative * (one - y) * (exp_(-gamma * v) * fma_(gamma * q, u, p)) -
           positive * y * (exp_(-gamma * u) * fma_(gamma * p, v, q));
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
    return fma_(z * s * (one - s) * scale, fma_(cubic * z, z, one), s);
}

INLINE vec silu_slope(vec z)
{
    const vec one = set(1);
    vec s = sigmoid_(z);
    return s * fma_(z, one - s, one);
}
