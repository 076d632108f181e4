/* Single steps by TF through user code: where each step ends, and the
 * registers there. Printed; it must be what the host's own processor gives. */
#define _GNU_SOURCE
#include "check.h"
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#define CODE 0x200000000UL
#define DATA 0x210000000UL

/* Between varies and varies_end, registers differ from run to run. */
extern const char code_start[], code_varies[], code_varies_end[], code_end[];
__asm__(".text\n"
        "code_start:\n"
        " push %rbx\n push %rbp\n movabs $0x210000000, %rbx\n"
        " mov $1, %eax\n xor %ecx, %ecx\n xor %edx, %edx\n xor %esi, %esi\n xor %edi, %edi\n"
        " xor %r8d, %r8d\n xor %r9d, %r9d\n xor %r10d, %r10d\n xor %r11d, %r11d\n mov $0, %ebp\n"
        " pushfq\n orl $0x100, (%rsp)\n popfq\n"
        /* From behind the next instruction on every one is stepped over. */
        " nop\n add $5, %rax\n"
        "1: dec %eax\n jnz 1b\n"
        /* The flags that are pushed contain TF. */
        " pushfq\n pop %rdx\n and $0x100, %edx\n"
        " call 2f\n jmp 3f\n"
        "2: lea 8(%rbx), %rdi\n lea 64(%rbx), %rsi\n mov $4, %ecx\n ret\n"
        /* Each iteration is a step. */
        "3: rep movsb\n xor %eax, %eax\n mov $3, %ecx\n rep stosq\n"
        " xor %ecx, %ecx\n rep movsb\n"
        " lea (%rbx), %rdi\n mov $9, %ecx\n xor %eax, %eax\n repne scasb\n"
        " lock xadd %rax, 16(%rbx)\n lea 4f(%rip), %r8\n jmp *%r8\n ud2\n"
        "4: push %r8\n addq $(5f-4b), (%rsp)\n ret\n ud2\n"
        /* System calls that there are not. */
        "5: mov $501, %eax\n syscall\n xor %eax, %eax\n mov $0x10000000, %ecx\n xor %r11d, %r11d\n"
        " mov $500, %eax\n add $500, %eax\n syscall\n xor %ecx, %ecx\n nop\n xor %r11d, %r11d\n"
        " movups (%rbx), %xmm0\n movups %xmm0, 32(%rbx)\n fld1\n fstpl 48(%rbx)\n"
        "code_varies:\n rdtsc\n xor %eax, %eax\n xor %edx, %edx\n cpuid\n xor %eax, %eax\n xor %ebx, %ebx\n xor %ecx, %ecx\n xor %edx, %edx\n"
        "code_varies_end:\n"
        /* A load of SS holds the step back until behind the next instruction. */
        " mov %ss, %eax\n mov %eax, %ss\n nop\n nop\n"
        " push %rax\n pop %rax\n xor %eax, %eax\n"
        " pushfq\n andl $~0x100, (%rsp)\n popfq\n nop\n nop\n pop %rbp\n pop %rbx\n ret\n"
        "code_end:\n");

static unsigned long steps, base;

static void handler(int signal, siginfo_t *info, void *context) {
    greg_t *g = ((ucontext_t *)context)->uc_mcontext.gregs;
    unsigned long registers[] = {g[REG_RAX], g[REG_RCX], g[REG_RDX], g[REG_RBX], g[REG_RSI],
                                 g[REG_RDI], g[REG_R8],  g[REG_R9],  g[REG_R10], g[REG_R11], g[REG_RSP] - base};
    if (!steps) {
        base = g[REG_RSP];
        registers[10] = 0;
    }
    size_t at = g[REG_RIP] - CODE;
    int varies = at > (size_t)(code_varies - code_start) && at < (size_t)(code_varies_end - code_start);
    printf("%3lu signal %d code %d trap %lld rip %#llx address %#lx flags %#llx, %016llx\n", steps++, signal,
           info->si_code, g[REG_TRAPNO], g[REG_RIP], (unsigned long)info->si_addr, g[REG_EFL],
           fnv(FNV, registers, varies ? 0 : sizeof registers));
}

int main(void) {
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO};
    sigaction(SIGTRAP, &action, NULL);
    CHECK(mmap((void *)CODE, 4096, PROT_READ | PROT_WRITE | PROT_EXEC,
               MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == (void *)CODE);
    CHECK(mmap((void *)DATA, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1,
               0) == (void *)DATA);
    memcpy((void *)CODE, code_start, code_end - code_start);
    for (int round = 0; round < 20; round++) {
        memset((void *)DATA, 7, 4096);
        ((void (*)(void))CODE)();
        printf("round %d: %lu steps, %016llx\n", round, steps, fnv(FNV, (void *)DATA, 4096));
        steps = 0;
    }
    return 0;
}
