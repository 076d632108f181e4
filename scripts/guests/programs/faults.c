/* Precise faults: each kind of fault at each place of a block of instructions,
 * all between fixed addresses. What the signal's handler sees (siginfo,
 * registers, flags, error code) is printed; it must be what the host's own
 * processor gives. Every case runs several times, so that the code is met
 * fresh, translated and overwritten. */
#define _GNU_SOURCE
#include "check.h"
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#define CODE 0x200000000UL     /* where blocks are put */
#define DATA 0x210000000UL     /* two pages, and a hole behind */
#define READ_ONLY 0x230000000UL
#define STACK 0x240000000UL    /* a page, holes around it */
#define HOLE 0x250000000UL
#define PAGE 4096UL
#define ROUNDS 4

/* Instructions by their bytes: between the labels 1 and 2 of each, listed in
 * `section` with a name. */
#define BYTES(section, text)                                 \
    __asm__(".pushsection .text\n1: " text "\n2:\n"          \
            ".pushsection " section ",\"aw\"\n"              \
            ".quad 1b, 2b, 3f\n.popsection\n.popsection\n"   \
            ".pushsection .rodata\n3: .asciz \"" text "\"\n.popsection")

/* The block: all leave all flags defined. RBX leads to data, RBP to its end,
 * RSI to where there is nothing, RDI to what cannot be written. */
#define PLAIN(text) BYTES("plain", text)
PLAIN("add %rcx, %rax");
PLAIN("mov %rax, 8(%rbx)");
PLAIN("adc $0x7fffffff, %rdx");
PLAIN("lea 3(%rax,%rdx,4), %r8");
PLAIN("sub %r8d, %r9d");
PLAIN("setc %r10b");
PLAIN("sbb 8(%rbx), %r11");
PLAIN("inc %r12");
PLAIN("push %r12");
PLAIN("cmp %r12, %r13");
PLAIN("cmovl %r13, %r14");
PLAIN("not %r14");
PLAIN("pop %r15");
PLAIN("neg %r15w");
PLAIN("mov %ah, %cl");
PLAIN("xadd %rcx, 16(%rbx)");
PLAIN("bswap %r9");
PLAIN("add %r9b, 17(%rbx)");
PLAIN("stc");
PLAIN("rorx $7, %r9, %r10");
PLAIN("sbb %eax, %eax");
PLAIN("cmpxchg %rdx, (%rbx)");
PLAIN("dec %dl");
PLAIN("movzwl (%rbx), %r12d");
PLAIN("cmc");
PLAIN("xchg %r8, 24(%rbx)");

