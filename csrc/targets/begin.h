/* Opens a target: system headers first, outside the region; then, where the target names CPU_FEATURES, the compiler's
 * region for them, so that the build needs no flags per file. */
#include <stddef.h>
#include <stdint.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif
#include "../fastbatch.h"

#if defined(CPU_FEATURES)
#define PRAGMA_OF(...) _Pragma(#__VA_ARGS__)
#define PRAGMA(...) PRAGMA_OF(__VA_ARGS__)
#if defined(__clang__)
PRAGMA(clang attribute push(__attribute__((target(CPU_FEATURES))), apply_to = function))
#else
#pragma GCC push_options
PRAGMA(GCC target(CPU_FEATURES))
#endif
#endif
