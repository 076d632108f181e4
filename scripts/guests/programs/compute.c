/* Computations whose results are printed, for comparison with the host's. It
 * is built for x86-64 and for i386, where it also looks at what only 32-bit
 * programs have: int $0x80, segments of its own, far jumps, ENTER, decimal
 * instructions. */
#define _GNU_SOURCE
#include "check.h"
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

static void integers(void) {
    unsigned long long state = 1;
    uint64_t a = 1, b = 2, hash = FNV;
    for (int i = 0; i < 200000; i++) {
        uint64_t r = next_random(&state);
        a = a * r + (b >> (r & 63));
        b ^= a % (r | 1);
        b += (uint64_t)((int64_t)a / (int64_t)((r >> 40) + 1));
        a = a << (r & 31) | a >> (64 - (r & 31) - 1);
        uint32_t low = a, other = r;
        low = low / (other | 1) + low % (other | 1);
        int16_t word = (int16_t)b * (int16_t)r;
        hash = fnv(hash, &low, 4);
        hash = fnv(hash, &word, 2);
        hash += __builtin_popcountll(a) + __builtin_clzll(b | 1) + __builtin_ctzll(a | 1ULL << 63);
    }
    printf("integers %016llx %016llx %016llx\n", (unsigned long long)a, (unsigned long long)b,
           (unsigned long long)hash);
}

static void floats(void) {
    double x = 0.5, sum = 0;
    long double y = 1;
    float z = 1;
    uint64_t hash = FNV;
    for (int i = 1; i < 60000; i++) {
        x = 3.99 * x * (1 - x);
        sum += sqrt(x) / i;
        y = y * 1.0000001L + 1.0L / i;
        z = z * 1.0001f + (float)x - truncf(z);
        int whole = (int)(x * 1e6);
        hash = fnv(hash, &whole, sizeof whole);
        if (i % 100 == 0) {
            sum += sin(x) * exp(-x) + log(1 + x) + atan2(x, i);
            y += sinl(y) + expl(-y);
        }
    }
    printf("floats %a %La %a %016llx\n", sum, y, (double)z, (unsigned long long)hash);
}

static int ascending(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static void memory(void) {
    enum { COUNT = 40000 };
    uint32_t *data = malloc(COUNT * 4), *copy = malloc(COUNT * 4);
    unsigned long long state = 3;
    for (int i = 0; i < COUNT; i++)
        data[i] = next_random(&state);
    for (int size = 1; size < 3000; size = size * 5 / 4 + 1)
        memmove((char *)data + size / 3, (char *)data + size, size * 3);
    memcpy(copy, data, COUNT * 4);
    qsort(copy, COUNT, 4, ascending);
    printf("memory %016llx %016llx\n", fnv(FNV, data, COUNT * 4), fnv(FNV, copy, COUNT * 4));
    free(data), free(copy);
}

static jmp_buf back;
static volatile uintptr_t address;
static void on_fault(int signal, siginfo_t *info, void *context) {
    (void)context;
    address = (uintptr_t)info->si_addr;
    siglongjmp(back, signal);
}

static void faults(void) {
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGFPE, &action, NULL);
    char *page = mmap(NULL, 8192, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int count = 0;
    for (volatile int i = 0; i < 1000; i++) {
        int signal = sigsetjmp(back, 1);
        if (!signal) {
            if (i % 2)
                *(volatile char *)(page + i) = 1;
            else {
                volatile int zero = 0;
                zero = i / zero;
            }
            CHECK(0);
        }
        CHECK(signal == (i % 2 ? SIGSEGV : SIGFPE));
        if (i % 2)
            CHECK(address == (uintptr_t)page + i);
        count++;
    }
    munmap(page, 8192);
    printf("faults %d\n", count);
}

static __thread unsigned own;
static void *thread(void *argument) {
    unsigned id = (unsigned)(uintptr_t)argument;
    for (int i = 0; i < 200000; i++)
        own += id;
    return (void *)(uintptr_t)own;
}

static void threads(void) {
    pthread_t all[4];
    for (uintptr_t i = 0; i < 4; i++)
        CHECK(pthread_create(&all[i], NULL, thread, (void *)i) == 0);
    unsigned long sum = 0;
    for (int i = 0; i < 4; i++) {
        void *result;
        pthread_join(all[i], &result);
        sum += (uintptr_t)result;
    }
    printf("threads %lu\n", sum);
}

static void forks(void) {
    int sum = 0;
    for (int i = 0; i < 100; i++) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (!child)
            _exit(i);
        int status;
        CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status));
        sum += WEXITSTATUS(status);
    }
    printf("forks %d\n", sum);
}

#ifdef __i386__
struct descriptor {
    unsigned entry_number, base_addr, limit, flags;
};

/* Whether reading there faults. */
__attribute__((noinline)) static int outside(unsigned selector, unsigned at) {
    if (sigsetjmp(back, 1)) {
        __asm__ volatile("mov %%ds, %%eax\n mov %%eax, %%es" ::: "eax");
        return 1;
    }
    __asm__ volatile("mov %0, %%es\n movzbl %%es:(%1), %%eax" : : "r"(selector), "r"(at) : "eax");
    return 0;
}