#define FAULT(text) BYTES("faults", text)
FAULT("mov (%rsi), %rax");
FAULT("mov %rax, 5(%rsi)");
FAULT("mov %r8b, (%rdi)");
FAULT("addq $1, (%rdi)");
FAULT("lock addq $1, (%rdi)");
FAULT("xchg %r9, (%rdi)");
FAULT("cmpxchg %r10, (%rdi)");
FAULT("lock cmpxchg16b (%rdi)");
FAULT("lock cmpxchg16b 8(%rbx)");
FAULT("xadd %rax, (%rsi)");
FAULT("adc -4(%rbp), %rax");
FAULT("mov %rdx, -1(%rbp)");
FAULT("sub %rdx, -7(%rbp)");
FAULT("movups -8(%rbp), %xmm3");
FAULT("movaps 4(%rbx), %xmm3");
FAULT("vmovups %ymm2, -31(%rbp)");
FAULT("vaddps (%rsi), %ymm1, %ymm2");
FAULT("push (%rsi)");
FAULT("pop (%rdi)");
FAULT("call *(%rsi)");
FAULT("call *%rsi");
FAULT("jmp *%rbx");
FAULT("mov $0x10, %rsp; push %rax");
FAULT("mov %rdi, %rsp; call 1b");
FAULT("mov %rsi, %rsp; ret");
FAULT("movabs $0x8000000000000000, %rcx; mov (%rcx), %rax");
FAULT("movabs $0x8000000000000000, %rcx; jmp *%rcx");
FAULT("movabs $0x8000000000000000, %rcx; push %rcx; ret");
FAULT("movabs $0x8000000000000000, %rsp; push %rcx");
FAULT("lea -24(%rbp), %rdi; mov $9, %ecx; rep stosq");
FAULT("mov %rbx, %rdi; lea -13(%rbp), %rsi; mov $40, %ecx; rep movsb");
FAULT("lea -20(%rbp), %rsi; mov %rbx, %rdi; mov $7, %ecx; rep lodsl");
FAULT("lea -3(%rbp), %rdi; xor %eax, %eax; mov $99, %ecx; repne scasb");
FAULT("std; lea 40(%rbx), %rsi; lea -5(%rbx), %rdi; mov $4000, %ecx; rep movsb");
FAULT("xor %ecx, %ecx; div %rcx");
FAULT("mov $-1, %rcx; mov $0x8000000000000000, %rax; mov %rax, %rdx; sar $63, %rdx; test %rdx, %rdx; idiv %rcx");
FAULT("mov $1, %cl; mov $0x4000, %ax; test %ax, %ax; idiv %cl");
FAULT("mov $2, %edx; mov $2, %ecx; test %ecx, %ecx; div %ecx");
FAULT("divq (%rsi)");
FAULT("ud2");
FAULT("int3");
FAULT("int $0x40");
FAULT("int $3");
FAULT("hlt");
FAULT("cli");
FAULT("in %dx, %al");
FAULT("outsb");
FAULT("mov %cr0, %rax");
FAULT("rdmsr");
FAULT("invlpg (%rbx)");
FAULT("lgdt (%rbx)");
FAULT(".byte 0xf0, 0x01, 0xc0");
FAULT(".byte 0x06");
FAULT("mov $0x33, %eax; mov %eax, %ss");
FAULT("mov $0xfff0, %eax; mov %eax, %fs");
FAULT("fninit; push $0; fldcw (%rsp); fld1; fldz; fdivrp; test %eax, %eax; fwait");
FAULT("push $0x1d80; ldmxcsr (%rsp); xorps %xmm0, %xmm0; mov $1, %eax; cvtsi2ss %eax, %xmm1; test %eax, %eax; divss %xmm0, %xmm1");
FAULT("push $0x1f00; ldmxcsr (%rsp); mov $-1, %eax; cvtsi2ss %eax, %xmm1; test %eax, %eax; sqrtps %xmm1, %xmm1");
FAULT("pushfq; orl $0x40000, (%rsp); popfq; mov 1(%rbx), %eax");
FAULT("pushfq; orl $0x40000, (%rsp); popfq; cmp %ax, 3(%rbx)");
FAULT("pushfq; orl $0x40000, (%rsp); popfq; addl $2, 2(%rbx)");
FAULT("pushfq; orl $0x40000, (%rsp); popfq; cmp %eax, 4(%rbx); pushw $1; push %rax");
FAULT("pushfq; orl $0x100, (%rsp); popfq; add %rax, %rdx; nop");
FAULT("xor %eax, %eax; xgetbv; mov $1, %ecx; test %ecx, %ecx; xsetbv");

struct entry {
    const char *start, *end, *name;
};
extern const struct entry __start_plain[], __stop_plain[], __start_faults[], __stop_faults[];

/* Loads all registers and jumps; `leave` comes back. */
unsigned long initial[16], saved_rsp, target = CODE;
void enter(void);
void leave(void);
__asm__(".text\n"
        "enter:\n push %rbx\n push %rbp\n push %r12\n push %r13\n push %r14\n push %r15\n"
        " mov %rsp, saved_rsp(%rip)\n lea initial(%rip), %rsp\n"
        " popfq\n pop %rax\n pop %rcx\n pop %rdx\n pop %rbx\n pop %rbp\n pop %rsi\n pop %rdi\n"
        " pop %r8\n pop %r9\n pop %r10\n pop %r11\n pop %r12\n pop %r13\n pop %r14\n pop %r15\n"
        " movabs $0x240000800, %rsp\n jmp *target(%rip)\n"
        "leave:\n mov saved_rsp(%rip), %rsp\n"
        " pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbp\n pop %rbx\n"
        " cld\n push $0x1f80\n ldmxcsr (%rsp)\n pop %rax\n fninit\n vzeroupper\n ret\n");

