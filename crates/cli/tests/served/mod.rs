//! A server as a process, with the built-in model, and what is asked of it over HTTP.
#![allow(dead_code)] // not every test needs all of it

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

pub const PATIENCE: Duration = Duration::from_secs(240);

/// A server that runs, and is ended with the test.
pub struct Server {
    pub child: Child,
    pub port: u16,
    pub key: Option<String>,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What was answered.
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.body)))
    }

    pub fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_string()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let line = self.head.lines().find(|line| line.to_lowercase().starts_with(&format!("{name}:")))?;
        Some(line.split_once(':')?.1.trim())
    }
}

impl Server {
    pub fn start(data: &Path) -> Self {
        Self::start_with(data, &[])
    }

    pub fn start_with(data: &Path, more: &[&str]) -> Self {
        let program = Command::new(env!("CARGO_BIN_EXE_navicache"));
        Self::start_as(program, data, more).unwrap_or_else(|said| panic!("it ended: {said}"))
    }

    /// By a command that takes the rest as its last arguments; or what it said before it ended.
    pub fn start_as(mut command: Command, data: &Path, more: &[&str]) -> Result<Self, String> {
        command.args(["serve", "--port", "0", "--data"]).arg(data).args(more);
        if !more.contains(&"--checkpoint-every") {
            command.args(["--checkpoint-every", "1"]);
        }
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut said = String::new();
        let port = loop {
            let Some(line) = lines.next() else {
                let _ = child.wait();
                return Err(said);
            };
            let line = line.unwrap();
            if let Some(address) = line.strip_prefix("listening on ") {
                let port = address.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
                break port.unwrap_or_else(|| panic!("expected a port at the end of {line:?}"));
            }
            said += &line;
        };
        std::thread::spawn(move || lines.for_each(drop));
        Ok(Server { child, port, key: None })
    }

    /// Sends bytes as they are, and reads to the end.
    pub fn raw(&self, request: &[u8]) -> Answer {
        self.try_raw(request).expect("an answer")
    }

    /// The same of a server that may end meanwhile.
    pub fn try_raw(&self, request: &[u8]) -> Option<Answer> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let _ = stream.write_all(request); // it may answer before it has read all
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
        let head = String::from_utf8_lossy(&answer[..end]).into_owned();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let mut body = answer[end..].to_vec();
        if head.to_lowercase().contains("transfer-encoding: chunked") {
            body = dechunked(&body);
        }
        Some(Answer { status, head, body })
    }

    pub fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        self.try_ask(method, path, headers, body).expect("an answer")
    }

    pub fn try_ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Option<Answer> {
        let mut head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
        if !headers.iter().any(|(name, _)| *name == "Host") {
            head += &format!("Host: 127.0.0.1:{}\r\n", self.port);
        }
        if let Some(key) = &self.key {
            head += &format!("Authorization: Bearer {key}\r\n");
        }
        headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
        if !body.is_empty() || method == "POST" {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        self.try_raw(&[head.as_bytes(), b"\r\n", body].concat())
    }

    pub fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[], b"")
    }

    pub fn post(&self, path: &str, body: &Value, headers: &[(&str, &str)]) -> Answer {
        let headers = [&[("Content-Type", "application/json")], headers].concat();
        self.ask("POST", path, &headers, body.to_string().as_bytes())
    }

    /// Takes a video, and says its name.
    pub fn create(&self, body: &Value) -> String {
        let answer = self.post("/v1/videos", body, &[]);
        assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
        answer.json()["id"].as_str().unwrap().to_string()
    }

    pub fn video(&self, id: &str) -> Value {
        let answer = self.get(&format!("/v1/videos/{id}"));
        assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
        answer.json()
    }

    /// Waits until a video is so, and says what it is then.
    pub fn wait(&self, id: &str, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let since = Instant::now();
        loop {
            let video = self.video(id);
            if is_so(&video) {
                return video;
            }
            assert!(since.elapsed() < PATIENCE, "not {what}: {video}");
            std::thread::sleep(Duration::from_millis(30));
        }
    }

    pub fn finished(&self, id: &str) -> Value {
        self.wait(id, "finished", |video| ["completed", "failed"].contains(&video["status"].as_str().unwrap()))
    }

    /// The process of its worker, where the system says.
    pub fn worker(&self) -> Option<u32> {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).ok()?;
        let children =
            threads.flatten().filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
        children.collect::<String>().split_whitespace().next()?.parse().ok()
    }

    /// Waits until nothing is left of attempts: what is finished is cleared away a moment later.
    pub fn wait_until_clear(&self, data: &Path) {
        let since = Instant::now();
        while std::fs::read_dir(data.join("work")).unwrap().count() > 0 {
            assert!(since.elapsed() < PATIENCE, "something is left of the attempts");
            std::thread::sleep(Duration::from_millis(30));
        }
    }

    pub fn stop(&mut self) {
        signal("TERM", self.child.id());
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}");
    }
}

pub fn signal(name: &str, process: u32) {
    let command = format!("kill -{name} {process}");
    assert!(Command::new("sh").args(["-c", &command]).status().unwrap().success(), "{command}");
}

fn dechunked(mut body: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    while let Some(end) = body.windows(2).position(|two| two == b"\r\n") {
        let length = usize::from_str_radix(std::str::from_utf8(&body[..end]).unwrap(), 16).unwrap();
        if length == 0 {
            break;
        }
        whole.extend_from_slice(&body[end + 2..end + 2 + length]);
        body = &body[end + 2 + length + 2..];
    }
    whole
}

pub fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// A video of the built-in model that is made in a moment.
pub fn small(prompt: &str) -> Value {
    json!({"prompt": prompt, "steps": 3, "frames": 5, "size": "32x32", "seed": 7})
}

/// One that takes a while.
pub fn long() -> Value {
    let prompt = "a red circle bouncing on a navy background";
    json!({"prompt": prompt, "steps": 100, "frames": 5, "size": "32x32", "seed": 7, "cache": "none"})
}
