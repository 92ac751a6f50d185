/* Stands between a program and the C library, and lets the disk fail and the clock jump as a shared page says.
 *
 * Compiled to a library that LD_PRELOAD names.  SOAK_PAGE is the file with the page, SOAK_FOLDER the
 * only folder whose files are touched.  The page is tests/soak/preload.py's `Page`.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

struct page {
    int32_t write_errno, sync_errno, read_errno, short_reads, delay_us, unused;
    int64_t clock_offset_s;
    int64_t writes, syncs, reads, shorts, delays, clocks;
};

#define DESCRIPTORS 65536
static struct page *page;
static char folder[4096];
static size_t folder_length;
static unsigned char watched[DESCRIPTORS];

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

__attribute__((constructor)) static void begin(void) {
    const char *file = getenv("SOAK_PAGE"), *where = getenv("SOAK_FOLDER");
    if (!file || !where || strlen(where) >= sizeof folder) return;
    int descriptor = NEXT(open)(file, O_RDWR);
    if (descriptor < 0) return;
    void *found = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    NEXT(close)(descriptor);
    if (found == MAP_FAILED) return;
    strcpy(folder, where);
    folder_length = strlen(folder);
    page = found;
}

static int note(int descriptor, const char *path) {
    if (descriptor >= 0 && descriptor < DESCRIPTORS)
        watched[descriptor] = page && path && strncmp(path, folder, folder_length) == 0;
    return descriptor;
}

static int is_watched(int descriptor) {
    return page && descriptor >= 0 && descriptor < DESCRIPTORS && watched[descriptor];
}

static int fails(int descriptor, const int32_t *which, int64_t *counter) {
    if (!is_watched(descriptor)) return 0;
    int delay_us = page->delay_us, error = *which;
    if (delay_us) {
        __atomic_add_fetch(&page->delays, 1, __ATOMIC_RELAXED);
        usleep(delay_us);
    }
    if (!error) return 0;
    __atomic_add_fetch(counter, 1, __ATOMIC_RELAXED);
    errno = error;
    return 1;
}

/* POSIX lets a read give less than was asked. */
static size_t shorter(int descriptor, size_t count) {
    if (!is_watched(descriptor) || !page->short_reads || count < 2) return count;
    __atomic_add_fetch(&page->shorts, 1, __ATOMIC_RELAXED);
    return count / 2;
}

#define OPEN(name)                                                                        \
    int name(const char *path, int flags, ...) {                                          \
        va_list rest;                                                                     \
        va_start(rest, flags);                                                            \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;           \
        va_end(rest);                                                                     \
        return note(NEXT(name)(path, flags, mode), path);                                 \
    }
OPEN(open)
OPEN(open64)

int close(int descriptor) {
    if (descriptor >= 0 && descriptor < DESCRIPTORS) watched[descriptor] = 0;
    return NEXT(close)(descriptor);
}

ssize_t write(int descriptor, const void *data, size_t count) {
    if (page && fails(descriptor, &page->write_errno, &page->writes)) return -1;
    return NEXT(write)(descriptor, data, count);
}

#define PWRITE(name, offset_t)                                                             \
    ssize_t name(int descriptor, const void *data, size_t count, offset_t offset) {        \
        if (page && fails(descriptor, &page->write_errno, &page->writes)) return -1;       \
        return NEXT(name)(descriptor, data, count, offset);                                \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

#define SYNC(name)                                                                         \
    int name(int descriptor) {                                                             \
        if (page && fails(descriptor, &page->sync_errno, &page->syncs)) return -1;         \
        return NEXT(name)(descriptor);                                                     \
    }
SYNC(fsync)
SYNC(fdatasync)

ssize_t read(int descriptor, void *data, size_t count) {
    if (page && fails(descriptor, &page->read_errno, &page->reads)) return -1;
    return NEXT(read)(descriptor, data, count);
}

/* SQLite takes a short pread for the end of the file, as the kernel never gives one: only errors there. */
#define PREAD(name, offset_t)                                                              \
    ssize_t name(int descriptor, void *data, size_t count, offset_t offset) {              \
        if (page && fails(descriptor, &page->read_errno, &page->reads)) return -1;         \
        return NEXT(name)(descriptor, data, count, offset);                                \
    }
PREAD(pread, off_t)
PREAD(pread64, off64_t)

#define PREADV(name, offset_t)                                                             \
    ssize_t name(int descriptor, const struct iovec *parts, int count, offset_t offset) {  \
        if (page && fails(descriptor, &page->read_errno, &page->reads)) return -1;         \
        if (count != 1) return NEXT(name)(descriptor, parts, count, offset);               \
        struct iovec part = {parts->iov_base, shorter(descriptor, parts->iov_len)};        \
        return NEXT(name)(descriptor, &part, 1, offset);                                   \
    }
PREADV(preadv, off_t)
PREADV(preadv64, off64_t)

#define PREADV2(name, offset_t)                                                            \
    ssize_t name(int descriptor, const struct iovec *parts, int count, offset_t offset, int flags) { \
        if (page && fails(descriptor, &page->read_errno, &page->reads)) return -1;         \
        if (count != 1) return NEXT(name)(descriptor, parts, count, offset, flags);        \
        struct iovec part = {parts->iov_base, shorter(descriptor, parts->iov_len)};        \
        return NEXT(name)(descriptor, &part, 1, offset, flags);                            \
    }
PREADV2(preadv2, off_t)
PREADV2(preadv64v2, off64_t)

int clock_gettime(clockid_t clock, struct timespec *now) {
    int code = NEXT(clock_gettime)(clock, now);
    if (code == 0 && page && clock == CLOCK_REALTIME && page->clock_offset_s) {
        __atomic_add_fetch(&page->clocks, 1, __ATOMIC_RELAXED);
        now->tv_sec += page->clock_offset_s;
    }
    return code;
}
