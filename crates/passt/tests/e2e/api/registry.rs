//! The sockets that the programs make by themselves, by which `pesto` finds them: `$XDG_RUNTIME_DIR/passt/PID.api`.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;

/// A folder for sockets.
struct Runtime<'a> {
    net: &'a Net,
    path: String,
}

impl<'a> Runtime<'a> {
    fn new(net: &'a Net) -> Self {
        let path = net.path("run");
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        Self { net, path }
    }

    /// The names in the folder of the sockets.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(format!("{}/passt", self.path)).into_iter().flatten();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Runs a program of this project with the folder, and waits for its end.
    fn run_in(&self, ns: &Ns, argv: &[&str]) -> Finished {
        ns.run(&[&["env", &format!("XDG_RUNTIME_DIR={}", self.path)], argv].concat())
    }

    fn pesto(&self, args: &[&str]) -> Finished {
        self.run_in(&self.net.host, &[&[companion("pesto")], args].concat())
    }

    fn list(&self) -> Vec<Value> {
        let list: Value = serde_json::from_str(&self.pesto(&["--json"]).ok()).unwrap();
        list["instances"].as_array().unwrap().clone()
    }
}

/// The namespace of the guest, any other one, and the command that pasta starts see the socket, and are refused.
#[test]
fn it_serves_only_the_namespace_in_which_the_program_was_started() {
    let Some(net) = Net::new() else { return };
    let runtime = Runtime::new(&net);
    let pasta = net.pasta_found_in(&runtime.path, &[]);
    let name = format!("{}.api", pasta.pid);
    assert_eq!(runtime.names(), [&name[..]]);
    let path = format!("{}/passt/{name}", runtime.path);

    let refused = |end: Finished| {
        assert!(end.code() == 1 && end.stderr.contains("serves only the network namespace in"), "{end:?}");
    };
    for ns in [&net.guest, &net.peer] {
        refused(runtime.run_in(ns, &[companion("pesto"), "flows", &path]));
        refused(runtime.run_in(ns, &[companion("pesto"), "-C", "HOST", &pasta.pid.to_string()]));
        refused(runtime.run_in(ns, &[companion("pesto"), "-C", "HOST", &path]));
    }
    // This process is in another namespace, too.
    let mut stranger = Client::of(UnixStream::connect(&path).unwrap());
    assert_eq!(stranger.line().unwrap()["error"]["code"], "forbidden");
    assert_eq!(stranger.line(), None, "the server closes the connection");

    let own = format!("{} flows $XDG_RUNTIME_DIR/passt/[0-9]*.api", companion("pesto"));
    let argv = net.pasta_argv(&["--config-net", "--", "sh", "-c", &own]);
    pasta.terminate();
    refused(runtime.run_in(&net.host, &argv.iter().map(String::as_str).collect::<Vec<_>>()));
    assert_eq!(runtime.names(), [""; 0]);
}

#[test]
fn pesto_finds_instances_by_their_process_ids() {
    let Some(net) = Net::new() else { return };
    let runtime = Runtime::new(&net);
    let pasta = net.pasta_found_in(&runtime.path, &["-t", "7001"]);
    let found = runtime.list();
    assert_eq!(found.len(), 1, "{found:?}");
    assert_fields(
        &found[0],
        &json!({ "pid": pasta.pid, "program": "pasta", "link": "tap", "serves": "/run/netns/guest" }),
    );
    assert!(runtime.pesto(&["flows"]).ok().starts_with("FLOW"), "there is only one instance");

    let socket = net.path("vm.socket");
    let pid_file = net.path("passt.pid");
    let passt = [&passt_path(), "--socket", &socket, "--pid", &pid_file];
    runtime.run_in(&net.host, &passt).ok();
    let passt: u32 = fs::read_to_string(&pid_file).unwrap().trim().parse().unwrap();
    let mut pids: Vec<_> = runtime.list().iter().map(|one| one["pid"].as_u64().unwrap()).collect();
    pids.sort_unstable();
    let mut expected = [u64::from(pasta.pid), passt.into()];
    expected.sort_unstable();
    assert_eq!(pids, expected);
    let list = runtime.pesto(&[]).ok();
    assert!(list.starts_with("PID ") && list.lines().count() == 3 && list.contains(&socket), "{list}");
    let several = runtime.pesto(&["flows"]);
    assert!(several.code() == 1 && several.stderr.contains(&format!("{passt}.api")), "{several:?}");
    assert!(runtime.pesto(&["flows", &pasta.pid.to_string()]).ok().starts_with("FLOW"));
    let none = runtime.pesto(&["flows", "4000000000"]);
    assert!(none.code() == 1 && none.stderr.contains("no instance has the process ID"), "{none:?}");

    // A process that ends by itself or by SIGTERM removes its socket. That of a killed one is removed by pesto.
    net.host.sh(&format!("kill {passt}"));
    wait_until("passt to remove its socket", || runtime.names().len() == 1);
    pasta.signal("KILL");
    // Its socket is closed when the last of its threads has ended.
    wait_until("pesto to remove the socket", || {
        assert_eq!(runtime.pesto(&[]).code(), 1);
        runtime.names().is_empty()
    });
}

