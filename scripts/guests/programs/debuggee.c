/* What gdb and strace look at in the guest. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

volatile int watched, other;
int history[64];

__attribute__((noinline)) int step(int n) {
    watched = n * 3;
    other += watched;
    return n + other;
}

__attribute__((noinline)) int factorial(int n) { return n < 2 ? 1 : n * factorial(n - 1); }

int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "calls") == 0) {
        for (int i = 0; i < 50; i++) {
            int fd = open("/dev/null", O_WRONLY);
            if (write(fd, history, i) != i)
                return 1;
            close(fd);
        }
        for (int i = 0; i < 10; i++) {
            if (fork() == 0)
                _exit(i);
            int status;
            wait(&status);
        }
        return 7;
    }
    int sum = 0;
    for (int i = 0; i < 20; i++) {
        history[i] = step(i);
        sum += history[i];
    }
    sum += factorial(10);
    printf("sum %d\n", sum);
    if (argc > 1 && strcmp(argv[1], "crash") == 0)
        *(volatile int *)(long)sum = 1;
    return 0;
}
