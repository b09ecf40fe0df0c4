//! Neighbour Discovery (RFC 4861) with the DNS options of RFC 8106.
