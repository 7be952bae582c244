/* Elementary functions on `vec`. Included after vec.h, once per (target, dtype); everything is static.
 *
 * Everything here is branch-free and meets its bound both with fused multiply-add and without it, so no step may rely
 * on how a product is rounded: where exactness matters, the product itself is exact. Polynomials are minimax fits
 * (Lawson-weighted least squares, rounded one coefficient at a time, the rest refitted) in the error measure of the
 * finished function. Accuracy: `make ulp`, docs/accuracy.md, which has the arguments where the largest errors occur.
 * Subnormal results may come out as 0 and subnormal arguments may be read as 0.
 */

/* c[0] + c[1] x + ... by Horner: callers have independent vectors in flight, so operation count beats chain length. */
#define POLY(x, ...) horner_(x, (const real[]){__VA_ARGS__}, sizeof((const real[]){__VA_ARGS__}) / sizeof(real))
INLINE vec horner_(vec x, const real *c, int n)
{
    vec y = set(c[n - 1]);
#pragma GCC unroll 16
    for (int i = n - 2; i >= 0; i--) y = fma_(y, x, set(c[i]));
    return y;
}

#if REAL_IS_FLOAT
#include "math_f32.h"
#else
#include "math_f64.h"
#endif
