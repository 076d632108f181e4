/* Storms of forks, execs and pipes, with what they hand on counted. */
#define _GNU_SOURCE
#include "check.h"
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static unsigned work(unsigned seed) {
    unsigned long long state = seed;
    unsigned char data[4096];
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = next_random(&state);
    return fnv(FNV, data, sizeof data) & 0x7F;
}

static int status_of(pid_t child) {
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status));
    return WEXITSTATUS(status);
}

/* A tree of processes, each of which writes to a page that all share. */
static void tree(unsigned *counter, int depth) {
    __atomic_add_fetch(counter, 1, __ATOMIC_SEQ_CST);
    if (!depth)
        return;
    pid_t children[3];
    for (int i = 0; i < 3; i++) {
        children[i] = fork();
        CHECK(children[i] >= 0);
        if (!children[i]) {
            tree(counter, depth - 1);
            _exit(0);
        }
    }
    for (int i = 0; i < 3; i++)
        SAME(status_of(children[i]), 0);
}

/* A ring of processes through which a number goes, changed by each. */
static void ring(void) {
    enum { MEMBERS = 12, TURNS = 1500 };
    int pipes[MEMBERS][2];
    for (int i = 0; i < MEMBERS; i++)
        CHECK(pipe(pipes[i]) == 0);
    for (int i = 0; i < MEMBERS; i++) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (child)
            continue;
        unsigned value;
        for (int turn = 0; turn < TURNS; turn++) {
            CHECK(read(pipes[i][0], &value, 4) == 4);
            value = value * 5 + i;
            CHECK(write(pipes[(i + 1) % MEMBERS][1], &value, 4) == 4 || i == MEMBERS - 1);
        }
        _exit(i == MEMBERS - 1 ? value & 0x7F : 0);
    }
    unsigned wanted = 1, value = 1;
    CHECK(write(pipes[0][1], &value, 4) == 4);
    for (int turn = 0; turn < TURNS; turn++)
        for (int i = 0; i < MEMBERS; i++)
            wanted = wanted * 5 + i;
    unsigned sum = 0;
    int status;
    for (int i = 0; i < MEMBERS; i++) {
        CHECK(wait(&status) > 0 && WIFEXITED(status));
        sum += WEXITSTATUS(status);
    }
    SAME(sum, wanted & 0x7F);
}

/* Megabytes through a pipe, in pieces of all sizes. */
static void stream(void) {
    enum { SIZE = 3 << 20 };
    int ends[2];
    CHECK(pipe(ends) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    static unsigned char data[70000];
    unsigned long long state = 9, hash = FNV;
    if (!child) {
        for (size_t done = 0; done < SIZE;) {
            size_t piece = next_random(&state) % sizeof data;
            if (piece > SIZE - done)
                piece = SIZE - done;
            for (size_t i = 0; i < piece; i++)
                data[i] = (done + i) * 2654435761u >> 13;
            CHECK(write(ends[1], data, piece) == (ssize_t)piece);
            done += piece;
        }
        _exit(0);
    }
    close(ends[1]);
    size_t done = 0;
    for (ssize_t got; (got = read(ends[0], data, 1 + next_random(&state) % (sizeof data - 1))) > 0; done += got)
        hash = fnv(hash, data, got);
    SAME(done, SIZE);
    SAME(status_of(child), 0);
    unsigned long long wanted = FNV;
    for (size_t i = 0; i < SIZE; i++) {
        unsigned char byte = i * 2654435761u >> 13;
        wanted = fnv(wanted, &byte, 1);
    }
    SAME(hash, wanted);
}

int main(int argc, char **argv) {
    if (argc == 3)
        return work(atoi(argv[2]));
    unsigned *counter = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(counter != MAP_FAILED);
    for (int round = 0; round < 3; round++) {
        *counter = 0;
        tree(counter, 5);
        SAME(*counter, 1 + 3 + 9 + 27 + 81 + 243);
    }
    for (int i = 0; i < 300; i++) {
        pid_t child = i % 2 ? vfork() : fork();
        CHECK(child >= 0);
        if (!child) {
            char number[16];
            sprintf(number, "%d", i);
            execl("/proc/self/exe", argv[0], "work", number, NULL);
            _exit(127);
        }
        SAME(status_of(child), work(i));
    }
    ring();
    stream();
    return 0;
}
