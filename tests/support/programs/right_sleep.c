/* Sleep by the kernel's own clocks. libfaketime 0.9.10 adds its offset to absolute times of
   CLOCK_MONOTONIC, even if it does not fake that clock, and then time.sleep of Python fails with
   EINVAL. For LD_PRELOAD on Linux, before libfaketime. */

#define _GNU_SOURCE
#include <errno.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_nanosleep(clockid_t clock, int flags, const struct timespec *request,
                    struct timespec *remaining) {
    return syscall(SYS_clock_nanosleep, clock, flags, request, remaining) == 0 ? 0 : errno;
}
