//! The binary, against a running service and against none.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::thread;

use super::service::{Service, report, start};

fn tidings(url: &str, arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidings"));
    command.args(arguments).env("TIDINGS_URL", url).env_remove("TIDINGS_TOKEN").env_remove("TIDINGS_LOG").env_remove("TIDINGS_CONFIG");
    let mut running = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A command that doesn't want its input may be gone already.
    let _ = running.stdin.take().unwrap().write_all(input.as_bytes());
    running.wait_with_output().unwrap()
}

fn ask(service: &Service, arguments: &[&str], input: &str) -> (i32, String, String) {
    let output = tidings(&format!("http://{}", service.address), arguments, input);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn report_posts_what_it_reads_byte_for_byte_and_names_the_deliveries() {
    let service = start();
    let body = report("success", 1) + "\n";
    let (code, stdout, stderr) = ask(&service, &["report", "-"], &body);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert_eq!(stdout, "accepted: 1 report, 1 delivery\nID  CONNECTION  QOS  TOPIC\n3   mqtt        2    acme/check/widgets/1\n");
    assert_eq!(service.disk.payloads(), [body.as_bytes()]);
    let (code, stdout, _) = ask(&service, &["report", "--json"], &format!("{}\n{}\n", report("success", 2), report("dequeue", 3)));
    let answer: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, answer["reports"].as_array().unwrap().len()), (0, 2));
}

#[test]
fn report_says_what_was_wrong_and_where() {
    let service = start();
    let file = tempfile::Builder::new().suffix(".ndjson").tempfile().unwrap();
    std::fs::write(file.path(), format!("{}\n{{\n", report("success", 1))).unwrap();
    let (code, stdout, stderr) = ask(&service, &["report", file.path().to_str().unwrap()], "");
    assert_eq!((code, stdout.as_str()), (1, ""));
    assert!(stderr.starts_with("error: line 2: "), "{stderr}");
    assert!(stderr.contains("code:  invalid_json (HTTP 400)") && stderr.contains("field: line 2"), "{stderr}");
    let (code, _, stderr) = ask(&service, &["report", "/nowhere/report.json"], "");
    assert_eq!(code, 1);
    assert!(stderr.contains("/nowhere/report.json can't be read"), "{stderr}");
}

/// Reads a request whose body is a report.
fn read_report(stream: &mut TcpStream) -> String {
    let (mut text, mut buffer) = (String::new(), [0; 4_096]);
    while !text.ends_with('}') {
        let count = stream.read(&mut buffer).unwrap();
        assert_ne!(count, 0, "{text}");
        text.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    text
}

#[test]
fn report_tries_again_with_the_same_key_until_the_service_takes_it() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let body = r#"{"deliveries":[]}"#;
    let answers = [
        "".to_owned(),
        "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_owned(),
        format!("HTTP/1.1 202 Accepted\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len()),
    ];
    let serving = thread::spawn(move || {
        let request = |answer: String| {
            let (mut stream, _) = listener.accept().unwrap();
            let text = read_report(&mut stream);
            stream.write_all(answer.as_bytes()).unwrap();
            text.to_ascii_lowercase().lines().find(|line| line.starts_with("idempotency-key: ")).unwrap().to_owned()
        };
        answers.map(request)
    });
    let output = tidings(&url, &["report"], &report("success", 1));
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let keys = serving.join().unwrap();
    assert!(keys.iter().all(|key| *key == keys[0]), "{keys:?}");
}

#[test]
fn a_service_that_is_not_there_is_said_so_and_a_report_waits_a_little_for_it() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (command, waits) in [("report", 4), ("status", 0)] {
        let output = tidings(&format!("http://{free}"), &[command], "{}");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("is the service running"), "{stderr}");
        assert_eq!(stderr.matches("trying again in").count(), waits, "{stderr}");
    }
}

#[test]
fn a_report_to_a_service_that_is_just_starting_is_accepted() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut posting = Command::new(env!("CARGO_BIN_EXE_tidings"));
    posting.args(["report", "--url", &format!("http://{address}")]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut posting = posting.spawn().unwrap();
    posting.stdin.take().unwrap().write_all(report("success", 1).as_bytes()).unwrap();
    let mut said = BufReader::new(posting.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("trying again in") {
        line.clear();
        assert_ne!(said.read_line(&mut line).unwrap(), 0, "it has given up");
    }
    let listener = TcpListener::bind(address).unwrap();
    let serving = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        read_report(&mut stream);
        let body = r#"{"deliveries":[]}"#;
        write!(stream, "HTTP/1.1 202 Accepted\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len()).unwrap();
    });
    assert_eq!(posting.wait().unwrap().code(), Some(0));
    serving.join().unwrap();
}

#[test]
fn a_token_is_shown_to_the_service() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let token = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(token.path(), "sesame\n").unwrap();
    let serving = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut buffer = [0; 4_096];
        let count = stream.read(&mut buffer).unwrap();
        stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
        String::from_utf8_lossy(&buffer[..count]).to_ascii_lowercase()
    });
    let output = tidings(&url, &["status", "--token-file", token.path().to_str().unwrap()], "");
    assert_eq!(output.status.code(), Some(1));
    let request = serving.join().unwrap();
    assert!(request.starts_with("get /v1/status http/1.1\r\n") && request.contains("authorization: bearer sesame\r\n"), "{request}");
    assert_eq!(tidings(&url, &["status", "--token-file", "/nowhere"], "").status.code(), Some(2));
}

#[test]
fn status_is_a_table_or_json() {
    let service = start();
    ask(&service, &["report"], &report("success", 1));
    let (code, stdout, _) = ask(&service, &["status"], "");
    assert_eq!(code, 0);
    assert!(stdout.contains("CONNECTION  BACKLOG") && stdout.contains("mqtt/3"), "{stdout}");
    let (code, stdout, _) = ask(&service, &["status", "--json"], "");
    let status: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, &status["connections"][0]["backlog"]), (0, &serde_json::json!(1)));
}

#[test]
fn wrong_usage_is_exit_code_2() {
    for arguments in
        [&["reprot"][..], &[], &["report", "--nonsense"], &["completions", "cobol"], &["serve", "--config", "/nowhere/tidings.toml"]]
    {
        let output = tidings("http://127.0.0.1:1", arguments, "");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(!output.stderr.is_empty());
    }
    for arguments in [&["status"][..], &["list"], &["report"], &["replay", "--dry-run"]] {
        let output = tidings("localhost:8470", arguments, "{}");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.contains("check --url"), "{arguments:?}: {stderr}");
    }
}

#[test]
fn completions_are_for_this_command_line() {
    for shell in ["bash", "zsh", "fish"] {
        let output = tidings("http://127.0.0.1:1", &["completions", shell], "");
        assert!(output.status.success());
        assert!(String::from_utf8(output.stdout).unwrap().contains("token-file"), "{shell}");
    }
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidings"));
    let mut running = command.args(["completions", "zsh"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(running.stdout.take());
    let output = running.wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8(output.stderr).unwrap()), (Some(0), String::new()));
}
