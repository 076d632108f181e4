/* BPF programs, which the guest's kernel compiles: random arithmetic compared
 * with an interpreter here, loops, maps, tail calls, calls between programs'
 * functions, filters on a socket and on system calls. */
#define _GNU_SOURCE
#include "check.h"
#include <linux/bpf.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PROGRAMS 150
#define LENGTH 120

static long bpf(int command, union bpf_attr *attr) { return syscall(SYS_bpf, command, attr, sizeof *attr); }

static char words[1 << 18];

static int load(const struct bpf_insn *code, size_t count) {
    union bpf_attr attr = {.prog_type = BPF_PROG_TYPE_SCHED_CLS,
                           .insns = (uint64_t)code,
                           .insn_cnt = count,
                           .license = (uint64_t) "GPL",
                           .log_buf = (uint64_t)words,
                           .log_size = sizeof words,
                           .log_level = 1};
    int fd = bpf(BPF_PROG_LOAD, &attr);
    if (fd < 0)
        fprintf(stderr, "the kernel refuses a program: %s\n%s\n", strerror(errno), words);
    CHECK(fd >= 0);
    /* Compiled, not interpreted. */
    struct bpf_prog_info info = {0};
    union bpf_attr ask = {.info = {.bpf_fd = fd, .info_len = sizeof info, .info = (uint64_t)&info}};
    CHECK(bpf(BPF_OBJ_GET_INFO_BY_FD, &ask) == 0);
    CHECK(info.jited_prog_len > 0);
    return fd;
}

static uint32_t run(int fd, void *packet, uint32_t size, uint32_t repeat) {
    union bpf_attr attr = {.test = {.prog_fd = fd, .data_in = (uint64_t)packet, .data_size_in = size, .repeat = repeat}};
    CHECK(bpf(BPF_PROG_TEST_RUN, &attr) == 0);
    return attr.test.retval;
}

#define INSN(c, d, s, o, i) ((struct bpf_insn){.code = (c), .dst_reg = (d), .src_reg = (s), .off = (o), .imm = (i)})
#define MOV(d, s) INSN(BPF_ALU64 | BPF_MOV | BPF_X, d, s, 0, 0)
#define SET(d, i) INSN(BPF_ALU64 | BPF_MOV | BPF_K, d, 0, 0, i)
#define CALL(function) INSN(BPF_JMP | BPF_CALL, 0, 0, 0, function)
#define EXIT() INSN(BPF_JMP | BPF_EXIT, 0, 0, 0, 0)
#define WIDE(d, s, value)                                            \
    INSN(BPF_LD | BPF_DW | BPF_IMM, d, s, 0, (int32_t)(value)),      \
        INSN(0, 0, 0, 0, (int32_t)((uint64_t)(value) >> 32))

static const uint8_t OPERATIONS[] = {BPF_ADD, BPF_SUB, BPF_MUL, BPF_DIV, BPF_OR,  BPF_AND,
                                     BPF_LSH, BPF_RSH, BPF_NEG, BPF_MOD, BPF_XOR, BPF_MOV, BPF_ARSH};

/* What one arithmetic instruction gives. */
static uint64_t compute(uint8_t code, uint64_t a, uint64_t b) {
    int wide = BPF_CLASS(code) == BPF_ALU64;
    unsigned bits = wide ? 64 : 32;
    if (!wide)
        a = (uint32_t)a, b = (uint32_t)b;
    uint64_t r;
    switch (BPF_OP(code)) {
    case BPF_ADD: r = a + b; break;
    case BPF_SUB: r = a - b; break;
    case BPF_MUL: r = a * b; break;
    case BPF_DIV: r = b ? a / b : 0; break;
    case BPF_MOD: r = b ? a % b : a; break;
    case BPF_OR: r = a | b; break;
    case BPF_AND: r = a & b; break;
    case BPF_XOR: r = a ^ b; break;
    case BPF_LSH: r = a << (b & (bits - 1)); break;
    case BPF_RSH: r = a >> (b & (bits - 1)); break;
    case BPF_ARSH: r = wide ? (uint64_t)((int64_t)a >> (b & 63)) : (uint64_t)((int32_t)a >> (b & 31)); break;
    case BPF_NEG: r = -a; break;
    default: r = b; break;
    }
    return wide ? r : (uint32_t)r;
}

