/* The only file that asks about the CPU. */
#define _GNU_SOURCE
#include "fastbatch.h"

#include <string.h>

#define TARGET(name, usable) extern const fb_kernels fb_##name##_f32, fb_##name##_f64;
#include "targets/targets.def"
#undef TARGET
#define BF16(name, missing) extern const fb_kernels fb_##name##_bf16;
#include "targets/bf16.def"
#undef BF16

const fb_target *fb_targets(void)
{
    static fb_target table[] = {
#define TARGET(name, usable) {#name, 0, &fb_##name##_f32, &fb_##name##_f64, NULL},
#include "targets/targets.def"
#undef TARGET
        {NULL, 0, NULL, NULL, NULL}};
    /* idempotent: threads that race here write the same values */
    fb_target *row = table;
#define TARGET(name, probe) (row++)->usable = (probe);
#include "targets/targets.def"
#undef TARGET
    return table;
}

#if defined(FB_HAS_BF16)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

static const char *avx512bf16_missing(void)
{
    unsigned a = 0, b, c, d;
    if (!__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512dq") ||
        !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("fma") ||
        !__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a >> 5 & 1))
        return "this CPU lacks avx512_bf16";
    return NULL;
}

enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 }; /* asm/prctl.h, Documentation/x86/xstate */

static const char *amx_missing(void)
{
    unsigned a, b, c, d = 0;
    if (avx512bf16_missing()) return avx512bf16_missing();
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 22 & 1) || !(d >> 24 & 1)) return "this CPU lacks amx_bf16";
    /* granted once for all threads of the process; fails where the kernel is older than 5.16 or a sandbox forbids it */
    if (syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA))
        return "the operating system does not permit AMX tiles (arch_prctl ARCH_REQ_XCOMP_PERM failed)";
    return NULL;
}
#endif

const fb_target *fb_bf16_targets(void)
{
    static fb_target table[] = {
#define BF16(name, missing) {#name, 0, &fb_##name##_bf16, NULL, NULL},
#include "targets/bf16.def"
#undef BF16
        {NULL, 0, NULL, NULL, NULL}};
    fb_target *row = table;
    (void)row;
#define BF16(name, missing) row->reason = (missing), row->usable = !row->reason, row++;
#include "targets/bf16.def"
#undef BF16
    return table;
}

const fb_target *fb_find_target(const char *name)
{
    for (const fb_target *t = fb_targets(); t->name; t++)
        if (strcmp(t->name, name) == 0) return t;
    for (const fb_target *t = fb_bf16_targets(); t->name; t++)
        if (strcmp(t->name, name) == 0) return t;
    return NULL;
}

const fb_kernels *fb_find_kernels(const char *target, const char *dtype)
{
    const fb_target *t = fb_find_target(target);
    return !t ? NULL : strcmp(dtype, "float64") == 0 ? t->f64 : t->f32;
}
