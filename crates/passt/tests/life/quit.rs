//! Tests that pasta exits when its namespace ends (behaviour §1.6).

use rustix::process::Signal;

use crate::attach::Named;
use crate::stage::{Guest, Stage, User};

#[test]
fn pasta_exits_with_its_process() {
    let stage = Stage::new();
    User::each_with_guest(|user, mut guest| {
        let daemon = stage.attach(user, &[&guest.pid()]);
        guest.end();
        daemon.assert_ends();
    });
}

/// a path in procfs refers to a process, and pasta exits when the process ends.
#[test]
fn pasta_exits_with_the_process_of_its_path_r38() {
    let stage = Stage::new();
    User::each_with_guest(|user, mut guest| {
        let (net, userns) = (guest.namespace("net"), guest.namespace("user"));
        let daemon = stage.attach(user, &["--netns", &net, "--userns", &userns]);
        guest.end();
        daemon.assert_ends();
    });
}

/// this also applies if another file of the directory is removed first.
#[test]
fn pasta_exits_when_its_named_namespace_is_removed_r38() {
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
fn pasta_stays_when_another_namespace_is_removed() {
    if !User::Root.available() {
        return;
    }
    let stage = Stage::new();
    let (Some(named), Some(other)) = (Named::new(), Named::new()) else { return };
    let daemon = stage.attach(User::Root, &["--netns", &named.0]);
    let stays = stage.attach(User::Root, &["--no-netns-quit", "--netns", &named.0, "-I", "life0"]);
    // The directory reports the removal of the other name to both of its watchers.
    let witness = stage.attach(User::Root, &["--netns", &other.0]);
    other.remove();
    witness.assert_ends();
    assert!(daemon.lives());
    named.remove();
    daemon.assert_ends();
    assert!(stays.lives());
    stays.send(Signal::TERM);
    stays.assert_ends();
}

#[test]
fn pasta_stays_with_no_netns_quit() {
    let stage = Stage::new();
    let mut guest = Guest::new(User::Ordinary);
    let stays = stage.attach(User::Ordinary, &["--no-netns-quit", "-I", "life0", &guest.pid()]);
    let goes = stage.attach(User::Ordinary, &["-I", "life1", &guest.pid()]);
    guest.end();
    // Both pastas watch the same process. When one has exited, the other would have exited, too, without the option.
    goes.assert_ends();
    assert!(stays.lives());
}
