/* The vector vocabulary: about twenty words over GNU vector types. The width is data.
 *
 * A target sets VEC_BYTES and a dtype sets `real`, `integer` and REAL_IS_FLOAT before this file is included;
 * the file is included once per (target, dtype) and everything in it is static. Plain operators (+ - * /,
 * comparison, & | ^) work on `vec` and `ivec` as they stand and are not wrapped.
 *
 * Tails have one policy: load_n / store_n touch exactly n elements of memory and nothing else. Kernels contain
 * no scalar remainder loops, so an element's rounding never depends on where in a row it stands.
 */
#define LANES ((int)(VEC_BYTES / sizeof(real)))

typedef real vec __attribute__((vector_size(VEC_BYTES)));
typedef integer ivec __attribute__((vector_size(VEC_BYTES)));
/* The same vectors at any address: `real`'s own alignment, and exempt from strict aliasing. */
typedef real vec_any __attribute__((vector_size(VEC_BYTES), aligned(sizeof(real)), may_alias));

/* 64-bit lanes without a sign. */
typedef uint64_t wide __attribute__((vector_size(VEC_BYTES)));

#define INLINE static inline __attribute__((always_inline, unused))

INLINE vec load(const real *p) { return *(const vec_any *)p; }
INLINE void store(real *p, vec v) { *(vec_any *)p = v; }
INLINE vec set(real x) { return x - (vec){0}; } /* x - 0 keeps the sign of zero; 0 + x does not */
INLINE ivec iset(integer x) { return x - (ivec){0}; }

INLINE vec as_real(ivec v) { return (vec)v; }
INLINE ivec as_int(vec v) { return (ivec)v; }
INLINE vec to_real(ivec v) { return __builtin_convertvector(v, vec); }

/* mask lanes are all ones or all zeros, as comparisons give them */
INLINE vec select_(ivec mask, vec a, vec b) { return as_real((as_int(a) & mask) | (as_int(b) & ~mask)); }
INLINE ivec iselect_(ivec mask, ivec a, ivec b) { return (a & mask) | (b & ~mask); }

#if REAL_IS_FLOAT
#define SIGN_BIT INT32_MIN
#else
#define SIGN_BIT INT64_MIN
#endif
INLINE vec abs_(vec v) { return as_real(as_int(v) & ~iset(SIGN_BIT)); }
INLINE vec copysign_(vec magnitude, vec sign)
{
    return as_real((as_int(magnitude) & ~iset(SIGN_BIT)) | (as_int(sign) & iset(SIGN_BIT)));
}

/* Words that want an instruction of their own.
 * max_, min_: NaN in the first argument comes through; the second must not be one, for there the targets differ.
 * load_n, store_n: the first n lanes come from memory, zero in the others; 0 <= n <= LANES.
 * fma_: a b + c, rounded once where the target can. Nothing else is contracted (-ffp-contract=off): which of two products
 * is would be the compiler's choice at every place a rule is inlined, and the bits would follow it.
 * root_, over_: square root and quotient within 2 ulp where that is quicker than sqrt_ and the operator /, infinities
 * and zeros as theirs; b of over_ is finite and normal, or infinite. */
