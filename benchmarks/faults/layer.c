/* A fault-injection layer between a process and the C library: makes file operations below one folder fail on request,
   and records those that succeed, in order over all processes.

     gcc -shared -fPIC -o layer.so layer.c
     LD_PRELOAD=layer.so FAULTS_ROOT=/folder FAULTS_CONTROL=/elsewhere/control FAULTS_LOG=/elsewhere/log program

   layer.py has the same two structs. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <sys/file.h>
#include <sys/uio.h>

struct control {
    int64_t counting;    /* whether calls are counted and may fail */
    int64_t count;       /* number of calls so far */
    int64_t first, last; /* the calls that fail */
    int64_t error;       /* their errno */
    int64_t halved;      /* whether the first of them, if it is a write, writes half of its bytes instead */
    int64_t logging;     /* whether operations are recorded */
    int64_t hits;        /* number of calls that failed */
    char call[16], path[488]; /* the first call that failed */
};

struct record {
    char call[8];
    int64_t inode, offset, bytes;
    int32_t path, other; /* lengths of the names, which follow; then come the bytes */
};

#include "layer.h"

static int64_t inode_of(int fd) {
    struct stat s;
    return fstat(fd, &s) ? 0 : (int64_t)s.st_ino;
}

/* Allows one operation at a time over all processes; the lock is released when its holder dies. */
static int enter(void) {
    int saved = errno, fd = syscall(SYS_openat, AT_FDCWD, getenv("FAULTS_CONTROL"), O_RDWR | O_CLOEXEC);
    flock(fd, LOCK_EX);
    errno = saved;
    return fd;
}

static void leave(int lock) {
    int saved = errno;
    syscall(SYS_close, lock);
    errno = saved;
}

/* Whether this call fails: 0 no, 1 yes with errno set, 2 write only half of the bytes. */
static int failing(const char *call, const char *path) {
    if (!control->counting) return 0;
    int64_t number = ++control->count;
    if (number < control->first || number > control->last) return 0;
    if (!control->hits++) {
        snprintf(control->call, sizeof control->call, "%s", call);
        snprintf(control->path, sizeof control->path, "%s", path);
    }
    errno = control->error;
    return control->halved && number == control->first ? 2 : 1;
}

static void record(const char *call, int64_t inode, int64_t offset, const char *path, const char *other,
                   const void *data, int64_t bytes) {
    if (!control->logging) return;
    int saved = errno, fd = syscall(SYS_openat, AT_FDCWD, getenv("FAULTS_LOG"), O_WRONLY | O_APPEND | O_CLOEXEC);
    struct record r = {.inode = inode, .offset = offset, .bytes = bytes, .path = strlen(path), .other = strlen(other)};
    memcpy(r.call, call, strnlen(call, sizeof r.call));
    struct iovec all[] = {{&r, sizeof r}, {(void *)path, r.path}, {(void *)other, r.other}, {(void *)data, data ? bytes : 0}};
    if (syscall(SYS_writev, fd, all, 4) < 0) abort();
    syscall(SYS_close, fd);
    errno = saved;
}

static int do_open(int folder, const char *name, int flags, mode_t mode) {
    char path[PATH_MAX];
    int writing = (flags & O_ACCMODE) != O_RDONLY || flags & O_CREAT;
    if (!writing || (flags & O_TMPFILE) == O_TMPFILE || !below_root(folder, name, path))
        return syscall(SYS_openat, folder, name, flags, mode);
    int lock = enter(), fd = -1;
    if (!failing("open", path)) {
        struct stat s;
        int existed = lstat(path, &s) == 0;
        fd = syscall(SYS_openat, folder, name, flags, mode);
        if (fd >= 0 && !existed) record("create", inode_of(fd), 0, path, "", NULL, 0);
        if (fd >= 0 && existed && flags & O_TRUNC) record("cut", s.st_ino, 0, path, "", NULL, 0);
    }
    leave(lock);
    return fd;
}

