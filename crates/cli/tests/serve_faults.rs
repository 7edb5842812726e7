//! A server that is killed at the worst moments, and one that lacks files, memory and time.

#![cfg(all(feature = "server", target_os = "linux", debug_assertions))]

mod served;

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use served::{PATIENCE, Server, folder, long, signal, small};

/// Places between two things that must survive a power cut, and how often each is passed while one video is made: where
/// blobs are kept, four times; and so on.
const PLACES: &[(&str, u32)] = &[
    ("commit begins", 8),
    ("committed", 8),
    ("attempt has a folder", 1),
    ("step done", 3),
    ("checkpoint written", 2),
    ("video written", 1),
    ("all written", 1),
    ("blob synced", 4),
    ("blob has a folder", 4),
    ("blob renamed", 4),
    ("blob kept", 4),
    ("attempt settled", 1),
    ("attempt removed", 1),
    ("file begun", 15),
    ("file written", FILES),
    ("file synced", FILES),
    ("file renamed", FILES),
    ("file kept", FILES),
];

/// Files that are written whole meanwhile: three checkpoints, the video and its report.
const FILES: u32 = 5;

/// The same places while a picture is kept.
const OF_A_PICTURE: &[&str] =
    &["picture begun", "picture written", "picture synced", "picture has a folder", "picture renamed", "picture kept"];

fn started(data: &Path, order: &Path) -> Option<Server> {
    let mut program = Command::new(env!("CARGO_BIN_EXE_navicache"));
    program.env("NAVICACHE_FAIL_POINT", order);
    Server::start_as(program, data, &[]).ok()
}

/// Makes a video with a crash at that place, a supervisor that starts the server again, and a client that asks until it
/// is answered. Its digest.
fn with_a_crash(place: &str, times: u32) -> Value {
    let folder = folder();
    let (data, order) = (folder.path().join("data"), folder.path().join("order"));
    std::fs::write(&order, format!("{place} {times}")).unwrap();
    let body = small("a red circle bouncing on a navy background").to_string();
    let headers = [("Content-Type", "application/json"), ("Idempotency-Key", "one")];
    let since = Instant::now();
    let (mut running, mut idle) = (None, 0);
    let video = loop {
        assert!(since.elapsed() < PATIENCE, "{place} {times}");
        let server = match &mut running {
            Some(server) => server,
            None => match started(&data, &order) {
                Some(server) => running.insert(server),
                None => continue, // it ended while it started
            },
        };
        let answer = server.try_ask("POST", "/v1/videos", &headers, body.as_bytes());
        if server.child.try_wait().unwrap().is_some() {
            running = None;
            continue;
        }
        // What was asked before is answered with how it stands.
        match answer.map(|answer| answer.json()) {
            Some(video) if video["status"] == "completed" && !order.exists() => break video,
            Some(video) if video["status"] == "completed" => idle += 1,
            _ => idle = 0,
        }
        assert!(idle < 100, "{place} is passed less than {times} times");
        std::thread::sleep(Duration::from_millis(20));
    };
    let mut server = running.take().or_else(|| started(&data, &order)).expect("a server");
    let list = server.get("/v1/videos").json();
    assert_eq!(list["data"].as_array().unwrap().len(), 1, "{place} {times}: {list}");
    let content = server.get(&format!("/v1/videos/{}/content", video["id"].as_str().unwrap()));
    assert_eq!((content.status, &content.body[4..8]), (200, &b"ftyp"[..]), "{place} {times}");
    server.wait_until_clear(&data);
    server.stop();
    video["navicache"]["sha256"].clone()
}

/// Eight grey pixels; the built-in model begins with no picture.
fn of_a_picture() -> Value {
    let picture = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAABCAAAAADGa7CfAAAAC0lEQVR4nGNogAIAEgkEAbbL+QwAAAAASUVORK5CYII=";
    json!({"prompt": "x", "input_reference": {"image_url": format!("data:image/png;base64,{picture}")}})
}

/// Blobs that are there by their digests.
fn blobs(data: &Path) -> Vec<PathBuf> {
    let places = std::fs::read_dir(data.join("blobs")).unwrap().map(|entry| entry.unwrap().path());
    let inside = places.filter(|place| place.is_dir()).flat_map(|folder| std::fs::read_dir(folder).unwrap());
    inside.map(|entry| entry.unwrap().path()).collect()
}

/// Sends a picture, with a crash while it is kept, and sends it again.
fn with_a_crash_over_a_picture(place: &str) {
    let folder = folder();
    let (data, order) = (folder.path().join("data"), folder.path().join("order"));
    let mut server = started(&data, &order).expect("a server");
    std::fs::write(&order, format!("{place} 1")).unwrap();
    let body = of_a_picture();
    let answer =
        server.try_ask("POST", "/v1/videos", &[("Content-Type", "application/json")], body.to_string().as_bytes());
    let answered = answer.map(|answer| answer.status);
    assert!(!order.exists(), "{place} is not passed: {answered:?}");
    server.child.wait().unwrap();
    let mut server = started(&data, &order).expect("a server");
    let answer = server.post("/v1/videos", &body, &[]);
    assert_eq!((answer.status, answer.json()["error"]["param"].as_str()), (400, Some("input_reference")), "{place}");
    assert_eq!(blobs(&data), Vec::<PathBuf>::new(), "{place}");
    server.stop();
}

fn undisturbed() -> Value {
    let data = folder();
    let server = Server::start(data.path());
    let id = server.create(&small("a red circle bouncing on a navy background"));
    server.finished(&id)["navicache"]["sha256"].clone()
}