#if defined(__x86_64__) && REAL_IS_FLOAT && VEC_BYTES == 64
#define HAS_FMA
#define BELOW(n) ((__mmask16)((1u << (n)) - 1))
INLINE vec load_n(const real *p, int n)
{
    return __builtin_constant_p(n) && n == LANES ? load(p) : (vec)_mm512_maskz_loadu_ps(BELOW(n), p);
}
INLINE void store_n(real *p, vec v, int n) { _mm512_mask_storeu_ps(p, BELOW(n), (__m512)v); }
INLINE vec sqrt_(vec v) { return (vec)_mm512_sqrt_ps((__m512)v); }
INLINE vec fma_(vec a, vec b, vec c) { return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
INLINE vec max_(vec a, vec b) { return (vec)_mm512_max_ps((__m512)b, (__m512)a); }
INLINE vec min_(vec a, vec b) { return (vec)_mm512_min_ps((__m512)b, (__m512)a); }
INLINE ivec imax_(ivec a, ivec b) { return (ivec)_mm512_max_epi32((__m512i)a, (__m512i)b); }
/* sqrtps and divps take 18 and 16 cycles a vector here, fma half a cycle: an estimate of 14 bits and one Newton step.
 * Adam in L1: 0.27 ns a parameter against 0.53. */
#define HAS_ESTIMATES
INLINE vec root_(vec v)
{
    const vec half = set(0.5f);
    vec inverse = (vec)_mm512_rsqrt14_ps((__m512)v), root = v * inverse;
    root = fma_(root, fma_(half * inverse, -root, half), root);
    const __mmask16 special = _mm512_fpclass_ps_mask((__m512)v, 0x9F); /* NaN, +-0, +-inf, denormal */
    return (vec)_mm512_mask_mov_ps((__m512)root, special, (__m512)v);
}
INLINE vec over_(vec a, vec b)
{
    b = min_(b, set(3.40282347e38f)); /* infinity times its inverse would be NaN */
    vec inverse = (vec)_mm512_rcp14_ps((__m512)b);
    return a * fma_(inverse, fma_(inverse, -b, set(1)), inverse);
}
#elif defined(__x86_64__) && VEC_BYTES == 64
#define HAS_FMA
#define BELOW(n) ((__mmask8)((1u << (n)) - 1))
INLINE vec load_n(const real *p, int n)
{
    return __builtin_constant_p(n) && n == LANES ? load(p) : (vec)_mm512_maskz_loadu_pd(BELOW(n), p);
}
INLINE void store_n(real *p, vec v, int n) { _mm512_mask_storeu_pd(p, BELOW(n), (__m512d)v); }
INLINE vec sqrt_(vec v) { return (vec)_mm512_sqrt_pd((__m512d)v); }
INLINE vec fma_(vec a, vec b, vec c) { return (vec)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c); }
INLINE vec max_(vec a, vec b) { return (vec)_mm512_max_pd((__m512d)b, (__m512d)a); }
INLINE vec min_(vec a, vec b) { return (vec)_mm512_min_pd((__m512d)b, (__m512d)a); }
INLINE ivec imax_(ivec a, ivec b) { return (ivec)_mm512_max_epi64((__m512i)a, (__m512i)b); }
#elif defined(__x86_64__) && REAL_IS_FLOAT && VEC_BYTES == 32
#define HAS_FMA
INLINE __m256i below_(int n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
INLINE vec load_n(const real *p, int n) { return n >= LANES ? load(p) : (vec)_mm256_maskload_ps(p, below_(n)); }
INLINE void store_n(real *p, vec v, int n)
{
    if (n >= LANES) store(p, v);
    else _mm256_maskstore_ps(p, below_(n), (__m256)v);
}
INLINE vec sqrt_(vec v) { return (vec)_mm256_sqrt_ps((__m256)v); }
INLINE vec fma_(vec a, vec b, vec c) { return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
INLINE vec max_(vec a, vec b) { return (vec)_mm256_max_ps((__m256)b, (__m256)a); }
INLINE vec min_(vec a, vec b) { return (vec)_mm256_min_ps((__m256)b, (__m256)a); }
INLINE ivec imax_(ivec a, ivec b) { return (ivec)_mm256_max_epi32((__m256i)a, (__m256i)b); }
#elif defined(__x86_64__) && VEC_BYTES == 32
#define HAS_FMA
INLINE __m256i below_(int n) { return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3)); }
INLINE vec load_n(const real *p, int n) { return n >= LANES ? load(p) : (vec)_mm256_maskload_pd(p, below_(n)); }
INLINE void store_n(real *p, vec v, int n)
{
    if (n >= LANES) store(p, v);
    else _mm256_maskstore_pd(p, below_(n), (__m256d)v);
}
INLINE vec sqrt_(vec v) { return (vec)_mm256_sqrt_pd((__m256d)v); }
INLINE vec fma_(vec a, vec b, vec c) { return (vec)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c); }
INLINE vec max_(vec a, vec b) { return (vec)_mm256_max_pd((__m256d)b, (__m256d)a); }
INLINE vec min_(vec a, vec b) { return (vec)_mm256_min_pd((__m256d)b, (__m256d)a); }
#define NO_IMAX
#else
#define NO_IMAX
INLINE vec load_n(const real *p, int n)
{
    if (n >= LANES) return load(p);
    vec v = {0};
#pragma GCC unroll 16
    for (int i = 0; i < LANES - 1; i++) /* constant lanes: a lane chosen at run time goes through memory */
        if (i < n) v[i] = p[i];
    return v;
}
INLINE void store_n(real *p, vec v, int n)
{
    if (n >= LANES) { store(p, v); return; }
#pragma GCC unroll 16
    for (int i = 0; i < LANES - 1; i++)
        if (i < n) p[i] = v[i];
}
#if defined(__x86_64__) && REAL_IS_FLOAT && VEC_BYTES == 16
INLINE vec sqrt_(vec v) { return (vec)_mm_sqrt_ps((__m128)v); }
INLINE vec max_(vec a, vec b) { return (vec)_mm_max_ps((__m128)b, (__m128)a); }
INLINE vec min_(vec a, vec b) { return (vec)_mm_min_ps((__m128)b, (__m128)a); }
#elif defined(__x86_64__) && VEC_BYTES == 16
INLINE vec sqrt_(vec v) { return (vec)_mm_sqrt_pd((__m128d)v); }
INLINE vec max_(vec a, vec b) { return (vec)_mm_max_pd((__m128d)b, (__m128d)a); }
INLINE vec min_(vec a, vec b) { return (vec)_mm_min_pd((__m128d)b, (__m128d)a); }
#else
#if defined(__aarch64__) && VEC_BYTES == 16 && REAL_IS_FLOAT
#define HAS_FMA
INLINE vec fma_(vec a, vec b, vec c) { return (vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
INLINE vec max_(vec a, vec b) { return (vec)vmaxq_f32((float32x4_t)a, (float32x4_t)b); }
INLINE vec min_(vec a, vec b) { return (vec)vminq_f32((float32x4_t)a, (float32x4_t)b); }
#elif defined(__aarch64__) && VEC_BYTES == 16
#define HAS_FMA
INLINE vec fma_(vec a, vec b, vec c) { return (vec)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b); }
INLINE vec max_(vec a, vec b) { return (vec)vmaxq_f64((float64x2_t)a, (float64x2_t)b); }
INLINE vec min_(vec a, vec b) { return (vec)vminq_f64((float64x2_t)a, (float64x2_t)b); }
#else
INLINE vec max_(vec a, vec b) { return select_(a < b, b, a); }
INLINE vec min_(vec a, vec b) { return select_(a > b, b, a); }
#endif
INLINE vec sqrt_(vec v)
{
    for (int i = 0; i < LANES; i++) v[i] = REAL_IS_FLOAT ? __builtin_sqrtf(v[i]) : __builtin_sqrt(v[i]);
    return v;
}
#endif
#endif

#if defined(NO_IMAX)
INLINE ivec imax_(ivec a, ivec b) { return iselect_(a > b, a, b); }
#endif
#if !defined(HAS_FMA)
INLINE vec fma_(vec a, vec b, vec c) { return a * b + c; }
#endif
#if !defined(HAS_ESTIMATES)
INLINE vec root_(vec v) { return sqrt_(v); }
INLINE vec over_(vec a, vec b) { return a / b; }
#endif

/* Element j of row i <-> element i of row j, for LANES rows: stage s swaps blocks of s lanes between rows s apart. */
#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (ivec){__VA_ARGS__})
#endif
#define TRANSPOSE_STAGE(s, low, high)                                                                                  \
    for (int i = 0; i < LANES; i++)                                                                                    \
        if (!(i & s)) {                                                                                                \
            vec above = row[i], below = row[i + s];                                                                    \
            row[i] = SHUFFLE(above, below, low);                                                                       \
            row[i + s] = SHUFFLE(above, below, high);                                                                  \
        }
#define LIST(...) __VA_ARGS__
INLINE void transpose_(vec row[])
{
#if VEC_BYTES / (REAL_IS_FLOAT ? 4 : 8) == 16
    TRANSPOSE_STAGE(1, LIST(0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30),
                    LIST(1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31))
    TRANSPOSE_STAGE(2, LIST(0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29),
                    LIST(2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31))
    TRANSPOSE_STAGE(4, LIST(0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27),
                    LIST(4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31))
    TRANSPOSE_STAGE(8, LIST(0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23),
                    LIST(8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31))
#elif VEC_BYTES / (REAL_IS_FLOAT ? 4 : 8) == 8
    TRANSPOSE_STAGE(1, LIST(0, 8, 2, 10, 4, 12, 6, 14), LIST(1, 9, 3, 11, 5, 13, 7, 15))
    TRANSPOSE_STAGE(2, LIST(0, 1, 8, 9, 4, 5, 12, 13), LIST(2, 3, 10, 11, 6, 7, 14, 15))
    TRANSPOSE_STAGE(4, LIST(0, 1, 2, 3, 8, 9, 10, 11), LIST(4, 5, 6, 7, 12, 13, 14, 15))
#elif VEC_BYTES / (REAL_IS_FLOAT ? 4 : 8) == 4
    TRANSPOSE_STAGE(1, LIST(0, 4, 2, 6), LIST(1, 5, 3, 7))
    TRANSPOSE_STAGE(2, LIST(0, 1, 4, 5), LIST(2, 3, 6, 7))
#elif VEC_BYTES / (REAL_IS_FLOAT ? 4 : 8) == 2
    TRANSPOSE_STAGE(1, LIST(0, 2), LIST(1, 3))
#endif
}

INLINE wide wide_set(uint64_t x) { return x - (wide){0}; }

/* Bytes as integers, one for each lane. gcc 12 makes a conversion of vectors of bytes lane by lane. */
INLINE ivec from_bytes(const void *p)
{
#if defined(__x86_64__) && VEC_BYTES == 64 && REAL_IS_FLOAT
    return (ivec)_mm512_cvtepu8_epi32(_mm_loadu_si128(p));
#elif defined(__x86_64__) && VEC_BYTES == 64
    return (ivec)_mm512_cvtepu8_epi64(_mm_loadl_epi64(p));
#elif defined(__x86_64__) && VEC_BYTES == 32 && REAL_IS_FLOAT
    return (ivec)_mm256_cvtepu8_epi32(_mm_loadl_epi64(p));
#else
    typedef uint8_t bytes __attribute__((vector_size(VEC_BYTES / sizeof(real)), aligned(1), may_alias));
    return __builtin_convertvector(*(const bytes *)p, ivec);
#endif
}

/* a[0] b[0] a[1] b[1] ... to p. In whole vectors: what is loaded next must not wait for stores of single words. */
INLINE void store_pairs(uint64_t *p, wide a, wide b)
{
#if defined(__clang__)
#define WIDE_SHUFFLE(...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define WIDE_SHUFFLE(...) __builtin_shuffle(a, b, (wide){__VA_ARGS__})
#endif
    typedef uint64_t wide_any __attribute__((vector_size(VEC_BYTES), aligned(8), may_alias));
#if VEC_BYTES == 64
    ((wide_any *)p)[0] = WIDE_SHUFFLE(0, 8, 1, 9, 2, 10, 3, 11);
    ((wide_any *)p)[1] = WIDE_SHUFFLE(4, 12, 5, 13, 6, 14, 7, 15);
#elif VEC_BYTES == 32
    ((wide_any *)p)[0] = WIDE_SHUFFLE(0, 4, 1, 5);
    ((wide_any *)p)[1] = WIDE_SHUFFLE(2, 6, 3, 7);
#else
    ((wide_any *)p)[0] = WIDE_SHUFFLE(0, 2);
    ((wide_any *)p)[1] = WIDE_SHUFFLE(1, 3);
#endif
#undef WIDE_SHUFFLE
}

/* Product of the low halves; what is above them is ignored. */
INLINE wide low_product(wide a, wide b)
{
#if defined(__x86_64__) && VEC_BYTES == 64
    return (wide)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif defined(__x86_64__) && VEC_BYTES == 32
    return (wide)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__x86_64__)
    return (wide)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
    const wide low = wide_set(0xFFFFFFFF);
    return (a & low) * (b & low);
#endif
}

/* Sum over lanes: halves added pairwise, so that the order is fixed for a given width. */
INLINE real sum_(vec v)
{
    real lane[LANES];
    store(lane, v);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) lane[i] += lane[i + half];
    return lane[0];
}