/// A client can do here what it can do by the socket of `--api-socket`, except for rules that need preparations.
#[test]
fn rules_can_be_changed() {
    need!("socat");
    let Some(net) = Net::new() else { return };
    let runtime = Runtime::new(&net);
    let pasta = net.pasta_found_in(&runtime.path, &["-t", "none", "-u", "none"]);
    let path = format!("{}/passt/{}.api", runtime.path, pasta.pid);
    let request = |name: &str, arguments: Value| {
        let line = json!({ "id": 1, "request": name, "arguments": arguments });
        let script = format!("printf '%s\\n' '{line}' | socat -t 60 - UNIX-CONNECT:{path}");
        let answer: Value = serde_json::from_str(&net.host.sh(&script)).unwrap();
        answer
    };
    let rule = json!({ "direction": "inbound", "protocol": "tcp", "ports": "7001" });
    let changed = request("rules.add", json!({ "rules": [rule] }));
    assert!(changed["result"].is_object(), "{changed}");
    let inside = net.guest.listen((any(HOST[0]), 7001));
    let _outside = net.peer.connect((HOST[0], 7001)).unwrap();
    accept(&inside);
    let by_address = request("policy.replace", json!({ "text": "deny 198.51.100.4\n" }));
    assert!(by_address["result"].is_object(), "{by_address}");
    let by_name = request("policy.replace", json!({ "text": "allow example.com\n" }));
    assert!(by_name["error"]["message"].as_str().unwrap().contains("--api-socket"), "{by_name}");
}

/// behaviour §8.9: `pesto` shows and changes rules by the API socket as by the control socket.
#[test]
fn pesto_changes_rules_by_a_process_id() {
    let Some(net) = Net::new() else { return };
    let runtime = Runtime::new(&net);
    let control = net.path("control");
    let start = ["-t", "7000", "-u", "none", "-T", "7010", "-U", "none", "--conf-path", &control];
    let pasta = net.pasta_found_in(&runtime.path, &start);
    let (pid, api) = (pasta.pid.to_string(), format!("{}/passt/{}.api", runtime.path, pasta.pid));
    let inside = net.guest.listen((any(HOST[0]), 7001));
    let _busy = net.host.listen((HOST[0], 7009));

    // The same output by either socket, except for its path; also if nothing changes.
    let same = |args: &[&str]| {
        let by = |target: &[&str], path: &str| {
            let end = runtime.pesto(&[args, target].concat());
            (end.code(), end.stdout.replace(path, "PATH"), end.stderr)
        };
        let expected = by(&[&control], &control);
        for target in [&[][..], &[&pid[..]], &[&api[..]]] {
            assert_eq!(by(target, &api), expected, "{args:?} {target:?}");
        }
        expected
    };
    for args in [
        &["-s"][..],
        &["-s", "--json"],
        &["policy", "show"],
        // A change that changes nothing, and one with a remark.
        &["-s", "-A", "-u", "none"],
        &["--json", "-C", "SPLICE", "-T", "7010"],
        &["-T", "7010", "-t", "~1-6999,~7010-65535"],
    ] {
        assert_eq!(same(args).0, 0, "{args:?}");
    }
    for (args, reason) in [
        (&["-s", "-t", "7005-7009"][..], "Listen failed for HOST TCP port */7009: "),
        (&["-C", "TAP"], "Unsupported pif name TAP"),
        (&["-t", "22,"], "Invalid port specifier"),
        (&["-T", "127.0.0.1/22"], "Listening address not allowed for -T 127.0.0.1/22"),
        (&["-D", "-t", "1"], "Couldn't find forwarding rule to delete"),
        (&["-t", "7000", "-A", "-t", "none"], "-t none conflicts with previous options"),
    ] {
        let (code, _, error) = same(args);
        assert!(code == 1 && error.contains(reason), "{args:?}: {error}");
    }

    let changed = runtime.pesto(&["-s", "-A", "-t", "7011:7001", &pid]).ok();
    assert!(
        changed.contains("Updated configuration") && changed.contains("TCP [*]:7011  =>  7001"),
        "{changed}"
    );
    let _client = net.peer.connect((HOST[0], 7011)).unwrap();
    accept(&inside);
    runtime.pesto(&["-C", "HOST"]).ok();
    assert!(net.peer.connect((HOST[0], 7011)).is_err());

    // One of several has to be named. What is no process ID is a path.
    let socket = net.path("vm.socket");
    let passt = [&passt_path(), "--socket", &socket, "--pid", &net.path("passt.pid")];
    runtime.run_in(&net.host, &passt).ok();
    let passt = fs::read_to_string(net.path("passt.pid")).unwrap();
    for (args, reason) in [
        (&["-t", "7001"][..], "there are several instances; give the PID or PATH of one: "),
        (&["policy", "show"], "there are several instances; "),
        (&["-T", "7001", passt.trim()], "Can't use -T, no outbound interface\n"),
        (&["-t", "auto", passt.trim()], "'auto' port forwarding is only allowed for pasta\n"),
        (&["-t", "7001", "4000000000"], "no instance has the process ID 4000000000"),
        (&["missing"], "Failed to connect to missing: No such file or directory\n"),
    ] {
        let end = runtime.pesto(args);
        assert!(end.code() == 1 && end.stderr.starts_with(reason), "{args:?}: {end:?}");
    }
    assert_eq!(runtime.pesto(&[passt.trim()]).ok().lines().collect::<Vec<_>>()[1..], ["  HOST"]);
    net.host.sh(&format!("kill {passt}"));
}

