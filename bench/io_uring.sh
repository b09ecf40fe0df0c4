#!/bin/bash
# What io_uring would change for a tap (docs/design/io-uring.md): frames of 64 bytes read and written per second, and
# transactions of one frame each way, by system calls and by io_uring, with the processor time of the thread at the tap.
# For root; needs gcc, liburing-dev, iproute2.
#
#     bench/io_uring.sh SECONDS ROUNDS
#
# The methods take turns. Prints one line per method and round, and the medians.
set -euo pipefail
seconds=$1 rounds=$2
W=$(mktemp -d)
trap 'rm -rf "$W"' EXIT

cat >"$W/tap.c" <<'END'
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum { LEN = 2048, BUFFERS = 64, BATCH = 32, READ_MULTISHOT = 49 };
static volatile int over;
static int tap, seconds;
static unsigned char frames[BUFFERS][LEN];

static void check(int result, const char *what) {
    if (result < 0) { perror(what); exit(1); }
}

static double now(int clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static int udp(int port) {
    int s = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in here = { .sin_family = AF_INET, .sin_port = htons(port) };
    struct timeval wait = { .tv_usec = 200000 };
    check(bind(s, (void *)&here, sizeof here), "bind");
    check(setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait), "SO_RCVTIMEO");
    return s;
}

static const struct sockaddr_in *remote(void) {
    static struct sockaddr_in there = { .sin_family = AF_INET };
    there.sin_port = htons(7002);
    there.sin_addr.s_addr = inet_addr("192.0.2.2");
    return &there;
}

/* Sends datagrams to the tap as fast as possible. */
static void *flood(void *unused) {
    int s = udp(7001);
    char payload[22] = { 0 };
    struct iovec part = { payload, sizeof payload };
    struct mmsghdr messages[BATCH] = { 0 };
    for (int i = 0; i < BATCH; i++) {
        messages[i].msg_hdr.msg_name = (void *)remote();
        messages[i].msg_hdr.msg_namelen = sizeof(struct sockaddr_in);
        messages[i].msg_hdr.msg_iov = &part;
        messages[i].msg_hdr.msg_iovlen = 1;
    }
    while (!over) sendmmsg(s, messages, BATCH, 0);
    return unused;
}

/* Sends one datagram, waits for its answer, and so on. Returns their number. */
static void *ask(void *unused) {
    int s = udp(7001);
    char payload[22] = { 0 };
    long done = 0;
    while (!over) {
        sendto(s, payload, sizeof payload, 0, (const void *)remote(), sizeof(struct sockaddr_in));
        done += recv(s, payload, sizeof payload, 0) > 0;
    }
    (void)unused;
    return (void *)done;
}

/* Turns a question into its answer: swaps the MAC addresses, the IP addresses, the ports. */
static void answer(unsigned char *frame) {
    unsigned char old[34 + 8];
    memcpy(old, frame, sizeof old);
    memcpy(frame, old + 6, 6), memcpy(frame + 6, old, 6);
    memcpy(frame + 26, old + 30, 4), memcpy(frame + 30, old + 26, 4);
    memcpy(frame + 34, old + 36, 2), memcpy(frame + 36, old + 34, 2);
}

static int is_question(const unsigned char *frame, int len) {
    return len > 42 && frame[12] == 8 && frame[13] == 0 && frame[23] == 17;
}

static long by_calls(int answers, double until) {
    int e = epoll_create1(0);
    struct epoll_event event = { .events = EPOLLIN };
    long count = 0;
    check(epoll_ctl(e, EPOLL_CTL_ADD, tap, &event), "epoll_ctl");
    while (now(CLOCK_MONOTONIC) < until) {
        epoll_wait(e, &event, 1, 100);
        for (int len; (len = read(tap, frames[0], LEN)) > 0;) {
            count++;
            if (answers) {
                if (is_question(frames[0], len)) answer(frames[0]), check(write(tap, frames[0], len), "write");
                break; /* a single frame is expected: no second read to learn that there is none */
            }
        }
    }
    close(e);
    return count;
}

static long by_ring(int answers, double until) {
    struct io_uring ring;
    struct io_uring_params params = { .flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN };
    check(io_uring_queue_init_params(2 * BUFFERS, &ring, &params), "io_uring_setup");
    struct io_uring_buf_ring *pool = NULL;
    check(posix_memalign((void **)&pool, 4096, BUFFERS * sizeof(struct io_uring_buf)), "memory");
    struct io_uring_buf_reg reg = { .ring_addr = (unsigned long)pool, .ring_entries = BUFFERS, .bgid = 1 };
    check(io_uring_register_buf_ring(&ring, &reg, 0), "buffers");
    io_uring_buf_ring_init(pool);
    int mask = io_uring_buf_ring_mask(BUFFERS);
    for (int i = 0; i < BUFFERS; i++) io_uring_buf_ring_add(pool, frames[i], LEN, i, mask, i);
    io_uring_buf_ring_advance(pool, BUFFERS);
    int armed = 0;
    long count = 0;
    while (now(CLOCK_MONOTONIC) < until) {
        if (!armed) {
            struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);
            io_uring_prep_read(sqe, tap, NULL, 0, 0);
            sqe->opcode = READ_MULTISHOT, sqe->flags = IOSQE_BUFFER_SELECT, sqe->buf_group = 1;
            sqe->user_data = BUFFERS;
            armed = 1;
        }
        struct __kernel_timespec wait = { .tv_nsec = 100000000 };
        struct io_uring_cqe *cqe;
        io_uring_submit_and_wait_timeout(&ring, &cqe, 1, &wait, NULL);
        unsigned head, seen = 0, back = 0;
        io_uring_for_each_cqe(&ring, head, cqe) {
            seen++;
            int id = cqe->user_data;
            if (id == BUFFERS) {
                if (!(cqe->flags & IORING_CQE_F_MORE)) armed = 0;
                if (cqe->res <= 0) {
                    if (cqe->res != -ENOBUFS && cqe->res != -EAGAIN) check(cqe->res, "multishot"), errno = -cqe->res;
                    continue;
                }
                id = cqe->flags >> IORING_CQE_BUFFER_SHIFT;
                count++;
                if (answers && is_question(frames[id], cqe->res)) {
                    answer(frames[id]);
                    struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);
                    io_uring_prep_write(sqe, tap, frames[id], cqe->res, 0);
                    sqe->user_data = id; /* the buffer is free when the write has ended */
                    continue;
                }
            }
            io_uring_buf_ring_add(pool, frames[id], LEN, id, mask, back++);
        }
        io_uring_buf_ring_advance(pool, back);
        io_uring_cq_advance(&ring, seen);
    }
    io_uring_queue_exit(&ring);
    return count;
}