/* Reads through segments of its own: base, limit, the fault behind it. */
static void segments(void) {
    static unsigned char data[256];
    for (int i = 0; i < 256; i++)
        data[i] = i ^ 0x5a;
    unsigned sum = 0;
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGSEGV, &action, NULL);
    for (unsigned i = 0; i < 64; i++) {
        /* 32-bit data, writable, a limit in bytes. */
        struct descriptor entry = {i % 8, (uintptr_t)data + i, 99, 0x1 | 0x40};
        CHECK(syscall(SYS_modify_ldt, 1, &entry, sizeof entry) == 0);
        unsigned selector = (i % 8) << 3 | 7, got;
        __asm__ volatile("mov %%gs, %%edx\n mov %1, %%gs\n movzbl %%gs:(%2), %0\n mov %%edx, %%gs"
                         : "=&r"(got)
                         : "r"(selector), "r"(50)
                         : "edx");
        SAME(got, data[i + 50]);
        sum = sum * 7 + got;
        CHECK(outside(selector, 100));
        sum++;
    }
    printf("segments %08x\n", sum);
}

/* 32-bit code calls 64-bit code by a far call, and comes back. */
static void far(void) {
    unsigned char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    /* movabs $0x123456789abcdef0, %rax; mov %rax, %r8; mov %r8, %rdx; shr $32, %rdx; lret */
    static const unsigned char code[] = {0x48, 0xb8, 0xf0, 0xde, 0xbc, 0x9a, 0x78, 0x56, 0x34, 0x12, 0x49, 0x89,
                                         0xc0, 0x4c, 0x89, 0xc2, 0x48, 0xc1, 0xea, 0x20, 0xcb};
    memcpy(page, code, sizeof code);
    struct {
        uint32_t offset;
        uint16_t selector;
    } __attribute__((packed)) pointer = {(uintptr_t)page, 0x33};
    for (int i = 0; i < 1000; i++) {
        unsigned low, high;
        __asm__ volatile("lcall *%2" : "=a"(low), "=d"(high) : "m"(pointer) : "memory", "cc", "ecx");
        SAME(low, 0x9abcdef0);
        SAME(high, 0x12345678);
    }
    munmap(page, 4096);
    puts("far");
}

static void old(void) {
    unsigned hash = 0;
    for (unsigned i = 0; i < 65536; i += 7) {
        unsigned a = i, flags;
        __asm__ volatile("add %%ah, %%al\n daa\n pushf\n pop %1" : "+a"(a), "=r"(flags) : : "cc");
        hash = hash * 33 + (a & 0xFFFF) + (flags & 0xD5);
        a = i;
        __asm__ volatile("sub %%ah, %%al\n das\n pushf\n pop %1" : "+a"(a), "=r"(flags) : : "cc");
        hash = hash * 33 + (a & 0xFFFF) + (flags & 0xD5);
        a = i;
        __asm__ volatile("add $3, %%al\n aaa\n" : "+a"(a) : : "cc");
        hash = hash * 33 + (a & 0xFFFF);
        a = i;
        __asm__ volatile("aam $7\n aad $9" : "+a"(a) : : "cc");
        hash = hash * 33 + (a & 0xFFFF);
    }
    unsigned before, after, inner;
    __asm__ volatile("mov %%esp, %0\n pusha\n popa\n enter $16, $0\n mov %%esp, %1\n leave\n mov %%esp, %2"
                     : "=&a"(before), "=&c"(inner), "=&d"(after)
                     :
                     : "memory");
    SAME(before, after);
    SAME(before - inner, 20);
    int bounds[2] = {3, 9};
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGSEGV, &action, NULL);
    __asm__ volatile("bound %0, %1" : : "r"(5), "m"(bounds) : "memory");
    if (!sigsetjmp(back, 1)) {
        __asm__ volatile("bound %0, %1" : : "r"(10), "m"(bounds) : "memory");
        CHECK(0);
    }
    if (!sigsetjmp(back, 1)) {
        __asm__ volatile("mov $0x7fffffff, %%eax\n inc %%eax\n into" : : : "eax", "cc", "memory");
        CHECK(0);
    }
    printf("old %08x\n", hash);
}

static void calls(void) {
    unsigned results = 0;
    for (int i = 0; i < 20000; i++) {
        int answer;
        __asm__ volatile("int $0x80" : "=a"(answer) : "a"(SYS_close), "b"(1000 + i) : "memory");
        results += answer == -EBADF;
        /* By the vdso, which uses SYSENTER or SYSCALL. */
        results += syscall(SYS_close, 1000 + i) == -1 && errno == EBADF;
    }
    printf("calls %u\n", results);
}
#endif

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    integers();
    floats();
    memory();
    faults();
    threads();
    forks();
#ifdef __i386__
    segments();
    far();
    old();
    calls();
#endif
    return 0;
}
