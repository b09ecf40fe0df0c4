//! Quitting when the namespace goes away (behaviour §1.6).

use std::fs::{self, File};

use rustix::process::Signal;

use crate::attach::Named;
use crate::stage::{Guest, Stage, User};

#[test]
fn with_the_process() {
    let stage = Stage::new();
    User::each_with_guest(|user, mut guest| {
        let daemon = stage.attach(user, &[&guest.pid()]);
        guest.end();
        daemon.assert_ends();
    });
}

/// a path in procfs is its process.
#[test]
fn with_the_process_behind_a_path_r38() {
    let stage = Stage::new();
    User::each_with_guest(|user, mut guest| {
        let (net, userns) = (guest.namespace("net"), guest.namespace("user"));
        let daemon = stage.attach(user, &["--netns", &net, "--userns", &userns]);
        guest.end();
        daemon.assert_ends();
    });
}

/// also if its file is not the only one to go.
#[test]
fn with_the_file_r38() {
    if !User::Root.available() {
        return;
    }
    let stage = Stage::new();
    let (Some(named), Some(other)) = (Named::new(), Named::new()) else { return };
    let daemon = stage.attach(User::Root, &["--netns", &named.0]);
    other.remove();
    named.remove();
    daemon.assert_ends();
}

#[test]
fn not_with_another_file() {
    if !User::Root.available() {
        return;
    }
    let stage = Stage::new();
    let Some(named) = Named::new() else { return };
    let daemon = stage.attach(User::Root, &["--netns", &named.0]);
    let other = stage.attach(User::Root, &["--no-netns-quit", "--netns", &named.0, "-I", "life0"]);
    File::create(stage.path("unrelated")).unwrap();
    fs::remove_file(stage.path("unrelated")).unwrap();
    assert!(daemon.lives());
    named.remove();
    daemon.assert_ends();
    assert!(other.lives());
    other.send(Signal::TERM);
    other.assert_ends();
}

#[test]
fn not_if_told_so() {
    let stage = Stage::new();
    let mut guest = Guest::new(User::Ordinary);
    let stays = stage.attach(User::Ordinary, &["--no-netns-quit", "-I", "life0", &guest.pid()]);
    let goes = stage.attach(User::Ordinary, &["-I", "life1", &guest.pid()]);
    guest.end();
    // What one notices the other would have.
    goes.assert_ends();
    assert!(stays.lives());
}