/* Writes the same frame to the tap as fast as possible. */
static long writes(int ring_used, const unsigned char *frame, int len, double until) {
    long count = 0;
    struct io_uring ring;
    if (ring_used) check(io_uring_queue_init(BATCH, &ring, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN), "setup");
    while (now(CLOCK_MONOTONIC) < until) {
        for (int i = 0; i < BATCH; i++) {
            if (ring_used) io_uring_prep_write(io_uring_get_sqe(&ring), tap, frame, len, 0);
            else check(write(tap, frame, len), "write");
        }
        count += BATCH;
        if (!ring_used) continue;
        check(io_uring_submit_and_wait(&ring, BATCH), "submit");
        struct io_uring_cqe *cqe;
        unsigned head, seen = 0;
        io_uring_for_each_cqe(&ring, head, cqe) { seen++; if (cqe->res < 0) { errno = -cqe->res; check(-1, "write"); } }
        io_uring_cq_advance(&ring, seen);
    }
    if (ring_used) io_uring_queue_exit(&ring);
    return count;
}

int main(int argc, char **argv) {
    const char *load = argv[1];
    int ring = !strcmp(argv[2], "io_uring");
    seconds = atoi(argv[3]);
    (void)argc;
    tap = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
    check(tap, "/dev/net/tun");
    struct ifreq request = { .ifr_flags = IFF_TAP | IFF_NO_PI };
    strcpy(request.ifr_name, "tap0");
    check(ioctl(tap, TUNSETIFF, &request), "TUNSETIFF");
    check(system("ip addr add 192.0.2.1/24 dev tap0 && ip link set tap0 up && "
                 "ip neigh replace 192.0.2.2 lladdr 02:00:00:00:00:02 dev tap0"), "ip");
    pthread_t thread;
    int reads = !strcmp(load, "read"), asks = !strcmp(load, "ask");
    unsigned char frame[64] = { 0 };
    int sink = -1;
    if (reads) pthread_create(&thread, NULL, flood, NULL);
    if (asks) pthread_create(&thread, NULL, ask, NULL);
    if (!reads && !asks) { /* a question of the kernel is the pattern of the frames to write */
        sink = udp(7001);
        for (int len = 0; !is_question(frame, len) || ntohs(*(unsigned short *)(frame + 36)) != 7002;) {
            sendto(sink, frame, 22, 0, (const void *)remote(), sizeof(struct sockaddr_in));
            usleep(1000);
            len = read(tap, frame, sizeof frame);
        }
        answer(frame);
    }
    double begun = now(CLOCK_MONOTONIC), used = now(CLOCK_THREAD_CPUTIME_ID), until = begun + seconds;
    long count = reads || asks ? (ring ? by_ring : by_calls)(asks, until) : writes(ring, frame, sizeof frame, until);
    used = now(CLOCK_THREAD_CPUTIME_ID) - used, begun = now(CLOCK_MONOTONIC) - begun;
    over = 1;
    void *done = NULL;
    if (reads || asks) pthread_join(thread, &done);
    if (asks) count = (long)done;
    printf("%s %s %.0f %.3f\n", load, argv[2], count / begun, used / count * 1e6);
    return 0;
}
END
gcc -O2 -Wall -o "$W/tap" "$W/tap.c" -luring -lpthread
echo "# kernel $(uname -r), $(nproc) processors, liburing $(dpkg-query -W -f '${Version}' liburing-dev 2>/dev/null || echo '?')"
echo "# load, method, per second, microseconds of processor time each"
for _ in $(seq "$rounds"); do
    for load in read write ask; do
        for method in calls io_uring; do
            unshare -n "$W/tap" "$load" "$method" "$seconds" | tee -a "$W/all"
        done
    done
done
echo "# medians"
for load in read write ask; do
    for method in calls io_uring; do
        for column in 3 4; do
            awk -v l="$load" -v m="$method" -v c=$column '$1 == l && $2 == m { print $c }' "$W/all" | sort -n |
                awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'
        done | paste -sd ' ' | sed "s/^/$load $method /"
    done
done
