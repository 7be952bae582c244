/* Floating-point mode of the kernels: subnormals count as zero, in the caller and the helpers alike, so that bits do not
 * depend on who computed them and a decaying Adam moment does not slow a step down a hundredfold. */
#ifndef FPMODE_H
#define FPMODE_H

#include <stdint.h>

#if defined(__x86_64__)
#include <immintrin.h>
typedef unsigned int fp_mode;
static inline fp_mode fp_enter(void)
{
    fp_mode before = _mm_getcsr();
    _mm_setcsr(0x1F80u | 0x8040u); /* round to nearest, exceptions masked; flush to zero, denormals are zero */
    return before;
}
static inline void fp_leave(fp_mode before) { _mm_setcsr(before); }
#elif defined(__aarch64__)
typedef uint64_t fp_mode;
static inline fp_mode fp_enter(void)
{
    fp_mode before;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" ::"r"((fp_mode)1 << 24)); /* FZ */
    return before;
}
static inline void fp_leave(fp_mode before) { __asm__ volatile("msr fpcr, %0" ::"r"(before)); }
#else
typedef int fp_mode;
static inline fp_mode fp_enter(void) { return 0; }
static inline void fp_leave(fp_mode before) { (void)before; }
#endif

#endif