/* Random arithmetic on r0, r2..r5, r7..r9, with a branch now and then. */
static void arithmetic(void) {
    static const uint8_t registers[] = {0, 2, 3, 4, 5, 7, 8, 9};
    unsigned long long state = 2026;
    for (int number = 0; number < PROGRAMS; number++) {
        struct bpf_insn code[LENGTH + 64];
        uint64_t r[11] = {0};
        size_t n = 0;
        for (int i = 0; i < 8; i++) {
            uint64_t value = next_random(&state);
            struct bpf_insn both[] = {WIDE(registers[i], 0, value)};
            code[n++] = both[0], code[n++] = both[1];
            r[registers[i]] = value;
        }
        for (int skip = 0; n < LENGTH;) {
            uint64_t random = next_random(&state);
            uint8_t d = registers[random & 7], s = registers[random >> 3 & 7];
            uint8_t op = OPERATIONS[(random >> 8) % sizeof OPERATIONS];
            uint8_t class = random >> 16 & 1 ? BPF_ALU64 : BPF_ALU;
            int32_t immediate = (int32_t)(random >> 32);
            int by_register = random >> 17 & 1;
            if (!skip && (random >> 20 & 15) == 0 && n + 2 < LENGTH) {
                /* If d > s (unsigned), over the next instruction. */
                code[n++] = INSN(BPF_JMP | BPF_JGT | BPF_X, d, s, 1, 0);
                skip = 1 + (r[d] > r[s]);
                continue;
            }
            if (op == BPF_LSH || op == BPF_RSH || op == BPF_ARSH)
                immediate = (uint32_t)immediate % (class == BPF_ALU64 ? 64 : 32);
            if ((op == BPF_DIV || op == BPF_MOD) && !immediate)
                immediate = 7;
            if (op == BPF_NEG)
                by_register = 0, immediate = 0;
            code[n++] = INSN(class | op | (by_register ? BPF_X : BPF_K), d, by_register ? s : 0, 0, by_register ? 0 : immediate);
            uint64_t b = by_register ? r[s] : (uint64_t)(int64_t)immediate;
            if (skip != 2)
                r[d] = compute(class | op, r[d], b);
            skip = 0;
        }
        /* All of them into the result. */
        for (int i = 1; i < 8; i++) {
            code[n++] = INSN(BPF_ALU64 | BPF_XOR | BPF_X, 0, registers[i], 0, 0);
            r[0] ^= r[registers[i]];
        }
        code[n++] = MOV(1, 0);
        code[n++] = INSN(BPF_ALU64 | BPF_RSH | BPF_K, 1, 0, 0, 32);
        code[n++] = INSN(BPF_ALU64 | BPF_XOR | BPF_X, 0, 1, 0, 0);
        code[n++] = EXIT();
        int fd = load(code, n);
        char packet[64] = {0};
        uint32_t result = run(fd, packet, sizeof packet, 1 + number % 50);
        SAME(result, (uint32_t)(r[0] ^ r[0] >> 32));
        close(fd);
    }
}

/* A loop over a packet's bytes, and a count in a map. */
static void loops(void) {
    union bpf_attr create = {.map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 8, .max_entries = 4};
    int map = bpf(BPF_MAP_CREATE, &create);
    CHECK(map >= 0);
    struct bpf_insn code[] = {
        MOV(6, 1),
        INSN(BPF_LDX | BPF_W | BPF_MEM, 7, 6, offsetof(struct __sk_buff, data), 0),
        INSN(BPF_LDX | BPF_W | BPF_MEM, 8, 6, offsetof(struct __sk_buff, data_end), 0),
        SET(9, 0),
        MOV(2, 7),
        INSN(BPF_ALU64 | BPF_ADD | BPF_K, 2, 0, 0, 64),
        SET(0, -1),
        INSN(BPF_JMP | BPF_JGT | BPF_X, 2, 8, 19, 0),
        SET(3, 0),
        /* The loop: r9 = r9 * 31 + byte. */
        MOV(4, 7),
        INSN(BPF_ALU64 | BPF_ADD | BPF_X, 4, 3, 0, 0),
        INSN(BPF_LDX | BPF_B | BPF_MEM, 5, 4, 0, 0),
        INSN(BPF_ALU64 | BPF_MUL | BPF_K, 9, 0, 0, 31),
        INSN(BPF_ALU64 | BPF_ADD | BPF_X, 9, 5, 0, 0),
        INSN(BPF_ALU64 | BPF_ADD | BPF_K, 3, 0, 0, 1),
        INSN(BPF_JMP | BPF_JLT | BPF_K, 3, 0, -7, 60),
        /* map[2] += 3, atomically. */
        INSN(BPF_ST | BPF_W | BPF_MEM, 10, 0, -4, 2),
        MOV(2, 10),
        INSN(BPF_ALU64 | BPF_ADD | BPF_K, 2, 0, 0, -4),
        WIDE(1, BPF_PSEUDO_MAP_FD, map),
        CALL(BPF_FUNC_map_lookup_elem),
        INSN(BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 2, 0),
        SET(1, 3),
        INSN(BPF_STX | BPF_DW | BPF_ATOMIC, 0, 1, 0, BPF_ADD),
        /* Ends with what the function says of r9. */
        MOV(1, 9),
        INSN(BPF_JMP | BPF_CALL, 0, BPF_PSEUDO_CALL, 0, 1),
        EXIT(),
        MOV(0, 1),
        INSN(BPF_ALU64 | BPF_RSH | BPF_K, 0, 0, 0, 17),
        INSN(BPF_ALU64 | BPF_XOR | BPF_X, 0, 1, 0, 0),
        INSN(BPF_ALU | BPF_END | BPF_TO_BE, 0, 0, 0, 32),
        EXIT(),
    };
    int fd = load(code, sizeof code / sizeof *code);
    unsigned char packet[64];
    unsigned long long state = 5;
    uint64_t count = 0;
    for (int round = 0; round < 40; round++) {
        uint64_t sum = 0;
        for (size_t i = 0; i < sizeof packet; i++)
            packet[i] = next_random(&state);
        for (size_t i = 0; i < 60; i++)
            sum = sum * 31 + packet[i];
        uint32_t repeat = 1 + round * 7;
        count += 3 * repeat;
        SAME(run(fd, packet, sizeof packet, repeat), __builtin_bswap32((uint32_t)(sum >> 17 ^ sum)));
        uint32_t key = 2;
        uint64_t value;
        union bpf_attr lookup = {.map_fd = map, .key = (uint64_t)&key, .value = (uint64_t)&value};
        CHECK(bpf(BPF_MAP_LOOKUP_ELEM, &lookup) == 0);
        SAME(value, count);
    }
    close(fd), close(map);
}

