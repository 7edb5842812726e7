//! Downloads from a server that behaves badly in every way that servers do.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use navicache_hub::{Event, Hub};
use navicache_weights::hub_cache::HubCache;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

const REPOSITORY: &str = "someone/model";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const FILE: &str = "sub/weights.safetensors";

/// What the server does wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// Closes the connection after this many bytes of a file.
    BreaksAfter(usize),
    /// The same, and gives whole files to those who ask for the rest.
    BreaksAndForgets(usize),
    /// Announces another checksum than the file's.
    WrongChecksum,
    /// Flips a bit of the first file that it sends.
    FlipsOnce,
    Status(u16),
    /// Answers a list that is none.
    Nonsense,
    /// Announces a file that no disk has room for.
    Huge,
    /// Offers a file outside of the folder.
    Escapes,
    /// Leaves sizes and hashes out of the list.
    Terse,
}

struct Server {
    address: String,
    /// Requests as they came: method, path and the headers that matter.
    seen: Arc<Mutex<Vec<String>>>,
}

fn content() -> Vec<u8> {
    (0..100_000u32).flat_map(|i| i.wrapping_mul(2654435761).to_le_bytes()).collect()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

fn serve(fault: Fault) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let (log, mut sent) = (seen.clone(), 0);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            // One connection a request: whoever wants more connects again.
            answer(stream.unwrap(), fault, &log, &mut sent);
        }
    });
    Server { address, seen }
}

fn answer(mut stream: TcpStream, fault: Fault, log: &Mutex<Vec<String>>, sent: &mut usize) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let (mut headers, mut header) = (BTreeMap::new(), String::new());
    while reader.read_line(&mut header).unwrap() > 2 {
        if let Some((name, value)) = header.trim().split_once(": ") {
            headers.insert(name.to_lowercase(), value.to_string());
        }
        header.clear();
    }
    let mut words = line.split(' ');
    let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let (range, token) = (headers.get("range").cloned(), headers.get("authorization").cloned());
    log.lock().unwrap().push(format!("{method} {path} {range:?} {token:?}"));
    if let Fault::Status(status) = fault {
        return reply(&mut stream, status, &[], b"no");
    }
    let bytes = content();
    if path == format!("/api/models/{REPOSITORY}/revision/main?blobs=true") {
        let hash = if fault == Fault::WrongChecksum { "a".repeat(64) } else { sha256(&bytes) };
        let size = if fault == Fault::Huge { 1u64 << 60 } else { bytes.len() as u64 };
        let name = if fault == Fault::Escapes { "../../evil.safetensors" } else { FILE };
        let list = match fault {
            Fault::Nonsense => "<html>please log in</html>".to_string(),
            Fault::Terse => format!(r#"{{"sha": "{COMMIT}", "siblings": [{{"rfilename": "{name}"}}]}}"#),
            _ => format!(
                r#"{{"sha": "{COMMIT}", "siblings": [{{"rfilename": "README.md", "size": 3}},
                    {{"rfilename": "{name}", "size": {size}, "lfs": {{"sha256": "{hash}", "size": {size}}}}},
                    {{"rfilename": "config.json", "size": 2, "blobId": "9e26dfeeb6e641a33dae4961196235bdb965b21b"}}]}}"#
            ),
        };
        return reply(&mut stream, 200, &[], list.as_bytes());
    }
    if path.ends_with("/config.json") {
        return reply(&mut stream, 200, &[], b"{}");
    }
    assert_eq!(path, format!("/{REPOSITORY}/resolve/{COMMIT}/{FILE}"));
    if method == "HEAD" {
        let head = format!(
            "HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nX-Linked-Size: {}\r\nX-Linked-Etag: \"{}\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            bytes.len(),
            sha256(&bytes)
        );
        return stream.write_all(head.as_bytes()).unwrap();
    }
    let from: usize =
        range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()).unwrap_or(0);
    let (status, from) = match fault {
        Fault::BreaksAndForgets(_) => (200, 0),
        _ if from > 0 => (206, from),
        _ => (200, 0),
    };
    let mut part = bytes[from..].to_vec();
    if fault == Fault::FlipsOnce && *sent == 0 {
        part[1000] ^= 1;
    }
    *sent += 1;
    let range = format!("Content-Range: bytes {from}-{}/{}\r\n", bytes.len() - 1, bytes.len());
    let head = format!("HTTP/1.1 {status} OK\r\nContent-Length: {}\r\n{range}Connection: close\r\n\r\n", part.len());
    let length = match fault {
        // The more it has been asked, the longer it lasts: a file that is sent anew must come through some time.
        Fault::BreaksAndForgets(length) => (length * *sent).min(part.len()),
        Fault::BreaksAfter(length) => length.min(part.len()),
        _ => part.len(),
    };
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&part[..length]));
}

fn reply(stream: &mut TcpStream, status: u16, headers: &[&str], body: &[u8]) {
    let head = format!(
        "HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n{}\r\n",
        body.len(),
        headers.concat()
    );
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
}

fn hub(server: &Server, cache: &Path) -> Hub {
    Hub {
        endpoint: server.address.clone(),
        cache: HubCache(cache.to_path_buf()),
        token: Some("secret".to_string()),
        offline: false,
        pause: Duration::from_millis(1),
    }
}

fn pull(fault: Fault) -> (TempDir, Server, navicache_hub::Result<PathBuf>) {
    let (cache, server) = (tempfile::tempdir().unwrap(), serve(fault));
    let pulled = hub(&server, cache.path()).pull(REPOSITORY, &[], &mut |_| ControlFlow::Continue(()));
    (cache, server, pulled)
}

