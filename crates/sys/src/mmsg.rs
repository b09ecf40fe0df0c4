//! Batched datagrams: recvmmsg and sendmmsg on reused arrays.
