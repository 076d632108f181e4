/* Vector state across context switches: processes and threads with different
 * contents of all vector registers (as wide as the processor has them) give
 * way to each other, take signals and page faults, and must find their own
 * contents again. */
#include "check.h"
#include <cpuid.h>
#include <immintrin.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PROCESSES 6
#define THREADS 3
#define ROUNDS 1500

static volatile sig_atomic_t alarms;

/* A handler that uses the registers for something else. */
__attribute__((target("avx"))) static void on_signal(int signal) {
    (void)signal;
    __asm__ volatile("vpcmpeqd %%xmm0, %%xmm0, %%xmm0\n vmovaps %%xmm0, %%xmm7\n"
                     "vzeroall\n vpcmpeqd %%xmm15, %%xmm15, %%xmm15" ::: "xmm0", "xmm7", "xmm15");
    alarms++;
}

#define EACH16(m) m(0) m(1) m(2) m(3) m(4) m(5) m(6) m(7) m(8) m(9) m(10) m(11) m(12) m(13) m(14) m(15)
#define EACH32(m) EACH16(m) m(16) m(17) m(18) m(19) m(20) m(21) m(22) m(23) m(24) m(25) m(26) m(27) m(28) m(29) m(30) m(31)
#define LOAD_Y(n) "vmovdqu 32*" #n "(%[in]), %%ymm" #n "\n"
#define STORE_Y(n) "vmovdqu %%ymm" #n ", 32*" #n "(%[out])\n"
#define LOAD_Z(n) "vmovdqu64 64*" #n "(%[in]), %%zmm" #n "\n"
#define STORE_Z(n) "vmovdqu64 %%zmm" #n ", 64*" #n "(%[out])\n"

/* sched_yield in between, as a plain system call: nothing else may run. */
#define YIELD "mov $24, %%eax\n syscall\n"

static void round_avx(const void *in, void *out, char *touch) {
    __asm__ volatile(EACH16(LOAD_Y) YIELD "incb (%[touch])\n" YIELD EACH16(STORE_Y) "vzeroupper"
                     : : [in] "r"(in), [out] "r"(out), [touch] "r"(touch)
                     : "rax", "rcx", "r11", "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5",
                       "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
}

__attribute__((target("avx512f"))) static void round_avx512(const void *in, void *out, char *touch) {
    unsigned mask_in = *(const unsigned *)in & 0xFFFF, mask_out;
    __asm__ volatile(EACH32(LOAD_Z) "kmovw %[mask_in], %%k3\n" YIELD "incb (%[touch])\n" YIELD EACH32(STORE_Z)
                     "kmovw %%k3, %[mask_out]\n vzeroupper"
                     : [mask_out] "=r"(mask_out)
                     : [in] "r"(in), [out] "r"(out), [touch] "r"(touch), [mask_in] "r"(mask_in)
                     : "rax", "rcx", "r11", "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5",
                       "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15",
                       "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24", "xmm25",
                       "xmm26", "xmm27", "xmm28", "xmm29", "xmm30", "xmm31", "k3");
    SAME(mask_out, mask_in);
}

static void *worker(void *argument) {
    unsigned long long state = (unsigned long)argument * 77 + 1;
    size_t size = __builtin_cpu_supports("avx512f") ? 64 * 32 : 32 * 16;
    unsigned char in[64 * 32], out[64 * 32];
    long double sum = 0;
    for (int round = 0; round < ROUNDS; round++) {
        for (size_t i = 0; i < size; i += 8) {
            unsigned long long value = next_random(&state);
            memcpy(in + i, &value, 8);
        }
        memset(out, 0, size);
        /* A page fault between the yields. */
        char *touch = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(touch != MAP_FAILED);
        if (size == 64 * 32)
            round_avx512(in, out, touch);
        else
            round_avx(in, out, touch);
        munmap(touch, 4096);
        CHECK(memcmp(in, out, size) == 0);
        /* And the x87 stack, over a yield. */
        long double kept;
        __asm__ volatile("fildl %[n]\n fldpi\n fmulp\n" YIELD "fstpt %[kept]"
                         : [kept] "=m"(kept)
                         : [n] "m"(round)
                         : "rax", "rcx", "r11", "memory", "st", "st(1)");
        sum += kept;
    }
    long double wanted = 0;
    for (int round = 0; round < ROUNDS; round++)
        wanted += 3.141592653589793238462643383279502884L * round;
    CHECK(sum - wanted < 1e-6L && wanted - sum < 1e-6L);
    return NULL;
}

int main(void) {
    if (!__builtin_cpu_supports("avx")) {
        puts("the processor has no AVX");
        return 1;
    }
    for (int process = 0; process < PROCESSES; process++) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (child)
            continue;
        struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
        sigaction(SIGALRM, &action, NULL);
        ualarm(900 + 100 * process, 3000);
        pthread_t threads[THREADS];
        for (long thread = 0; thread < THREADS; thread++)
            CHECK(pthread_create(&threads[thread], NULL, worker, (void *)(process * THREADS + thread)) == 0);
        for (int thread = 0; thread < THREADS; thread++)
            pthread_join(threads[thread], NULL);
        CHECK(alarms > 0);
        exit(0);
    }
    int failed = 0, status;
    while (wait(&status) > 0)
        failed += status != 0;
    printf("%d of %d processes failed\n", failed, PROCESSES);
    return failed != 0;
}