/// Every file below a folder that does not say of itself that it is incomplete.
fn whole_files(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_none_or(|e| e != "incomplete") {
                found.push(path.file_name().unwrap().to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    found
}

fn is_whole(pulled: navicache_hub::Result<PathBuf>) {
    let snapshot = pulled.unwrap();
    assert!(snapshot.ends_with(Path::new("snapshots").join(COMMIT)));
    assert_eq!(std::fs::read(snapshot.join(FILE)).unwrap(), content());
    assert_eq!(std::fs::read(snapshot.join("config.json")).unwrap(), b"{}");
    assert!(!snapshot.join("README.md").exists());
}

#[test]
fn a_model_comes_whole_and_is_found_again() {
    let (cache, server, pulled) = pull(Fault::None);
    is_whole(pulled);
    let requests = server.seen.lock().unwrap().len();
    let hub = hub(&server, cache.path());
    assert!(server.seen.lock().unwrap()[0].contains("Bearer secret"));
    assert_eq!(
        hub.cache.snapshot(REPOSITORY).unwrap(),
        cache.path().join("models--someone--model/snapshots").join(COMMIT)
    );
    hub.pull(REPOSITORY, &[], &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(server.seen.lock().unwrap().len(), requests + 1, "only the list is asked for again");
    let offline = Hub { offline: true, endpoint: "http://127.0.0.1:1".to_string(), ..hub };
    offline.pull(REPOSITORY, &[], &mut |_| ControlFlow::Continue(())).unwrap();
    let missing = offline.pull("someone/else", &[], &mut |_| ControlFlow::Continue(())).unwrap_err().to_string();
    assert!(missing.contains("HF_HUB_OFFLINE"), "{missing}");
}

#[test]
fn a_connection_that_breaks_is_taken_up_where_it_broke() {
    let (_cache, server, pulled) = pull(Fault::BreaksAfter(90_000));
    is_whole(pulled);
    let seen = server.seen.lock().unwrap().join("\n");
    assert!(seen.contains("bytes=90000-") && seen.contains("bytes=360000-"), "{seen}");
}

#[test]
fn a_server_that_knows_no_ranges_starts_again() {
    is_whole(pull(Fault::BreaksAndForgets(150_000)).2);
}

#[test]
fn sizes_and_hashes_may_come_with_the_file() {
    let (cache, server) = (tempfile::tempdir().unwrap(), serve(Fault::Terse));
    let path = hub(&server, cache.path()).pull(REPOSITORY, &[], &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(std::fs::read(path.join(FILE)).unwrap(), content());
}

#[test]
fn one_flipped_bit_is_seen_and_fetched_again() {
    is_whole(pull(Fault::FlipsOnce).2);
}

#[test]
fn what_cannot_be_had_is_said_and_nothing_looks_whole() {
    let cases: [(Fault, &[&str]); 8] = [
        (Fault::WrongChecksum, &["expected a checksum of aaaa", "nothing of it was kept"]),
        (Fault::BreaksAfter(0), &["0 of 400000 bytes are kept", "pull again"]),
        (Fault::Status(401), &["401", "HF_TOKEN"]),
        (Fault::Status(403), &["403", "accept the terms"]),
        (Fault::Status(404), &["404", "navicache models"]),
        (Fault::Status(503), &["503", "try again later"]),
        (Fault::Nonsense, &["expected the list of a repository's files"]),
        (Fault::Escapes, &["../../evil.safetensors"]),
    ];
    for (fault, parts) in cases {
        let (cache, _server, pulled) = pull(fault);
        let message = pulled.unwrap_err().to_string();
        assert!(parts.iter().all(|part| message.contains(part)), "{fault:?}: {message}");
        assert!(whole_files(cache.path()).is_empty(), "{fault:?} left {:?}", whole_files(cache.path()));
    }
}

#[test]
fn a_disk_without_room_is_known_before_the_first_byte() {
    let (cache, server, pulled) = pull(Fault::Huge);
    let message = pulled.unwrap_err().to_string();
    assert!(message.contains("GB are free") && message.contains("HF_HOME"), "{message}");
    assert!(whole_files(cache.path()).is_empty());
    assert_eq!(server.seen.lock().unwrap().len(), 1, "nothing but the list");
}

#[test]
fn a_download_that_was_stopped_goes_on() {
    let (cache, server) = (tempfile::tempdir().unwrap(), serve(Fault::BreaksAfter(90_000)));
    let hub = hub(&server, cache.path());
    let mut events = 0;
    let stopped = hub.pull(REPOSITORY, &[], &mut |event| {
        events += matches!(event, Event::Progress { .. }) as usize;
        if events == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(stopped.unwrap_err().to_string().contains("pull again to go on"));
    assert!(hub.cache.snapshot(REPOSITORY).is_none() && whole_files(cache.path()).is_empty());
    let before = server.seen.lock().unwrap().len();
    is_whole(hub.pull(REPOSITORY, &[], &mut |_| ControlFlow::Continue(())));
    let after = server.seen.lock().unwrap()[before + 1].clone();
    assert!(after.contains("bytes=") && !after.contains("bytes=0-"), "{after}");
}

#[test]
fn no_server_at_all() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server { address: "http://127.0.0.1:1".to_string(), seen: Arc::default() };
    let error = hub(&server, cache.path()).pull(REPOSITORY, &[], &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(error.to_string().contains("cannot be reached"), "{error}");
}
