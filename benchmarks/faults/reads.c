/* A fault-injection layer for reading, between a process and the C library: makes the calls that read files below one
   folder fail on request, and records them over all processes.

     gcc -shared -fPIC -o reads.so reads.c
     LD_PRELOAD=reads.so FAULTS_ROOT=/folder FAULTS_CONTROL=/elsewhere/control FAULTS_LOG=/elsewhere/log program

   read_layer.py has the same struct. */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <stdint.h>
#include <sys/file.h>
#include <sys/uio.h>

enum { ONCE, FILE_LOST, DISK_LOST };

struct control {
    int64_t logging; /* whether calls are recorded */
    int64_t armed;   /* whether calls may fail */
    int64_t nth;     /* which of the calls named below fails, from 1 */
    int64_t extent;  /* what fails after it: ONCE nothing, FILE_LOST the file or folder, DISK_LOST everything */
    int64_t error;   /* errno of the calls that fail */
    int64_t count;   /* number of the calls named below so far */
    int64_t hits;    /* number of calls that failed */
    char call[16], path[1000];
};

#include "layer.h"

/* The C library's own function, which this layer replaces. */
#define REAL(name)                                               \
    static __typeof__(name) *real;                               \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

static void record(const char *what, const char *call, const char *path) {
    int saved = errno, fd = syscall(SYS_openat, AT_FDCWD, getenv("FAULTS_LOG"), O_WRONLY | O_APPEND | O_CLOEXEC);
    char line[PATH_MAX + 64];
    int length = snprintf(line, sizeof line, "%s\t%s\t%s\n", what, call, path);
    if (syscall(SYS_write, fd, line, length) != length) abort();
    syscall(SYS_close, fd);
    errno = saved;
}

/* Whether a path is the file or folder that fails, or below it. */
static int in_lost_file(const char *path) {
    size_t length = strlen(control->path);
    return strncmp(path, control->path, length) == 0 && (path[length] == 0 || path[length] == '/');
}

/* Whether this call fails; errno is set if it does. */
static int fails(const char *call, const char *path) {
    if (control->logging) record("called", call, path);
    if (!control->armed) return 0;
    int64_t lost = __atomic_load_n(&control->count, __ATOMIC_SEQ_CST) >= control->nth ? control->extent : ONCE;
    int failing = lost == DISK_LOST || (lost == FILE_LOST && in_lost_file(path));
    if (!failing && !strcmp(call, control->call) && !strcmp(path, control->path))
        failing = __atomic_add_fetch(&control->count, 1, __ATOMIC_SEQ_CST) == control->nth;
    if (!failing) return 0;
    __atomic_add_fetch(&control->hits, 1, __ATOMIC_SEQ_CST);
    record("failed", call, path);
    errno = control->error;
    return 1;
}

static int fails_at(const char *call, int folder, const char *name) {
    char path[PATH_MAX];
    int active = control && (control->logging || control->armed);
    return active && below_root(folder, name, path) && fails(call, path);
}

static int do_open(int folder, const char *name, int flags, mode_t mode) {
    if ((flags & O_TMPFILE) != O_TMPFILE && fails_at("open", folder, name)) return -1;
    return syscall(SYS_openat, folder, name, flags, mode);
}

#define FUNCTION(result, name, parameters, call, folder, path, ...) \
    result name parameters {                                        \
        REAL(name);                                                 \
        return fails_at(call, folder, path) ? -1 : real(__VA_ARGS__); \
    }
FUNCTION(int, stat, (const char *name, struct stat *out), "stat", AT_FDCWD, name, name, out)
FUNCTION(int, stat64, (const char *name, struct stat64 *out), "stat", AT_FDCWD, name, name, out)
FUNCTION(int, lstat, (const char *name, struct stat *out), "stat", AT_FDCWD, name, name, out)
FUNCTION(int, lstat64, (const char *name, struct stat64 *out), "stat", AT_FDCWD, name, name, out)
FUNCTION(int, fstatat, (int at, const char *name, struct stat *out, int flags), "stat", at, name, at, name, out, flags)
FUNCTION(int, fstatat64, (int at, const char *name, struct stat64 *out, int flags), "stat", at, name, at, name, out,
         flags)
