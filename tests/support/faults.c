/* Preloaded into a process: at its n-th file event below a directory, the process is killed or the call fails.

   An event is a call that changes a file or a directory: an open for writing, a write, a rename, a synchronisation, ...
   Nothing happens before fault_at() is called. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum { KILL = 0, TORN = -1 }; /* any other kind is the errno of this and all later calls that need space */

static char prefix[PATH_MAX];
static long count, at;
static int kind;

void fault_at(const char *directory, long event, int what) {
    snprintf(prefix, sizeof prefix, "%s", directory);
    count = 0, at = event, kind = what;
}

long fault_count(void) { return count; }

static int below(const char *path) { return prefix[0] && path && !strncmp(path, prefix, strlen(prefix)); }

static int below_fd(int fd) {
    char link[64], path[PATH_MAX];
    if (!prefix[0]) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return below(path);
}

static int below_at(int directory, const char *path) {
    return path[0] == '/' || directory == AT_FDCWD ? below(path) : below_fd(directory);
}

/* Counts an event; 1: the call has to fail. */
static int event(int needs_space) {
    long now = __atomic_add_fetch(&count, 1, __ATOMIC_SEQ_CST);
    if (!at || now < at) return 0;
    if (kind == KILL || kind == TORN) kill(getpid(), SIGKILL);
    if (!needs_space) return 0;
    errno = kind;
    return 1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define OPENED(flags) ((flags) & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC))
#define MODE(flags, mode)                                                                                              \
    mode_t mode = 0;                                                                                                   \
    if (flags & (O_CREAT | __O_TMPFILE)) {                                                                             \
        va_list list;                                                                                                  \
        va_start(list, flags);                                                                                         \
        mode = va_arg(list, mode_t);                                                                                   \
        va_end(list);                                                                                                  \
    }

#define OPEN(name)                                                                                                     \
    int name(const char *path, int flags, ...) {                                                                       \
        MODE(flags, mode)                                                                                              \
        if (OPENED(flags) && below(path) && event(flags & O_CREAT)) return -1;                                         \
        return REAL(name)(path, flags, mode);                                                                          \
    }
#define OPENAT(name)                                                                                                   \
    int name(int directory, const char *path, int flags, ...) {                                                        \
        MODE(flags, mode)                                                                                              \
        if (OPENED(flags) && below_at(directory, path) && event(flags & O_CREAT)) return -1;                           \
        return REAL(name)(directory, path, flags, mode);                                                               \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int fd, const void *data, size_t size) {
    if (below_fd(fd)) {
        if (kind == TORN && at && count + 1 == at) REAL(write)(fd, data, size / 2);
        if (event(1)) return -1;
    }
    return REAL(write)(fd, data, size);
}

#define ON_FD(name, arguments, values, needs_space)                                                                    \
    int name arguments {                                                                                               \
        if (below_fd(fd) && event(needs_space)) return -1;                                                             \
        return REAL(name) values;                                                                                      \
    }
ON_FD(fsync, (int fd), (fd), 1)
ON_FD(ftruncate64, (int fd, off64_t size), (fd, size), 1)
ON_FD(ftruncate, (int fd, off_t size), (fd, size), 1)

#define ON_PATH(name, arguments, values, needs_space)                                                                  \
    int name arguments {                                                                                               \
        if (below(path) && event(needs_space)) return -1;                                                              \
        return REAL(name) values;                                                                                      \
    }
ON_PATH(rename, (const char *path, const char *target), (path, target), 0)
ON_PATH(mkdir, (const char *path, mode_t mode), (path, mode), 1)
ON_PATH(unlink, (const char *path), (path), 0)
ON_PATH(rmdir, (const char *path), (path), 0)

int unlinkat(int directory, const char *path, int flags) {
    if (below_at(directory, path) && event(0)) return -1;
    return REAL(unlinkat)(directory, path, flags);
}