#[test]
fn pesto_replaces_the_policy_by_a_process_id() {
    let Some(net) = Net::new() else { return };
    let runtime = Runtime::new(&net);
    let pasta = net.pasta_found_in(&runtime.path, &["--deny", "198.51.100.4"]);
    let (pid, file) = (pasta.pid.to_string(), net.path("policy"));
    let replace = |text: &str| {
        fs::write(&file, text).unwrap();
        runtime.pesto(&["policy", "replace", &file, &pid])
    };
    let shown = || runtime.pesto(&["policy", "show", &pid]).ok();
    assert_eq!(shown(), "# The rules in force.\ndeny 198.51.100.4\ndefault allow\n");
    // More rules than one answer of the packet thread has.
    let rules: String = (0..600).map(|n| format!("deny 203.0.113.7:{}\n", n + 1001)).collect();
    assert_eq!(replace(&rules).ok(), "rules: 600, default allow; flows ended: TCP 0, UDP 0, ping 0\n");
    assert_eq!(shown(), format!("# The rules in force.\n{rules}default allow\n"));
    for (text, reason) in [
        ("allow example.com\n", "--conf-path"),
        (
            &"deny 203.0.113.7\n".repeat(4000)[..],
            "start the server with --conf-path PATH, and give that path",
        ),
        ("permit all\n", "line 1"),
    ] {
        let end = replace(text);
        let named = end.stderr.starts_with(&format!("{file}: "));
        assert!(end.code() == 1 && named && end.stderr.contains(reason), "{end:?}");
    }
    assert_eq!(shown().lines().count(), 602);
}

#[test]
fn it_can_be_switched_off() {
    let Some(net) = Net::new() else { return };
    let runtime = Runtime::new(&net);
    let pasta = net.pasta_found_in(&runtime.path, &["--no-api"]);
    pasta.terminate();
    assert!(!fs::exists(format!("{}/passt", runtime.path)).unwrap());

    // A start that fails leaves nothing behind.
    let argv = net.pasta_argv(&["--config-net", "--netns", "/run/netns/missing"]);
    let end = runtime.run_in(&net.host, &argv.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(end.code(), 1, "{end:?}");
    assert_eq!(runtime.names(), [""; 0]);

    // So does a kernel that does not tell where clients are.
    if net.can_lack_features() {
        let argv = net.pasta_argv(&["--config-net", "--", "true"]);
        let lacking = [
            &["env", "PASST_TEST_MISSING=netns-cookie"][..],
            &argv.iter().map(String::as_str).collect::<Vec<_>>(),
        ];
        runtime.run_in(&net.host, &lacking.concat()).ok();
        assert_eq!(runtime.names(), [""; 0]);
    }
}