#[test]
fn a_crash_between_two_durable_writes_loses_and_doubles_nothing() {
    let expected = undisturbed();
    for (place, times) in [
        ("commit begins", 2),
        ("committed", 2),
        ("step done", 2),
        ("checkpoint written", 1),
        ("all written", 1),
        ("blob synced", 1),
        ("blob has a folder", 1),
        ("blob renamed", 1),
        ("blob kept", 4),
        ("attempt settled", 1),
        ("file begun", 1),
        ("file renamed", 3),
    ] {
        assert_eq!(with_a_crash(place, times), expected, "{place} {times}");
    }
    with_a_crash_over_a_picture("picture renamed");
}

/// `cargo test -p navicache --test serve_faults -- --ignored --nocapture`
#[test]
#[ignore = "83 crashes take minutes"]
fn a_crash_at_every_place_every_time_loses_and_doubles_nothing() {
    let expected = undisturbed();
    let all = PLACES.iter().flat_map(|(place, times)| (1..=*times).map(move |times| (*place, times)));
    let mut crashes = 0;
    for (place, times) in all {
        assert_eq!(with_a_crash(place, times), expected, "{place} {times}");
        crashes += 1;
    }
    for place in OF_A_PICTURE {
        with_a_crash_over_a_picture(place);
        crashes += 1;
    }
    println!("{crashes} crashes: one video each, the same in every bit");
}

#[test]
fn who_kills_a_worker_or_its_server_does_not_fail_the_job() {
    let data = folder();
    let never = ["--checkpoint-every", "1000"];
    let mut server = Server::start_with(data.path(), &never);
    let id = server.create(&long());
    // More often than a worker may die of a job.
    for attempt in 1..=8 {
        server.wait(&id, "under way", |video| {
            let navicache = &video["navicache"];
            navicache["attempts"] == attempt && navicache["step"].as_u64().unwrap() >= 1
        });
        if let Some(worker) = server.worker() {
            signal("KILL", worker);
        }
        if attempt % 2 == 0 {
            server.child.kill().unwrap();
            server.child.wait().unwrap();
            server = Server::start_with(data.path(), &never);
        }
    }
    assert_eq!(server.finished(&id)["status"], "completed");
}

#[test]
fn silent_connections_make_room_and_files_are_left_for_the_work() {
    let data = folder();
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -n 160; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_navicache")]);
    let server = Server::start_as(shell, data.path(), &[]).unwrap();
    let id = server.create(&small("x"));
    let mut silent = Vec::new();
    for round in 0..20 {
        for _ in 0..20 {
            let mut stream = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
            let _ = stream.write_all(b"GET /health HTTP/1.1\r\nHost: localh"); // and no more
            silent.push(stream);
        }
        assert_eq!(server.get("/health").status, 200, "round {round}");
    }
    assert_eq!(server.finished(&id)["status"], "completed");
    let files = std::fs::read_dir(format!("/proc/{}/fd", server.child.id())).unwrap().count();
    assert!(files < 160, "{files} files");
    assert!(String::from_utf8(server.get("/metrics").body).unwrap().contains("reason=\"silent\""));
}

#[test]
fn metrics_have_an_address_of_their_own() {
    let data = folder();
    let keys = data.path().join("keys");
    let mut made = Command::new(env!("CARGO_BIN_EXE_navicache"));
    assert!(made.args(["serve", "key", "new", "ann", "--keys"]).arg(&keys).output().unwrap().status.success());
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let more = ["--keys", keys.to_str().unwrap(), "--metrics-listen", &free.to_string()];
    let mut server = Server::start_with(&data.path().join("d"), &more);
    assert_eq!(server.get("/metrics").status, 401);
    server.port = free.port();
    let metrics = server.get("/metrics");
    assert!(metrics.status == 200 && String::from_utf8_lossy(&metrics.body).contains("navicache_queue_capacity"));
    assert_eq!((server.get("/v1/videos").status, server.get("/").status), (404, 404), "nothing else is there");
}

#[test]
fn a_refused_request_leaves_no_picture() {
    let data = folder();
    let server = Server::start(data.path());
    let body = of_a_picture();
    for path in ["/v1/videos", "/v1/estimate"] {
        let answer = server.post(path, &body, &[]);
        assert_eq!((answer.status, answer.json()["error"]["param"].as_str()), (400, Some("input_reference")));
        assert_eq!(blobs(data.path()), Vec::<PathBuf>::new());
    }
}

#[test]
fn what_a_video_will_take_is_said_before_it_is_asked_for() {
    let data = folder();
    let server = Server::start(data.path());
    let ask = |body: &Value| server.post("/v1/estimate", body, &[]).json();
    let first = ask(&small("x"));
    assert_eq!((&first["device_seconds"], &first["seconds_ahead"]), (&Value::Null, &json!(0.0)), "{first}");
    let id = server.create(&small("x"));
    server.finished(&id);
    let (small_one, large) =
        (ask(&small("x")), ask(&json!({"prompt": "x", "steps": 30, "frames": 5, "size": "64x64"})));
    let seconds = |estimate: &Value| estimate["device_seconds"].as_f64().unwrap();
    assert!(seconds(&large) >= 10.0 * seconds(&small_one), "{small_one} {large}");
    assert_eq!(server.get("/v1/videos").json()["data"].as_array().unwrap().len(), 1, "nothing was made of them");
    let wrong = server.post("/v1/estimate", &json!({"prompt": "x", "size": "33x32"}), &[]);
    assert_eq!((wrong.status, wrong.json()["error"]["param"].as_str()), (400, Some("size")));
}