ssize_t write(int fd, const void *data, size_t bytes) {
    char path[PATH_MAX];
    if (!below_root(fd, "", path)) return syscall(SYS_write, fd, data, bytes);
    int lock = enter(), how = failing("write", path);
    ssize_t done = -1;
    if (how == 2 && bytes > 1) bytes /= 2, how = 0;
    if (!how) {
        struct stat s;
        int64_t at = fcntl(fd, F_GETFL) & O_APPEND && !fstat(fd, &s) ? s.st_size : lseek(fd, 0, SEEK_CUR);
        done = syscall(SYS_write, fd, data, bytes);
        if (done > 0) record("write", inode_of(fd), at, path, "", data, done);
    }
    leave(lock);
    return done;
}

static int do_sync(int number, int fd) {
    char path[PATH_MAX];
    if (!below_root(fd, "", path)) return syscall(number, fd);
    int lock = enter(), result = -1;
    if (!failing("fsync", path)) {
        result = syscall(number, fd);
        if (!result) record("fsync", inode_of(fd), 0, path, "", NULL, 0);
    }
    leave(lock);
    return result;
}
int fsync(int fd) { return do_sync(SYS_fsync, fd); }
int fdatasync(int fd) { return do_sync(SYS_fdatasync, fd); }

static int do_truncate(int fd, off_t length) {
    char path[PATH_MAX];
    if (!below_root(fd, "", path)) return syscall(SYS_ftruncate, fd, length);
    int lock = enter(), result = -1;
    if (!failing("ftruncate", path)) {
        result = syscall(SYS_ftruncate, fd, length);
        if (!result) record("cut", inode_of(fd), length, path, "", NULL, 0);
    }
    leave(lock);
    return result;
}
int ftruncate(int fd, off_t length) { return do_truncate(fd, length); }
int ftruncate64(int fd, off64_t length) { return do_truncate(fd, length); }

static int do_mkdir(int folder, const char *name, mode_t mode) {
    char path[PATH_MAX];
    if (!below_root(folder, name, path)) return syscall(SYS_mkdirat, folder, name, mode);
    int lock = enter(), result = -1;
    if (!failing("mkdir", path)) {
        struct stat s;
        result = syscall(SYS_mkdirat, folder, name, mode);
        if (!result && !lstat(path, &s)) record("mkdir", s.st_ino, 0, path, "", NULL, 0);
    }
    leave(lock);
    return result;
}
int mkdir(const char *name, mode_t mode) { return do_mkdir(AT_FDCWD, name, mode); }
int mkdirat(int folder, const char *name, mode_t mode) { return do_mkdir(folder, name, mode); }

static int do_rename(int from, const char *name, int to, const char *other) {
    char path[PATH_MAX], target[PATH_MAX];
    if (!below_root(from, name, path) || !below_root(to, other, target))
        return syscall(SYS_renameat, from, name, to, other);
    int lock = enter(), result = -1;
    if (!failing("rename", path)) {
        result = syscall(SYS_renameat, from, name, to, other);
        if (!result) record("rename", 0, 0, path, target, NULL, 0);
    }
    leave(lock);
    return result;
}
int rename(const char *name, const char *other) { return do_rename(AT_FDCWD, name, AT_FDCWD, other); }
int renameat(int from, const char *name, int to, const char *other) { return do_rename(from, name, to, other); }

static int do_remove(int folder, const char *name, int flags) {
    char path[PATH_MAX];
    if (!below_root(folder, name, path)) return syscall(SYS_unlinkat, folder, name, flags);
    int lock = enter(), result = -1;
    if (!failing(flags & AT_REMOVEDIR ? "rmdir" : "unlink", path)) {
        result = syscall(SYS_unlinkat, folder, name, flags);
        if (!result) record("remove", 0, 0, path, "", NULL, 0);
    }
    leave(lock);
    return result;
}
int unlink(const char *name) { return do_remove(AT_FDCWD, name, 0); }
int rmdir(const char *name) { return do_remove(AT_FDCWD, name, AT_REMOVEDIR); }
int unlinkat(int folder, const char *name, int flags) { return do_remove(folder, name, flags); }