static struct {
    int signal, code, tick;
    unsigned long address, registers[17], flags, trap, error, cr2;
    int on_stack;
} seen;
static char alternate[65536];

static void handler(int signal, siginfo_t *info, void *context) {
    ucontext_t *user = context;
    greg_t *g = user->uc_mcontext.gregs;
    char here;
    seen.on_stack = &here >= alternate && &here < alternate + sizeof alternate;
    seen.signal = signal;
    seen.code = info->si_code;
    seen.address = (unsigned long)info->si_addr;
    for (int i = 0; i <= REG_RIP; i++)
        seen.registers[i] = g[i];
    seen.flags = g[REG_EFL];
    seen.trap = g[REG_TRAPNO];
    seen.error = g[REG_ERR];
    seen.cr2 = g[REG_TRAPNO] == 14 ? g[REG_CR2] : 0;
    g[REG_RIP] = (greg_t)leave;
    /* Without TF, AC and DF. */
    g[REG_EFL] &= ~0x40500L;
    seen.tick++;
}

static char *put(char *at, const struct entry *entry) {
    size_t length = entry->end - entry->start;
    memcpy(at, entry->start, length);
    return at + length;
}

static void map(unsigned long address, size_t size, int protection) {
    CHECK(mmap((void *)address, size, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) ==
          (void *)address);
}

static void prepare(void) {
    unsigned long long state = 42;
    initial[0] = 0x202;
    for (int i = 1; i < 16; i++)
        initial[i] = next_random(&state);
    initial[4] = DATA;
    initial[5] = DATA + 2 * PAGE;
    initial[6] = HOLE + 0x123;
    initial[7] = READ_ONLY + 0x10;
    for (unsigned long *word = (unsigned long *)DATA; word < (unsigned long *)(DATA + 2 * PAGE); word++)
        *word = next_random(&state);
    memset((void *)STACK, 0, PAGE);
}

int main(int argc, char **argv) {
    int verbose = argc > 1 && strcmp(argv[1], "-v") == 0;
    stack_t stack = {.ss_sp = alternate, .ss_size = sizeof alternate};
    sigaltstack(&stack, NULL);
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
        sigaction(signals[i], &action, NULL);
    map(CODE, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC);
    map(DATA, 2 * PAGE, PROT_READ | PROT_WRITE);
    map(READ_ONLY, PAGE, PROT_READ);
    map(STACK, PAGE, PROT_READ | PROT_WRITE);

    int places = __stop_plain - __start_plain;
    for (const struct entry *fault = __start_faults; fault < __stop_faults; fault++) {
        printf("%s\n", fault->name);
        for (int place = 0; place <= places; place++) {
            char *at = (char *)CODE, *faulting;
            for (int i = 0; i < place; i++)
                at = put(at, __start_plain + i);
            faulting = at;
            at = put(at, fault);
            for (int i = place; i < places; i++)
                at = put(at, __start_plain + i);
            *at++ = 0xcc;
            unsigned long long first = 0;
            for (int round = 0; round < ROUNDS; round++) {
                prepare();
                memset(&seen, 0, sizeof seen);
                enter();
                CHECK(seen.tick == 1 && seen.on_stack);
                unsigned long long hash = fnv(FNV, &seen, sizeof seen);
                hash = fnv(hash, (void *)DATA, 2 * PAGE);
                hash = fnv(hash, (void *)STACK, PAGE);
                if (round == 0)
                    first = hash;
                if (round == 0 || hash != first)
                    printf("  %2d %s: signal %d code %d address %#lx rip %+ld flags %#lx trap %lu error %#lx cr2 %#lx, %016llx\n",
                           place, round ? "CHANGED" : "at", seen.signal, seen.code, seen.address,
                           (long)(seen.registers[REG_RIP] - (unsigned long)faulting), seen.flags, seen.trap,
                           seen.error, seen.cr2, hash);
                if (verbose)
                    for (int i = 0; i <= REG_RIP; i++)
                        printf("     %2d %016lx\n", i, seen.registers[i]);
            }
        }
    }
    return 0;
}
