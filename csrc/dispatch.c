/* The only file that asks about the CPU. */
#include "fastbatch.h"

#include <string.h>

#define TARGET(name, usable) extern const fb_kernels fb_##name##_f32;
#include "targets/targets.def"
#undef TARGET

const fb_target *fb_targets(void)
{
    static fb_target table[] = {
#define TARGET(name, usable) {#name, 0, &fb_##name##_f32},
#include "targets/targets.def"
#undef TARGET
        {NULL, 0, NULL}};
    /* idempotent: threads that race here write the same values */
    fb_target *row = table;
#define TARGET(name, probe) (row++)->usable = (probe);
#include "targets/targets.def"
#undef TARGET
    return table;
}

const fb_target *fb_find_target(const char *name)
{
    const fb_target *found = NULL;
    for (const fb_target *t = fb_targets(); t->name; t++)
        if (name ? strcmp(t->name, name) == 0 : t->usable) found = t;
    return found;
}