/* Tail calls: the kernel patches compiled code when the map changes. */
static void tail_calls(void) {
    union bpf_attr create = {.map_type = BPF_MAP_TYPE_PROG_ARRAY, .key_size = 4, .value_size = 4, .max_entries = 2};
    int map = bpf(BPF_MAP_CREATE, &create);
    CHECK(map >= 0);
    struct bpf_insn caller[] = {WIDE(2, BPF_PSEUDO_MAP_FD, map), SET(3, 1), CALL(BPF_FUNC_tail_call), SET(0, 5), EXIT()};
    int fd = load(caller, sizeof caller / sizeof *caller);
    char packet[64] = {0};
    uint32_t key = 1;
    for (uint32_t i = 0; i < 200; i++) {
        SAME(run(fd, packet, sizeof packet, 2), 5);
        struct bpf_insn callee[] = {SET(0, 1000 + i), EXIT()};
        uint32_t target = load(callee, 2);
        union bpf_attr update = {.map_fd = map, .key = (uint64_t)&key, .value = (uint64_t)&target};
        CHECK(bpf(BPF_MAP_UPDATE_ELEM, &update) == 0);
        SAME(run(fd, packet, sizeof packet, 3), 1000 + i);
        close(target);
        union bpf_attr remove = {.map_fd = map, .key = (uint64_t)&key};
        CHECK(bpf(BPF_MAP_DELETE_ELEM, &remove) == 0);
    }
    close(fd), close(map);
}

/* A filter on a socket: packets whose first byte is even come through, cut to
 * as many bytes as the second one says. */
static void socket_filter(void) {
    int pair[2];
    CHECK(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, pair) == 0);
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_B | BPF_ABS, 0), BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, 1, 2, 0),
        BPF_STMT(BPF_LD | BPF_B | BPF_ABS, 1), BPF_STMT(BPF_RET | BPF_A, 0),
        BPF_STMT(BPF_RET | BPF_K, 0),
    };
    struct sock_fprog program = {sizeof code / sizeof *code, code};
    CHECK(setsockopt(pair[1], SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) == 0);
    for (int i = 0; i < 1000; i++) {
        unsigned char sent[100] = {i, 2 + i % 90}, got[100];
        ssize_t answer = send(pair[0], sent, sizeof sent, 0);
        CHECK(i & 1 ? answer < 0 || answer == 100 : answer == 100);
        ssize_t length = recv(pair[1], got, sizeof got, 0);
        if (i & 1)
            CHECK(length == -1);
        else
            SAME(length, 2 + i % 90);
    }
    close(pair[0]), close(pair[1]);
}

/* A filter on system calls. */
static void seccomp_filter(void) {
    pid_t child = fork();
    CHECK(child >= 0);
    if (!child) {
        struct sock_filter code[] = {
            BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getppid, 0, 3),
            BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])),
            BPF_STMT(BPF_ALU | BPF_AND | BPF_K, 127),
            BPF_STMT(BPF_ALU | BPF_OR | BPF_K, SECCOMP_RET_ERRNO),
            BPF_STMT(BPF_RET | BPF_A, 0),
        };
        /* Everything else: allowed. */
        struct sock_filter all[7];
        memcpy(all, code, sizeof code);
        all[1].jf = 4;
        all[6] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
        struct sock_fprog program = {7, all};
        CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
        CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
        for (int i = 1; i < 3000; i++) {
            errno = 0;
            long result = syscall(SYS_getppid, i);
            if (i & 127)
                CHECK(result == -1 && errno == (i & 127));
            else
                CHECK(result == 0);
        }
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
}

#define RUN(name) (fprintf(stderr, "%s\n", #name), name())

int main(void) {
    FILE *jit = fopen("/proc/sys/net/core/bpf_jit_enable", "r+");
    CHECK(jit);
    fputs("1\n", jit);
    rewind(jit);
    CHECK(fgetc(jit) == '1');
    fclose(jit);
    RUN(arithmetic);
    RUN(loops);
    RUN(tail_calls);
    RUN(socket_filter);
    RUN(seccomp_filter);
    return 0;
}