FUNCTION(int, statx, (int at, const char *name, int flags, unsigned mask, struct statx *out), "stat", at, name, at,
         name, flags, mask, out)
FUNCTION(int, fstat, (int fd, struct stat *out), "stat", fd, "", fd, out)
FUNCTION(int, fstat64, (int fd, struct stat64 *out), "stat", fd, "", fd, out)
FUNCTION(int, access, (const char *name, int mode), "stat", AT_FDCWD, name, name, mode)
FUNCTION(int, faccessat, (int at, const char *name, int mode, int flags), "stat", at, name, at, name, mode, flags)
FUNCTION(int, flock, (int fd, int operation), "lock", fd, "", fd, operation)
FUNCTION(ssize_t, read, (int fd, void *out, size_t bytes), "read", fd, "", fd, out, bytes)
FUNCTION(ssize_t, readv, (int fd, const struct iovec *out, int count), "read", fd, "", fd, out, count)
FUNCTION(ssize_t, pread, (int fd, void *out, size_t bytes, off_t at), "pread", fd, "", fd, out, bytes, at)
FUNCTION(ssize_t, pread64, (int fd, void *out, size_t bytes, off64_t at), "pread", fd, "", fd, out, bytes, at)
FUNCTION(ssize_t, preadv, (int fd, const struct iovec *out, int count, off_t at), "pread", fd, "", fd, out, count, at)
FUNCTION(ssize_t, preadv64, (int fd, const struct iovec *out, int count, off64_t at), "pread", fd, "", fd, out, count,
         at)
FUNCTION(ssize_t, preadv2, (int fd, const struct iovec *out, int count, off_t at, int flags), "pread", fd, "", fd, out,
         count, at, flags)
FUNCTION(ssize_t, preadv64v2, (int fd, const struct iovec *out, int count, off64_t at, int flags), "pread", fd, "", fd,
         out, count, at, flags)

void *mmap(void *address, size_t bytes, int access, int flags, int fd, off_t at) {
    if (fd >= 0 && !(flags & MAP_ANONYMOUS) && fails_at("mmap", fd, "")) return MAP_FAILED;
    return (void *)syscall(SYS_mmap, address, bytes, access, flags, fd, at);
}
void *mmap64(void *address, size_t bytes, int access, int flags, int fd, off64_t at) {
    return mmap(address, bytes, access, flags, fd, at);
}

/* A listing: opening the folder, and the first read of its entries. */
DIR *opendir(const char *name) {
    REAL(opendir);
    return fails_at("list", AT_FDCWD, name) ? NULL : real(name);
}
DIR *fdopendir(int fd) {
    REAL(fdopendir);
    return fails_at("list", fd, "") ? NULL : real(fd);
}

/* Whether an entry has been lost: no listing shows a file that is gone. */
static int is_gone(DIR *folder, const char *entry) {
    char path[PATH_MAX];
    return control && control->armed && control->extent == FILE_LOST && control->error == ENOENT &&
           __atomic_load_n(&control->count, __ATOMIC_SEQ_CST) >= control->nth &&
           below_root(dirfd(folder), entry, path) && !strcmp(path, control->path);
}

#define READDIR(name, type)                                                            \
    struct type *name(DIR *folder) {                                                   \
        REAL(name);                                                                    \
        if (telldir(folder) == 0 && fails_at("list", dirfd(folder), "")) return NULL;  \
        struct type *entry;                                                            \
        do entry = real(folder);                                                       \
        while (entry && is_gone(folder, entry->d_name));                               \
        return entry;                                                                  \
    }
READDIR(readdir, dirent)
READDIR(readdir64, dirent64)
