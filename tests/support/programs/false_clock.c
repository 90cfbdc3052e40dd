/* Make the wall clock as many seconds fast as the first 8 bytes of the file FALSE_CLOCK say.
   CLOCK_MONOTONIC is not changed, so timers stay right. For LD_PRELOAD on Linux. */

#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

/* A shared mapping of the file, so that a test changes the clock while the program runs. */
static volatile int64_t *ahead;

__attribute__((constructor)) static void begin(void) {
    int file = open(getenv("FALSE_CLOCK"), O_RDONLY);
    void *place = mmap(NULL, sizeof *ahead, PROT_READ, MAP_SHARED, file, 0);
    if (place != MAP_FAILED) ahead = place;
    close(file);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = (int)syscall(SYS_clock_gettime, clock, now);
    if (result == 0 && clock == CLOCK_REALTIME && ahead != NULL) now->tv_sec += *ahead;
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec precise;
    (void)zone;
    int result = clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return result;
}

time_t time(time_t *place) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    if (place != NULL) *place = precise.tv_sec;
    return precise.tv_sec;
}
