//! Metrics by HTTP, `--metrics`.

use std::net::TcpStream;

use super::*;

const ADDRESS: &str = "127.0.0.1:9100";

/// Sends `request` and reads until the server closes the connection. Returns the status, the headers, and the body.
fn ask(net: &Net, request: &[u8]) -> (u16, String, String) {
    let mut stream = visit(net);
    // The server may answer, and close, before it has read all.
    let _ = stream.write_all(request);
    answer(stream)
}

fn visit(net: &Net) -> TcpStream {
    let stream = net.host.connect((LOOPBACK[0], 9100)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn answer(mut stream: TcpStream) -> (u16, String, String) {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{text:?}"));
    let (first, headers) = head.split_once("\r\n").unwrap();
    let status = first.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).unwrap();
    (status.parse().unwrap(), format!("{}\r\n", headers.to_ascii_lowercase()), body.into())
}

#[test]
fn requests_and_their_answers() {
    let Some(net) = Net::new() else { return };
    let pasta = net.pasta(&["--metrics", ADDRESS]);
    let (status, headers, body) = ask(&net, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(status, 200, "{body}");
    assert!(headers.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{headers}");
    assert!(headers.contains(&format!("content-length: {}\r\n", body.len())), "{headers}");
    assert!(body.contains("# TYPE passt_bytes_total counter\n") && !body.contains("# EOF"), "{body}");

    let accept = "Accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5";
    let request = format!("GET /metrics?a=b HTTP/1.0\r\n{accept}\r\n\r\n");
    let (status, headers, body) = ask(&net, request.as_bytes());
    assert!(status == 200 && headers.contains("application/openmetrics-text; version=1.0.0"), "{headers}");
    assert!(samples(&body).iter().any(|(name, _)| name.starts_with("passt_info{program=\"pasta\",")));

    for (request, expected) in [
        (&b"HEAD /metrics HTTP/1.1\r\n\r\n"[..], 200),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 405),
        (b"GET / HTTP/1.1\r\n\r\n", 404),
        (b"GET /metrics/x HTTP/1.1\r\n\r\n", 404),
        (b"nonsense\r\n\r\n", 400),
        (b"\0\xff\r\n\r\n", 400),
        (b"GET /metrics HTTP/2\r\n\r\n", 400),
        (&[b'G'; 9000], 431),
        (format!("GET /metrics HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(65)).as_bytes(), 431),
        (format!("GET /metrics HTTP/1.1\r\nA: {}\r\n\r\n", "b".repeat(8192)).as_bytes(), 431),
    ] {
        let (status, headers, body) = ask(&net, request);
        assert_eq!(status, expected, "{}", String::from_utf8_lossy(&request[..request.len().min(60)]));
        assert_eq!(body.is_empty(), expected == 200, "{body}");
        assert_eq!(headers.contains("allow: get, head\r\n"), expected == 405);
    }
    assert!(pasta.runs());
}

/// More connections than are served at a time. Those that ask nothing are closed with a status or without one, and the
/// others are served.
#[test]
fn slow_clients_are_closed() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["--metrics", ADDRESS]);
    let silent: Vec<TcpStream> = (0..8).map(|_| visit(&net)).collect();
    (&silent[0]).write_all(b"GET /metr").unwrap();
    let (status, _, _) = ask(&net, b"GET /metrics HTTP/1.1\r\n\r\n");
    assert_eq!(status, 200);
    let mut silent = silent.into_iter();
    assert_eq!(answer(silent.next().unwrap()).0, 408);
    for mut stream in silent {
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    }
}

#[test]
fn an_address_in_use_is_an_error() {
    let Some(net) = Net::new() else { return };
    let _other = net.host.listen((LOOPBACK[0], 9100));
    let end = net.run_pasta(&["--config-net", "--metrics", ADDRESS, "--", "true"]);
    assert!(end.code() == 1 && end.stderr.contains("--metrics: can't listen at 127.0.0.1:9100"), "{end:?}");
}

/// The guest reaches it only if it reaches the loopback of the host.
#[test]
fn a_guest_without_the_loopback_of_the_host_does_not_reach_it() {
    let Some(net) = Net::new() else { return };
    let closed = ["--no-map-gw", "-T", "none", "--metrics", "0.0.0.0:9100", "--deny", "host"];
    let pasta = net.pasta(&closed);
    for address in [GATEWAY[0], HOST[0]] {
        assert!(net.guest.connect((address, 9100)).is_err(), "{address}");
    }
    pasta.terminate();
    net.pasta(&["-T", "none", "--metrics", ADDRESS]);
    assert!(net.guest.connect((GATEWAY[0], 9100)).is_ok());
}

/// Without an API socket, too. promtool, if it is installed, checks names, types, units and help texts.
#[test]
fn curl_gets_what_promtool_has_no_objections_to() {
    need!("curl");
    let Some(net) = Net::new() else { return };
    net.pasta(&["--metrics", ADDRESS, "--no-api"]);
    let check = if has_tool("promtool") { "promtool check metrics" } else { "grep -q passt_refusals_total" };
    let script = format!("curl -sf http://{ADDRESS}/metrics >{0} && {check} <{0}", net.path("m"));
    let end = net.host.run(&["sh", "-c", &script]);
    assert_eq!((end.code(), &end.stdout[..], &end.stderr[..]), (0, "", ""));
}
