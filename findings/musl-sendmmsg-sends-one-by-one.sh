#!/bin/bash
# sendmmsg(3) of musl sends no batch: on 64-bit architectures it makes one sendmsg(2) for each message. recvmmsg(3) makes one call. A
# program that sends datagrams in batches, to save system calls, saves none when it is linked to musl, and nothing says so: the results
# are the same. A filter of system calls (seccomp) that allows sendmmsg(2) alone ends the program.
#
# The reason is a difference between the C library and the kernel: POSIX has 32-bit lengths in struct msghdr (msg_iovlen,
# msg_controllen), Linux has 64-bit ones. musl declares the first with padding, which the caller need not clear. On received headers
# the padding can be cleared in place; headers to send are copied, each to the stack. Where the padding is zero already,
# syscall(SYS_sendmmsg, ...) works.
#
# Seen with musl 1.2.3 (Debian 12) on x86-64, 16 datagrams each way:
#   glibc: sendmmsg 1, sendmsg 0, recvmmsg 1
#   musl: sendmmsg 0, sendmsg 16, recvmmsg 1
#
# For passt-rs: `sys::mmsg` makes the system call itself, with headers whose padding is zero.
set -u
cannot() { echo "cannot try it here: $*"; exit 77; }

[ "$(uname -m)" = x86_64 ] || cannot "not x86-64"
for tool in gcc strace dpkg-deb apt-get; do command -v "$tool" >/dev/null || cannot "no $tool"; done
folder=$(mktemp -d) || exit 77
trap 'rm -rf "$folder"' EXIT
cd "$folder" || exit 77
chmod 755 . # apt-get downloads as a user of its own
for package in musl-dev=1.2.3-1; do
    apt-get -q download "$package" >/dev/null 2>&1 || cannot "no package $package"
done
for file in ./*.deb; do dpkg-deb -x "$file" root; done

cat >try.c <<'C'
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

int main(void)
{
    enum { COUNT = 16 };
    int pair[2];
    char data[COUNT][4];
    struct iovec parts[COUNT];
    struct mmsghdr headers[COUNT];
    memset(data, 'x', sizeof data);
    memset(headers, 0, sizeof headers);
    for (int i = 0; i < COUNT; i++) {
        parts[i] = (struct iovec){ data[i], sizeof data[i] };
        headers[i].msg_hdr.msg_iov = &parts[i];
        headers[i].msg_hdr.msg_iovlen = 1;
    }
    if (socketpair(AF_UNIX, SOCK_DGRAM, 0, pair))
        return 2;
    int sent = sendmmsg(pair[0], headers, COUNT, 0);
    int received = recvmmsg(pair[1], headers, COUNT, MSG_DONTWAIT, NULL);
    return sent != COUNT || received != COUNT;
}
C
libc=root/usr/lib/x86_64-linux-musl
gcc -o glibc try.c || cannot "gcc fails"
gcc -static -no-pie -nostdlib -nostdinc -isystem root/usr/include/x86_64-linux-musl -o musl \
    "$libc"/crt1.o "$libc"/crti.o try.c "$libc"/libc.a -lgcc "$libc"/crtn.o || cannot "gcc fails with musl"

echo "musl 1.2.3, $(uname -sr)"
for program in glibc musl; do
    strace -o "$program.trace" "./$program" || { echo "CHANGED: $program: not all were sent and received"; exit 1; }
    count() { grep -c "^$1(" "$program.trace"; }
    echo "$program: sendmmsg $(count sendmmsg), sendmsg $(count sendmsg), recvmmsg $(count recvmmsg)"
done | tee seen
printf '%s\n' 'glibc: sendmmsg 1, sendmsg 0, recvmmsg 1' 'musl: sendmmsg 0, sendmsg 16, recvmmsg 1' | cmp -s - seen ||
    { echo CHANGED; exit 1; }
echo 'as described'
