/* Both ends of a connection, and a plain relay between them, for scripts/measure_egress.py.
 *
 *   serve ADDRESS PORT              answers connections, each on a thread of its own
 *   relay PORT ADDRESS PORT         copies bytes between connections to the first port and the second
 *   up | down HOST PORT BYTES       sends or receives BYTES; prints seconds from connect to the end
 *   pings HOST PORT COUNT           COUNT connections, one after the other: connect, a byte there, a
 *                                   byte back; prints the seconds of each
 *
 * The first byte of a connection says what it is for: 1 a byte back, 2 to be counted, 3 to be fed.
 * None of them begins TLS or HTTP.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { PING = 1, UP = 2, DOWN = 3, CHUNK = 128 << 10 };

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void at_once(int fd) {
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

static int put(int fd, const void *from, size_t n) {
    for (size_t done = 0; done < n;) {
        ssize_t got = write(fd, (const char *)from + done, n - done);
        if (got <= 0) return -1;
        done += got;
    }
    return 0;
}

static int take(int fd, void *to, size_t n) {
    for (size_t done = 0; done < n;) {
        ssize_t got = read(fd, (char *)to + done, n - done);
        if (got <= 0) return -1;
        done += got;
    }
    return 0;
}

static struct addrinfo *look_up(const char *host, const char *port) {
    struct addrinfo want = {.ai_socktype = SOCK_STREAM, .ai_family = AF_INET}, *found;
    int failed = getaddrinfo(host, port, &want, &found);
    if (failed) errx(1, "%s: %s", host, gai_strerror(failed));
    return found;
}

static int reach(const struct addrinfo *at) {
    int fd = socket(at->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(fd, at->ai_addr, at->ai_addrlen)) err(1, "connect");
    at_once(fd);
    return fd;
}

static int listen_on(const char *address, const char *port) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    if (inet_pton(AF_INET, address, &at.sin_addr) != 1) errx(1, "%s is no address", address);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (void *)&at, sizeof at) || listen(fd, 4096)) err(1, "%s:%s", address, port);
    puts("ready");
    fflush(stdout);
    return fd;
}

static void *answer(void *arg) {
    int fd = (int)(intptr_t)arg;
    char *buffer = calloc(1, CHUNK), kind, done = 'k';
    uint64_t bytes;
    if (take(fd, &kind, 1) == 0) switch (kind) {
    case PING:
        put(fd, &done, 1);
        break;
    case UP:
        while (read(fd, buffer, CHUNK) > 0) {}
        put(fd, &done, 1);
        break;
    case DOWN:
        if (take(fd, &bytes, sizeof bytes)) break;
        while (bytes > 0) {
            size_t n = bytes < CHUNK ? bytes : CHUNK;
            if (put(fd, buffer, n)) break;
            bytes -= n;
        }
        break;
    }
    free(buffer);
    close(fd);
    return NULL;
}

struct ends { int from, to; };

static void *copy(void *arg) {
    struct ends ends = *(struct ends *)arg;
    char *buffer = malloc(CHUNK);
    ssize_t got;
    while ((got = read(ends.from, buffer, CHUNK)) > 0 && put(ends.to, buffer, got) == 0) {}
    shutdown(ends.to, SHUT_WR);
    free(buffer);
    return NULL;
}

static const struct addrinfo *beyond;

static void *relay(void *arg) {
    int near = (int)(intptr_t)arg, far = reach(beyond);
    struct ends there = {near, far}, back = {far, near};
    pthread_t other;
    pthread_create(&other, NULL, copy, &there);
    copy(&back);
    pthread_join(other, NULL);
    close(near);
    close(far);
    return NULL;
}

static void accept_all(int listener, void *(*each)(void *)) {
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        pthread_t thread;
        if (fd < 0) continue;
        at_once(fd);
        if (pthread_create(&thread, NULL, each, (void *)(intptr_t)fd)) close(fd);
        else pthread_detach(thread);
    }
}

int main(int argc, char **argv) {
    signal(SIGPIPE, SIG_IGN);
    if (argc == 4 && !strcmp(argv[1], "serve")) accept_all(listen_on(argv[2], argv[3]), answer);
    if (argc == 5 && !strcmp(argv[1], "relay")) {
        beyond = look_up(argv[3], argv[4]);
        accept_all(listen_on("127.0.0.1", argv[2]), relay);
    }
    if (argc != 5) errx(2, "see the head of this file");
    uint64_t amount = strtoull(argv[4], NULL, 10);
    const struct addrinfo *at = look_up(argv[2], argv[3]);
    char *buffer = calloc(1, CHUNK), kind, done;
    if (!strcmp(argv[1], "pings")) {
        for (uint64_t i = 0; i < amount; i++) {
            double began = now();
            int fd = reach(at);
            kind = PING;
            if (put(fd, &kind, 1) || take(fd, &done, 1)) errx(1, "no answer");
            printf("%.9f\n", now() - began);
            close(fd);
        }
        return 0;
    }
    double began = now();
    int fd = reach(at);
    if (!strcmp(argv[1], "up")) {
        kind = UP;
        if (put(fd, &kind, 1)) err(1, "write");
        for (uint64_t left = amount; left > 0;) {
            size_t n = left < CHUNK ? left : CHUNK;
            if (put(fd, buffer, n)) err(1, "write");
            left -= n;
        }
        shutdown(fd, SHUT_WR);
        if (take(fd, &done, 1)) errx(1, "no answer");
    } else {
        kind = DOWN;
        if (put(fd, &kind, 1) || put(fd, &amount, sizeof amount)) err(1, "write");
        uint64_t left = amount;
        ssize_t got;
        while (left > 0 && (got = read(fd, buffer, CHUNK)) > 0) left -= got;
        if (left > 0) errx(1, "%llu bytes are missing", (unsigned long long)left);
    }
    printf("%.9f\n", now() - began);
    return 0;
}
