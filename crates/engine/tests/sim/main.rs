//! Our TCP against another one, over a bad network, in virtual time; and segment by segment against a script.

mod application;
mod guest;
mod network;
mod pattern;
mod random;
mod socket;
mod world;

mod matrix;
