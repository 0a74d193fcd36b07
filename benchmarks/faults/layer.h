/* What both fault-injection layers share: their memory, which files concern them, and the functions that open files.
   A layer defines `struct control` before it includes this, and `do_open` after that. */

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static struct control *control;
static char root[PATH_MAX]; /* ends in a slash */

__attribute__((constructor)) static void start(void) {
    const char *name = getenv("FAULTS_CONTROL"), *folder = getenv("FAULTS_ROOT");
    int fd = name && folder ? syscall(SYS_openat, AT_FDCWD, name, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0) return;
    snprintf(root, sizeof root, "%s/", folder);
    void *memory = (void *)syscall(SYS_mmap, NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    syscall(SYS_close, fd);
    if (memory != MAP_FAILED) control = memory;
}

/* Whether a file is below the root; its absolute path, without a slash at the end, goes to out.  Keeps errno. */
static int below_root(int folder, const char *name, char *out) {
    if (!control || !name) return 0;
    int saved = errno;
    if (name[0] == '/') {
        snprintf(out, PATH_MAX, "%s", name);
    } else {
        char link[64];
        snprintf(link, sizeof link, folder == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", folder);
        ssize_t length = syscall(SYS_readlink, link, out, PATH_MAX - 1);
        errno = saved;
        if (length < 0) return 0;
        snprintf(out + length, PATH_MAX - length, name[0] ? "/%s" : "%s", name);
    }
    size_t length = strlen(out);
    while (length > 1 && out[length - 1] == '/') out[--length] = 0;
    return strncmp(out, root, strlen(root)) == 0;
}

static int do_open(int folder, const char *name, int flags, mode_t mode);

#define MODE                                                         \
    mode_t mode = 0;                                                 \
    if (flags & (O_CREAT | O_TMPFILE)) {                             \
        va_list rest;                                                \
        va_start(rest, flags);                                       \
        mode = va_arg(rest, mode_t);                                 \
        va_end(rest);                                                \
    }
int open(const char *name, int flags, ...) { MODE return do_open(AT_FDCWD, name, flags, mode); }
int open64(const char *name, int flags, ...) { MODE return do_open(AT_FDCWD, name, flags, mode); }
int openat(int folder, const char *name, int flags, ...) { MODE return do_open(folder, name, flags, mode); }
int openat64(int folder, const char *name, int flags, ...) { MODE return do_open(folder, name, flags, mode); }
