//! Services that the guest finds on its link: a question in, an answer out (SPEC §4).
