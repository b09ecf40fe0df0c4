#!/bin/bash
# glibc: free(3) opens a file, /proc/sys/vm/overcommit_memory, once, and only in a thread that is not the main thread.
#
# Each thread may have a heap of its own. When free() can return unused memory at the end of such a heap to the kernel, it
# first looks up how the kernel commits memory, and keeps the answer. The main thread's heap does not need this. So a program
# that forbids to open files (seccomp, Landlock, an empty root) after its start may be killed in a call that nobody expects to
# open anything, and only when a thread once had much memory. With one heap for all threads (M_ARENA_MAX 1) it does not
# happen.
#
# Seen with glibc 2.36 (Debian 12), opens of that file while a thread frees 200 blocks of 90 KiB:
#   main thread: 0
#   other thread: 1
#   other thread, M_ARENA_MAX 1: 0
#
# For passt-rs: all threads share the heap of the main thread (sys::heap).
set -u
cannot() { echo "cannot try it here: $*"; exit 77; }
command -v cc >/dev/null || cannot "no C compiler"
command -v strace >/dev/null || cannot "no strace"
getconf GNU_LIBC_VERSION 2>/dev/null || cannot "not glibc"
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cat >"$dir/free.c" <<'C'
#include <malloc.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static void *work(void *none) {
    char *blocks[200];
    for (int n = 0; n < 200; n++)
        memset(blocks[n] = malloc(90 << 10), 1, 90 << 10);
    for (int n = 200; n-- > 0;)
        free(blocks[n]);
    return none;
}

int main(int argc, char **argv) {
    pthread_t thread;
    if (argc > 2)
        mallopt(M_ARENA_MAX, 1);
    if (argc > 1 && !pthread_create(&thread, NULL, work, NULL))
        return pthread_join(thread, NULL);
    work(NULL);
    return 0;
}
C
cc -pthread -o "$dir/free" "$dir/free.c" || cannot "the program does not compile"
opens() {
    strace -f -e trace=open,openat -o "$dir/trace" "$dir/free" "$@" || cannot "strace failed"
    grep -c overcommit_memory "$dir/trace"
}
same=0
show() {
    echo "$1: $2"
    [ "$2" = "$3" ] || same=1
}
show "main thread" "$(opens)" 0
show "other thread" "$(opens thread)" 1
show "other thread, M_ARENA_MAX 1" "$(opens thread one)" 0
exit $same
