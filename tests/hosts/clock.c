/* A library to preload, which shifts the wall clock of a host by some seconds. Monotonic clocks and the times
   of files stay as they are: files are on a server with a clock of its own. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

/* CLOCKS has the seconds by host name: "two=-3600 three=3600". */
static long shift(void) {
    static long seconds;
    static int known;
    if (!known) {
        char host[65] = "", clocks[200] = "";
        gethostname(host, sizeof host - 1);
        strncpy(clocks, getenv("CLOCKS") ? getenv("CLOCKS") : "", sizeof clocks - 1);
        char *rest = clocks;
        for (char *word; (word = strsep(&rest, " "));) {
            char *value = strchr(word, '=');
            if (value && !strncmp(word, host, value - word) && !host[value - word]) seconds = atol(value + 1);
        }
        known = 1;
    }
    return seconds;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*original)(clockid_t, struct timespec *);
    if (!original) original = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = original(clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += shift();
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    static int (*original)(struct timeval *, void *);
    if (!original) original = dlsym(RTLD_NEXT, "gettimeofday");
    int failed = original(now, zone);
    if (!failed) now->tv_sec += shift();
    return failed;
}

time_t time(time_t *now) {
    struct timeval here;
    gettimeofday(&here, NULL);
    if (now) *now = here.tv_sec;
    return here.tv_sec;
}

int pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex, const struct timespec *until) {
    static int (*original)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
    if (!original) original = dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
    if (!original) original = dlsym(RTLD_NEXT, "pthread_cond_timedwait");
    struct timespec limit = *until;
    if (limit.tv_sec > 1000000000) limit.tv_sec -= shift(); /* not of a monotonic clock */
    return original(condition, mutex, &limit);
}
