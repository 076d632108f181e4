/* Code that changes: under itself, through another mapping, by the kernel, by
 * a disk, by another process or thread. rewrite DISK: a block device whose
 * page N is "mov $N, %eax; ret". */
#define _GNU_SOURCE
#include "check.h"
#include <cpuid.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096
typedef unsigned (*Code)(void);

static void serialize(void) {
    unsigned a, b, c, d;
    __cpuid(0, a, b, c, d);
}

static void *map(size_t size, int protection) {
    void *at = mmap(NULL, size, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(at != MAP_FAILED);
    return at;
}

#define RWX (PROT_READ | PROT_WRITE | PROT_EXEC)

/* mov $value, %eax; ret */
static void answer(void *at, unsigned value) {
    unsigned char code[6] = {0xb8, value, value >> 8, value >> 16, value >> 24, 0xc3};
    memcpy(at, code, sizeof code);
}

static unsigned call(void *code) { return ((Code)code)(); }

/* An immediate is written, and the code around it called. */
static void immediates(void) {
    unsigned char *page = map(PAGE, RWX);
    for (int place = 0; place < PAGE - 6; place += 409) {
        answer(page + place, 0);
        for (unsigned i = 0; i < 3000; i++) {
            memcpy(page + place + 1, &i, 4);
            SAME(call(page + place), i);
        }
    }
    munmap(page, PAGE);
}

/* A block that changes an instruction further on in itself: the change counts
 * at once, with the same linear address. mov %dil, there; nops; there: mov $x, %al */
static void own_block(void) {
    unsigned char *page = map(PAGE, RWX);
    for (int distance = 0; distance < 40; distance++) {
        unsigned char *at = page;
        *at++ = 0x31, *at++ = 0xc0; /* xor %eax, %eax */
        unsigned char *store = at;
        at += 7; /* mov %dil, disp(%rip) */
        for (int i = 0; i < distance; i++)
            *at++ = 0x90;
        *at++ = 0xb0, *at++ = 0xff; /* mov $0xff, %al */
        int disp = (int)(at - 1 - (store + 7));
        unsigned char head[3] = {0x40, 0x88, 0x3d};
        memcpy(store, head, 3);
        memcpy(store + 3, &disp, 4);
        *at++ = 0xc3;
        for (unsigned i = 0; i < 500; i++)
            SAME(((unsigned (*)(unsigned))page)(i & 0xFF), i & 0xFF);
    }
    munmap(page, PAGE);
}

/* rep stosw over the instructions behind itself: nops become inc %eax's. */
static void own_string(void) {
    unsigned char *page = map(PAGE, RWX);
    /* xor %ebx, %ebx; rep stosw */
    unsigned char code[] = {0x31, 0xdb, 0x66, 0xf3, 0xab};
    for (int round = 0; round < 300; round++) {
        memset(page, 0x90, 128);
        memcpy(page, code, sizeof code);
        page[128] = 0xc3;
        unsigned count = 2 + 2 * (round % 20), ones;
        unsigned char *to = page + 10;
        /* Of words: inc %bl. */
        __asm__ volatile("call *%[page]"
                         : "=&b"(ones), "+c"(count), "+D"(to)
                         : [page] "r"(page), "a"(0xc3fe)
                         : "memory", "cc");
        SAME(ones & 0xFF, (unsigned)(2 + 2 * (round % 20)));
        SAME(count, 0);
    }
    munmap(page, PAGE);
}

/* A function across two pages; bytes of either change. */
static void straddle(void) {
    unsigned char *pages = map(2 * PAGE, RWX);
    for (int before = 1; before < 6; before++) {
        unsigned char *at = pages + PAGE - before;
        for (unsigned i = 0; i < 400; i++) {
            unsigned value = i * 0x01010101u + i;
            answer(at, value);
            SAME(call(at), value);
            SAME(call(at), value);
            unsigned char byte = i * 7;
            at[4] = byte;
            SAME(call(at), (value & 0xFFFFFF) | (unsigned)byte << 24);
        }
    }
    munmap(pages, 2 * PAGE);
}

/* Written through one mapping and executed through others. */
static void aliases(void) {
    int fd = memfd_create("code", 0);
    CHECK(fd >= 0 && ftruncate(fd, 2 * PAGE) == 0);
    unsigned char *write = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    unsigned char *one = mmap(NULL, 2 * PAGE, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
    unsigned char *two = mmap(NULL, 2 * PAGE, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
    CHECK(write != MAP_FAILED && one != MAP_FAILED && two != MAP_FAILED);
    for (unsigned i = 0; i < 10000; i++) {
        unsigned place = (i * 13) % (2 * PAGE - 6);
        answer(write + place, i);
        serialize();
        SAME(call(one + place), i);
        SAME(call(two + place), i);
        if (i % 3 == 0) {
            /* By the kernel, into the file. */
            unsigned value = ~i;
            CHECK(pwrite(fd, &value, 4, place + 1) == 4);
            serialize();
            SAME(call(two + place), value);
            SAME(call(one + place), value);
        }
    }
    munmap(write, 2 * PAGE), munmap(one, 2 * PAGE), munmap(two, 2 * PAGE);
    close(fd);
}

/* The kernel writes into code: read from a pipe, process_vm_writev. */
static void kernel_writes(void) {
    unsigned char *page = map(PAGE, RWX);
    int pipes[2];
    CHECK(pipe(pipes) == 0);
    for (unsigned i = 0; i < 2000; i++) {
        unsigned char code[6];
        answer(code, i);
        CHECK(write(pipes[1], code, 6) == 6);
        CHECK(read(pipes[0], page + i % 64, 6) == 6);
        SAME(call(page + i % 64), i);
        answer(code, ~i);
        struct iovec from = {code, 6}, to = {page + i % 64, 6};
        CHECK(process_vm_writev(getpid(), &from, 1, &to, 1, 0) == 6);
        serialize();
        SAME(call(page + i % 64), ~i);
    }
    close(pipes[0]), close(pipes[1]);
    munmap(page, PAGE);
}

/* A page that is writable, then executable, then replaced. */
static void protections(void) {
    unsigned char *page = map(PAGE, PROT_READ | PROT_WRITE);
    for (unsigned i = 0; i < 1500; i++) {
        answer(page + 16, i);
        CHECK(mprotect(page, PAGE, PROT_READ | PROT_EXEC) == 0);
        SAME(call(page + 16), i);
        SAME(call(page + 16), i);
        if (i % 2) {
            CHECK(mprotect(page, PAGE, PROT_READ | PROT_WRITE) == 0);
        } else {
            CHECK(mmap(page, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == page);
            SAME(page[17], 0);
        }
    }
    munmap(page, PAGE);
}

/* A child writes its copy of the code, and a parent the child's by ptrace. */
static void copies(void) {
    unsigned char *page = map(PAGE, RWX);
    for (unsigned i = 0; i < 60; i++) {
        answer(page, i);
        SAME(call(page), i);
        pid_t child = fork();
        CHECK(child >= 0);
        if (!child) {
            SAME(call(page), i);
            answer(page, i + 1000);
            SAME(call(page), i + 1000);
            CHECK(ptrace(PTRACE_TRACEME, 0, 0, 0) == 0);
            raise(SIGSTOP);
            _exit(call(page) == i + 2000 ? 0 : 1);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child && WIFSTOPPED(status));
        SAME(call(page), i);
        unsigned char code[8] = {0};
        answer(code, i + 2000);
        long word;
        memcpy(&word, code, 8);
        CHECK(ptrace(PTRACE_POKETEXT, child, page, word) == 0);
        CHECK(ptrace(PTRACE_CONT, child, 0, 0) == 0);
        CHECK(waitpid(child, &status, 0) == child);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        SAME(call(page), i);
    }
    munmap(page, PAGE);
}

/* Another thread changes code and says so; who executes it serialises first. */
static unsigned char *shared_write, *shared_code;
static volatile unsigned published, accepted;
#define HANDOVERS 2000

static void *patcher(void *nothing) {
    (void)nothing;
    for (unsigned i = 1; i <= HANDOVERS; i++) {
        answer(shared_write + (i % 5) * 700, i * 3);
        __atomic_store_n(&published, i, __ATOMIC_RELEASE);
        while (__atomic_load_n(&accepted, __ATOMIC_ACQUIRE) != i)
            sched_yield();
    }
    return NULL;
}

static void threads(void) {
    int fd = memfd_create("code", 0);
    CHECK(fd >= 0 && ftruncate(fd, PAGE) == 0);
    shared_code = mmap(NULL, PAGE, RWX, MAP_SHARED, fd, 0);
    CHECK(shared_code != MAP_FAILED);
    for (int alias = 0; alias < 2; alias++) {
        shared_write = alias ? mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : shared_code;
        published = accepted = 0;
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, patcher, NULL) == 0);
        for (unsigned i = 1; i <= HANDOVERS; i++) {
            while (__atomic_load_n(&published, __ATOMIC_ACQUIRE) != i)
                sched_yield();
            serialize();
            SAME(call(shared_code + (i % 5) * 700), i * 3);
            __atomic_store_n(&accepted, i, __ATOMIC_RELEASE);
        }
        pthread_join(thread, NULL);
    }
    close(fd);
}

/* An aligned immediate that another thread changes all the time, with nothing
 * said: old or new, never something else, and not going back. */
static volatile int stop;
static void *counter(void *at) {
    for (unsigned i = 1; !stop; i++)
        __atomic_store_n((unsigned *)at, i, __ATOMIC_RELEASE);
    return NULL;
}

static void races(void) {
    unsigned char *page = map(PAGE, RWX);
    answer(page + 63, 0);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, counter, page + 64) == 0);
    unsigned last = 0, changes = 0;
    for (int i = 0; i < 200000 || (changes < 3 && i < 400000000); i++) {
        unsigned now = call(page + 63);
        CHECK(now >= last);
        changes += now != last;
        last = now;
    }
    stop = 1;
    pthread_join(thread, NULL);
    CHECK(changes >= 3);
}

/* A disk writes into code, past the processor. */
static void disk(const char *device) {
    int fd = open(device, O_RDONLY | O_DIRECT);
    CHECK(fd >= 0);
    unsigned char *page = map(4 * PAGE, RWX);
    for (unsigned i = 0; i < 600; i++) {
        unsigned block = (i * 5) % 64, count = 1 + i % 4;
        if (block + count > 64)
            block = 64 - count;
        CHECK(pread(fd, page, (size_t)count * PAGE, (off_t)block * PAGE) == (ssize_t)(count * PAGE));
        serialize();
        for (unsigned j = 0; j < count; j++)
            SAME(call(page + (size_t)j * PAGE), block + j);
    }
    close(fd);
}

#define RUN(name) (fprintf(stderr, "%s\n", #name), name())

int main(int argc, char **argv) {
    RUN(immediates);
    RUN(own_block);
    RUN(own_string);
    RUN(straddle);
    RUN(aliases);
    RUN(kernel_writes);
    RUN(protections);
    RUN(copies);
    RUN(threads);
    RUN(races);
    if (argc > 1)
        disk(argv[1]);
    return 0;
}
