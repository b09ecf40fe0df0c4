//! Clients of the control socket and of the API socket.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::flow::{End, PATIENCE};

/// Connects to the API socket, subscribes, sends one request after the other, and expects a result of each.
pub(crate) fn api(socket: &Path) -> End {
    let requests = [
        ("subscribe", json!({})),
        ("config", json!({})),
        ("flows", json!({})),
        ("stats", json!({})),
        ("metrics", json!({})),
        ("policy", json!({})),
        ("policy.replace", json!({ "text": "allow all\n" })),
        ("why", json!({ "address": "198.51.100.3" })),
        ("rules", json!({})),
        ("dns", json!({})),
        ("neighbours", json!({})),
    ];
    let talk = || -> std::io::Result<Option<End>> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut reader = BufReader::new(stream);
        for (id, (name, arguments)) in requests.iter().enumerate() {
            let request = json!({ "id": id, "request": name, "arguments": arguments });
            reader.get_mut().write_all(format!("{request}\n").as_bytes())?;
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line)? == 0 {
                    return Ok(Some(End::Ended(format!("closed before the answer to {name}"))));
                }
                let Ok(answer) = serde_json::from_str::<Value>(&line) else {
                    return Ok(Some(End::Corrupt(line)));
                };
                if answer.get("event").is_some() {
                    continue;
                }
                if answer["id"] != id || answer.get("result").is_none() {
                    return Ok(Some(End::Ended(line)));
                }
                break;
            }
        }
        Ok(None)
    };
    match talk() {
        Ok(end) => end.unwrap_or(End::Whole),
        Err(error) if error.kind() == ErrorKind::WouldBlock => End::Hung("no answer".to_owned()),
        Err(error) => End::Ended(error.to_string()),
    }
}

/// Runs `pesto` with these arguments.
pub(crate) fn pesto(program: &Path, arguments: &[&str], socket: &Path) -> End {
    let patience = PATIENCE.as_secs().to_string();
    let output = Command::new("timeout").arg(&patience).arg(program).args(arguments).arg(socket).output();
    match output {
        Ok(output) if output.status.success() => End::Whole,
        Ok(output) if output.status.code() == Some(124) => End::Hung("pesto does not end".to_owned()),
        Ok(output) => End::Ended(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => End::Ended(error.to_string()),
    }
}
