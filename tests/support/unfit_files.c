/* A file system that keeps less than POSIX promises, for the processes that preload this: below the folder $UNFIT_BELOW
 * it has the fault $UNFIT.
 *
 *   nolink     no hard links                      overlink  a link takes the place of a name that exists
 *   fsync      fsync fails                        rename    a replaced file is away for a moment
 *   quota      large writes meet a quota          stale     what a process has seen of a name it goes on to see for
 *                                                           $UNFIT_S seconds, until it changes that name itself
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int faulty(const char *fault, const char *path) {
    const char *is = getenv("UNFIT"), *below = getenv("UNFIT_BELOW");
    return is && below && path && !strcmp(is, fault) && !strncmp(path, below, strlen(below));
}

static int faulty_fd(const char *fault, int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    path[length < 0 ? 0 : length] = 0;
    return faulty(fault, path);
}

/* --- what a process remembers of names: a descriptor of the file as it was, its facts, or that it was not there --- */

struct seen { char *path; time_t until; int fd; int has_facts, absent; struct stat64 facts; struct seen *next; };
static struct seen *all;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static struct seen *of(const char *path) {
    struct seen *s;
    for (s = all; s; s = s->next) if (!strcmp(s->path, path)) break;
    if (!s) {
        s = calloc(1, sizeof *s);
        s->path = strdup(path), s->fd = -1, s->next = all, all = s;
    }
    if (time(NULL) >= s->until) {
        if (s->fd >= 0) close(s->fd);
        s->fd = -1, s->has_facts = s->absent = 0;
        s->until = time(NULL) + atoi(getenv("UNFIT_S") ? getenv("UNFIT_S") : "600");
    }
    return s;
}

static void forget(const char *path) {
    if (!faulty("stale", path)) return;
    pthread_mutex_lock(&lock);
    of(path)->until = 0;
    pthread_mutex_unlock(&lock);
}

static int stale_open(const char *path, int flags) {
    char again[64];
    int fd;
    pthread_mutex_lock(&lock);
    struct seen *s = of(path);
    if (s->absent) {
        errno = ENOENT, fd = -1;
    } else if (s->fd >= 0) {
        snprintf(again, sizeof again, "/proc/self/fd/%d", s->fd);
        fd = REAL(open64)(again, flags);
    } else {
        fd = REAL(open64)(path, flags);
        s->absent = fd < 0 && errno == ENOENT;
        if (fd >= 0) s->fd = fcntl(fd, F_DUPFD_CLOEXEC, 100);
    }
    int error = errno;
    pthread_mutex_unlock(&lock);
    errno = error;
    return fd;
}

int open64(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = va_arg(rest, mode_t);
    va_end(rest);
    if (flags & (O_CREAT | O_WRONLY | O_RDWR)) forget(path);
    else if (!(flags & O_DIRECTORY) && faulty("stale", path)) return stale_open(path, flags);
    return REAL(open64)(path, flags, mode);
}

static int stale_stat(const char *path, struct stat64 *facts) {
    pthread_mutex_lock(&lock);
    struct seen *s = of(path);
    int code = 0, error = ENOENT;
    if (s->absent) code = -1;
    else if (!s->has_facts) {
        code = REAL(stat64)(path, &s->facts);
        error = errno;
        s->has_facts = code == 0, s->absent = code < 0 && error == ENOENT;
    }
    if (!code) *facts = s->facts;
    pthread_mutex_unlock(&lock);
    if (code) errno = error;
    return code;
}

int stat64(const char *path, struct stat64 *facts) {
    return faulty("stale", path) ? stale_stat(path, facts) : REAL(stat64)(path, facts);
}

/* --- the other faults ------------------------------------------------------------------------------------------- */

int link(const char *from, const char *to) {
    forget(from), forget(to);
    if (faulty("nolink", to)) return errno = EPERM, -1;
    if (faulty("overlink", to)) unlink(to);
    return REAL(link)(from, to);
}

int rename(const char *from, const char *to) {
    forget(from), forget(to);
    struct stat64 facts;
    if (faulty("rename", to) && !REAL(stat64)(to, &facts) && S_ISREG(facts.st_mode)) {
        unlink(to);
        usleep(3000);
    }
    return REAL(rename)(from, to);
}

int unlink(const char *path) {
    forget(path);
    return REAL(unlink)(path);
}

int rmdir(const char *path) {
    forget(path);
    return REAL(rmdir)(path);
}

int fsync(int fd) {
    return faulty_fd("fsync", fd) ? (errno = EIO, -1) : REAL(fsync)(fd);
}

ssize_t write(int fd, const void *data, size_t size) {
    return size >= 1 << 20 && faulty_fd("quota", fd) ? (errno = EDQUOT, -1) : REAL(write)(fd, data, size);
}
