/* Faults of a disk, for tests: preloaded, it lets calls on files below one folder fail, or kill the process.
 *
 * arm() is called through ctypes by the process under test. Nothing fails before.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { WRITE = 1, FSYNC = 2, RENAME = 4, UNLINK = 8, OPEN = 16 };

static char folder[4096];
static int kinds, fault, sticky;
static long at, quota;
static atomic_long count;

/* Let the at-th call of some kinds fail with an error, and those after it if it is sticky; the error 0 kills. */
void arm(const char *watched, int of_kinds, long at_call, int error, int stays) {
    strncpy(folder, watched, sizeof folder - 1);
    kinds = of_kinds, at = at_call, fault = error, sticky = stays, quota = 0;
    atomic_store(&count, 0);
}

/* Let writes fail with ENOSPC when the files in the folder would have more bytes than this. */
void arm_quota(const char *watched, long bytes) {
    arm(watched, 0, 0, 0, 0);
    quota = bytes;
}

long calls(void) { return atomic_load(&count); }

static int is_watched(const char *path) {
    return folder[0] && path && strncmp(path, folder, strlen(folder)) == 0;
}

static int is_open_below(int descriptor) {
    char link[64], path[4096];
    if (!folder[0]) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return is_watched(path);
}

static int fails(int kind) {
    if (!(kinds & kind)) return 0;
    long number = atomic_fetch_add(&count, 1) + 1;
    if (!at || number < at || (number > at && !sticky)) return 0;
    if (fault == 0) kill(getpid(), SIGKILL);
    errno = fault;
    return 1;
}

static long bytes_below(const char *path) {
    long total = 0;
    DIR *directory = opendir(path);
    if (!directory) return 0;
    for (struct dirent *entry; (entry = readdir(directory));) {
        char inner[8192];
        struct stat status;
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        snprintf(inner, sizeof inner, "%s/%s", path, entry->d_name);
        if (lstat(inner, &status)) continue;
        total += S_ISDIR(status.st_mode) ? bytes_below(inner) : status.st_size;
    }
    closedir(directory);
    return total;
}

#define NEXT(name) static __typeof__(name) *next; if (!next) next = dlsym(RTLD_NEXT, #name)

ssize_t write(int descriptor, const void *data, size_t size) {
    NEXT(write);
    if (is_open_below(descriptor)) {
        if (quota && bytes_below(folder) + (long)size > quota) { errno = ENOSPC; return -1; }
        /* A disk that is full takes a part of the data first. */
        if (fails(WRITE)) { int error = errno; if (size > 1) next(descriptor, data, size / 2); errno = error; return -1; }
    }
    return next(descriptor, data, size);
}

ssize_t pwrite64(int descriptor, const void *data, size_t size, off64_t offset) {
    NEXT(pwrite64);
    if (is_open_below(descriptor)) {
        if (quota && bytes_below(folder) + (long)size > quota) { errno = ENOSPC; return -1; }
        if (fails(WRITE)) return -1;
    }
    return next(descriptor, data, size, offset);
}

int fsync(int descriptor) {
    NEXT(fsync);
    return is_open_below(descriptor) && fails(FSYNC) ? -1 : next(descriptor);
}

int rename(const char *from, const char *to) {
    NEXT(rename);
    return is_watched(to) && fails(RENAME) ? -1 : next(from, to);
}

int renameat2(int from_folder, const char *from, int to_folder, const char *to, unsigned flags) {
    NEXT(renameat2);
    return is_watched(to) && fails(RENAME) ? -1 : next(from_folder, from, to_folder, to, flags);
}

int unlink(const char *path) {
    NEXT(unlink);
    return is_watched(path) && fails(UNLINK) ? -1 : next(path);
}

static int open_with(const char *name, const char *path, int flags, va_list arguments) {
    int (*next)(const char *, int, ...) = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, name);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, mode_t) : 0;
    return is_watched(path) && fails(OPEN) ? -1 : next(path, flags, mode);
}

int open(const char *path, int flags, ...) {
    va_list arguments;
    va_start(arguments, flags);
    int descriptor = open_with("open", path, flags, arguments);
    va_end(arguments);
    return descriptor;
}

int open64(const char *path, int flags, ...) {
    va_list arguments;
    va_start(arguments, flags);
    int descriptor = open_with("open64", path, flags, arguments);
    va_end(arguments);
    return descriptor;
}
