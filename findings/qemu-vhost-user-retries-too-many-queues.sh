#!/bin/bash
# QEMU that is started with more vhost-user queues than the back-end has does not end with an error. It prints one,
# closes the connection, and opens the next one at once, forever and without a pause.
#
# The maximum of the back-end (VHOST_USER_GET_QUEUE_NUM) cannot change between two attempts, but QEMU treats this
# like any other connection that is not ready. The back-end sees thousands of clients in a second. Each asks for features and
# the number of queues, and disconnects before it sets up anything.
#
# Seen with QEMU 10.0.2, a back-end that offers 2 pairs of queues, and queues=3:
#   QEMU: you are asking more queues than supported: 2
#   connections in 3 s: 6851; each of them asked: GET_FEATURES GET_PROTOCOL_FEATURES SET_PROTOCOL_FEATURES GET_QUEUE_NUM
#   GET_FEATURES
#   QEMU still runs after 3 s: yes
# (How many connections there are depends on the machine; that there is more than one is the finding.)
#
# For passt-rs: the log of such connections is limited, and names the number of queues as the likely cause.
set -u
cannot() { echo "cannot try it here: $*"; exit 77; }
folder=$(mktemp -d) || exit 77
backend=
machine=
# shellcheck disable=SC2317
cleanup() {
    for process in $backend $machine; do kill "$process" 2>/dev/null; done
    rm -rf "$folder"
}
trap cleanup EXIT
cd "$folder" || exit 77
for tool in python3 qemu-system-x86_64; do command -v "$tool" >/dev/null || cannot "no $tool"; done
qemu-system-x86_64 --version | head -n 1

cat >backend.py <<'PY'
# As much of a vhost-user back-end as it takes until its number of queues is known.
import socket, struct
NAMES = {1: "GET_FEATURES", 15: "GET_PROTOCOL_FEATURES", 16: "SET_PROTOCOL_FEATURES", 17: "GET_QUEUE_NUM"}
ANSWERS = {1: 1 << 32 | 1 << 30 | 1 << 22, 15: 1, 17: 2}  # VERSION_1, PROTOCOL_FEATURES, MQ; MQ; two pairs
VERSION, REPLY = 1, 4
listener = socket.socket(socket.AF_UNIX)
listener.bind("socket")
listener.listen(16)
print("ready", flush=True)
def exactly(client, length):
    data = b""
    while len(data) < length:
        part = client.recv(length - len(data))
        if not part:
            return None
        data += part
    return data
while True:
    client, _ = listener.accept()
    asked = []
    try:
        while (head := exactly(client, 12)) is not None:
            request, _, size = struct.unpack("III", head)
            if exactly(client, size) is None:
                break
            if request in ANSWERS:
                client.sendall(struct.pack("=IIIQ", request, VERSION | REPLY, 8, ANSWERS[request]))
            if request in NAMES:
                asked.append(NAMES[request])
    except OSError:
        pass
    client.close()
    print("client", *asked, flush=True)
PY
python3 backend.py >connections 2>&1 &
backend=$!
for _ in $(seq 50); do grep -q ready connections && break; sleep 0.1; done
qemu-system-x86_64 -display none -nodefaults -S -m 64 \
    -machine memory-backend=memory -object memory-backend-memfd,id=memory,share=on,size=64M \
    -chardev socket,id=char,path=socket -netdev vhost-user,id=net,chardev=char,queues=3 \
    -device virtio-net-pci,netdev=net,mq=on,vectors=8 >qemu 2>&1 &
machine=$!
sleep 3 # the subject is time: does it end, or continue
runs=no
kill -0 $machine 2>/dev/null && runs=yes
echo "QEMU: $(grep -o 'you are asking.*' qemu | head -n 1)"
count=$(grep -c client connections)
echo "connections in 3 s: $count; each of them asked: $(grep client connections | sed 's/client //' | sort | uniq -c |
    sort -rn | awk 'NR == 1 { $1 = ""; print substr($0, 2) }')"
echo "QEMU still runs after 3 s: $runs"
grep -q "more queues than supported: 2" qemu && [ "$runs" = yes ] && [ "$count" -gt 1 ] && exit 0
echo "the behaviour has changed"
exit 1
