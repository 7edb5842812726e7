//! The server as a process, over HTTP, with the built-in model: what is asked, answered, killed and found again.

#![cfg(feature = "server")]

mod served;

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use served::{PATIENCE, Server, folder, long, signal, small};

#[test]
fn from_a_prompt_to_a_video() {
    let data = folder();
    let mut server = Server::start(data.path());
    let answer = server.post(
        "/v1/videos",
        &json!({
            "prompt": "a red circle bouncing on a navy background", "seconds": "0.5", "size": "32x32",
            "extra_body": {"num_inference_steps": 3}, "new_field": true,
        }),
        &[("x-request-id", "mine-1")],
    );
    assert_eq!((answer.status, answer.header("x-request-id")), (200, Some("mine-1")));
    let video = answer.json();
    let id = video["id"].as_str().unwrap().to_string();
    assert!(id.starts_with("video_") && id.len() == 32);
    assert_eq!(
        (&video["object"], &video["status"], &video["model"]),
        (&json!("video"), &json!("queued"), &json!("demo"))
    );
    assert!(video["created_at"].is_i64() && video["progress"].is_i64() && video["seconds"].is_string());
    assert!(video["navicache"]["warnings"].to_string().contains("`new_field`"), "{video}");
    let early = server.get(&format!("/v1/videos/{id}/content"));
    assert!(early.status == 404 || early.status == 200, "{}", early.status);

    let video = server.finished(&id);
    assert_eq!((&video["status"], &video["progress"]), (&json!("completed"), &json!(100)), "{video}");
    assert_eq!((&video["navicache"]["steps"], &video["size"]), (&json!(3), &json!("32x32")));
    assert_eq!(video["navicache"]["strip"].as_str().unwrap().matches('|').count(), 3);

    let whole = server.get(&format!("/v1/videos/{id}/content"));
    assert_eq!((whole.status, whole.header("content-type")), (200, Some("video/mp4")));
    assert_eq!(&whole.body[4..8], b"ftyp");
    assert_eq!(whole.header("etag").unwrap().trim_matches('"'), video["navicache"]["sha256"]);
    assert_eq!(whole.body.len() as u64, video["navicache"]["bytes"]);
    let range = |range: &str, more: &[(&str, &str)]| {
        server.ask("GET", &format!("/v1/videos/{id}/content"), &[&[("Range", range)], more].concat(), b"")
    };
    let part = range("bytes=4-7", &[]);
    assert_eq!((part.status, &part.body[..]), (206, &b"ftyp"[..]));
    assert_eq!(part.header("content-range"), Some(&*format!("bytes 4-7/{}", whole.body.len())));
    assert_eq!(range("bytes=9999999-", &[]).status, 416);
    assert_eq!(range("bytes=0-0", &[("If-Range", "\"other\"")]).status, 200);
    let head = server.ask("HEAD", &format!("/v1/videos/{id}/content"), &[], b"");
    assert_eq!((head.status, head.body.len()), (200, 0));
    for (variant, kind, magic) in
        [("thumbnail", "image/webp", &b"RIFF"[..]), ("spritesheet", "image/jpeg", b"\xff\xd8")]
    {
        let picture = server.get(&format!("/v1/videos/{id}/content?variant={variant}"));
        assert_eq!(picture.header("content-type"), Some(kind));
        assert!(picture.body.starts_with(magic), "{variant}");
    }
    let report = server.get(&format!("/v1/videos/{id}/content?variant=report"));
    assert_eq!((&report.json()["model"], &report.json()["request"]["steps"]), (&json!("demo"), &json!(3)));
    assert!(!String::from_utf8_lossy(&report.body).contains(data.path().to_str().unwrap()));

    // The same again, by remix, from a list; then it is removed.
    let remix = server.post(
        &format!("/v1/videos/{id}/remix"),
        &json!({"prompt": "a blue star spinning on a cream background"}),
        &[],
    );
    let remix = remix.json();
    assert_eq!(
        (&remix["remixed_from_video_id"], &remix["navicache"]["seed"]),
        (&json!(id), &video["navicache"]["seed"])
    );
    let list = server.get("/v1/videos?limit=1").json();
    assert_eq!(
        (&list["data"][0]["id"], &list["has_more"], &list["last_id"]),
        (&remix["id"], &json!(true), &remix["id"])
    );
    let next = server.get(&format!("/v1/videos?limit=1&after={}", list["last_id"].as_str().unwrap())).json();
    assert_eq!((&next["data"][0]["id"], &next["has_more"]), (&json!(id), &json!(false)));
    server.finished(remix["id"].as_str().unwrap());
    let deleted = server.ask("DELETE", &format!("/v1/videos/{id}"), &[("Content-Type", "application/json")], b"");
    assert_eq!(deleted.json(), json!({"id": id, "object": "video.deleted", "deleted": true}));
    assert_eq!(server.get(&format!("/v1/videos/{id}")).status, 404);
    assert_eq!(server.ask("DELETE", &format!("/v1/videos/{id}"), &[], b"").status, 404);
    server.stop();
}

#[test]
fn killed_in_the_middle_it_finishes_the_same_video() {
    let data = folder();
    let reference = {
        let server = Server::start(data.path());
        let id = server.create(&long());
        server.finished(&id)["navicache"]["sha256"].clone()
    };
    assert!(reference.is_string());
    let mut server = Server::start(data.path());
    let id = server.create(&long());
    let under_way = |video: &Value| video["navicache"]["step"].as_u64().unwrap() >= 5;
    server.wait(&id, "under way", under_way);

    // The worker dies: the server goes on.
    if let Some(worker) = server.worker() {
        signal("KILL", worker);
        let resumed = server.wait(&id, "resumed", |video| {
            let navicache = &video["navicache"];
            navicache["attempts"] == 2 && navicache["resumed_at_step"].is_u64() || video["status"] == "completed"
        });
        assert!(resumed["navicache"]["attempts"] == 2, "{resumed}");
    }
    // The server dies: the next one goes on.
    server.child.kill().unwrap();
    server.child.wait().unwrap();
    drop(server);
    let mut server = Server::start(data.path());
    let video = server.finished(&id);
    assert_eq!((&video["status"], &video["navicache"]["sha256"]), (&json!("completed"), &reference), "{video}");
    assert!(video["navicache"]["attempts"].as_u64().unwrap() >= 2);
    server.wait_until_clear(data.path());

    // Stopped in the middle, it leaves the job where it is.
    let id = server.create(&long());
    server.wait(&id, "under way", under_way);
    server.stop();
    let server = Server::start(data.path());
    let before = server.video(&id);
    assert!(before["navicache"]["step"].as_u64().unwrap() >= 5, "{before}");
    assert_eq!(server.finished(&id)["status"], "completed");
}

#[test]
fn cancelled_and_deleted_jobs_do_not_keep_the_next_waiting() {
    let data = folder();
    let server = Server::start(data.path());
    let (running, waiting) = (server.create(&long()), server.create(&long()));
    let events = std::thread::scope(|scope| {
        let events = scope.spawn(|| server.get(&format!("/v1/videos/{running}/events")));
        server.wait(&running, "under way", |video| video["navicache"]["step"].as_u64().unwrap() >= 2);
        assert_eq!(server.video(&waiting)["navicache"]["queue_position"], 1);
        for (id, message) in [(&running, "running"), (&waiting, "waiting")] {
            let video = server.post(&format!("/v1/videos/{id}/cancel"), &json!({}), &[]).json();
            assert_eq!(
                (&video["status"], &video["error"]["code"]),
                (&json!("failed"), &json!("cancelled")),
                "{message}"
            );
            let again = server.post(&format!("/v1/videos/{id}/cancel"), &json!({}), &[]);
            assert_eq!(
                (again.status, again.code().as_str(), again.header("x-should-retry")),
                (409, "already_finished", Some("false"))
            );
        }
        events.join().unwrap()
    });
    let events = String::from_utf8(events.body).unwrap();
    let named = |name: &str| events.matches(&format!("event: {name}\n")).count();
    assert!(events.starts_with("id: ") && named("step") >= 1 && named("done") == 1, "{events}");
    let done = events.rsplit("event: done\ndata: ").next().unwrap();
    assert_eq!(serde_json::from_str::<Value>(done.trim()).unwrap()["status"], "failed");
    assert_eq!(server.get(&format!("/v1/videos/{running}/content")).code(), "video_failed");

    let deleted = server.create(&long());
    server.wait(&deleted, "under way", |video| video["navicache"]["step"].as_u64().unwrap() >= 1);
    assert_eq!(server.ask("DELETE", &format!("/v1/videos/{deleted}"), &[], b"").status, 200);
    let next = server.create(&small("a red circle growing on a black background"));
    assert_eq!(server.finished(&next)["status"], "completed");
    server.wait_until_clear(data.path());
}

#[test]
fn a_request_that_is_sent_again_makes_one_video() {
    let data = folder();
    let server = Server::start(data.path());
    let first = server.post("/v1/videos", &small("x"), &[("Idempotency-Key", "k1")]);
    let again = server.post("/v1/videos", &small("x"), &[("Idempotency-Key", "k1")]);
    assert_eq!(first.json()["id"], again.json()["id"]);
    assert_eq!((first.header("idempotency-replayed"), again.header("idempotency-replayed")), (None, Some("true")));
    // The same fields in another kind of body are the same request.
    let part =
        |name: &str, value: &str| format!("--B\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n");
    let fields = [("prompt", "x"), ("steps", "3"), ("frames", "5"), ("size", "32x32"), ("seed", "7")];
    let form = fields.iter().map(|(name, value)| part(name, value)).collect::<String>() + "--B--\r\n";
    let kind = [("Content-Type", "multipart/form-data; boundary=B"), ("Idempotency-Key", "k1")];
    assert_eq!(server.ask("POST", "/v1/videos", &kind, form.as_bytes()).json()["id"], first.json()["id"]);
    let other = server.post("/v1/videos", &small("y"), &[("Idempotency-Key", "k1")]);
    assert_eq!(
        (other.status, other.code().as_str(), other.header("x-should-retry")),
        (409, "idempotency_conflict", Some("false"))
    );

    // A client that tries again by itself sends no key, but a count.
    let first = server.post("/v1/videos", &small("z"), &[("x-stainless-retry-count", "0")]).json();
    let retried = server.post("/v1/videos", &small("z"), &[("x-stainless-retry-count", "1")]).json();
    let wished = server.post("/v1/videos", &small("z"), &[("x-stainless-retry-count", "0")]).json();
    assert_eq!(first["id"], retried["id"]);
    assert_ne!(first["id"], wished["id"]);
}

#[test]
fn what_is_wrong_is_refused_in_the_clients_words() {
    let data = folder();
    let server = Server::start_with(data.path(), &["--max-steps", "10", "--max-video", "96x96x25", "--max-queue", "0"]);
    let full = server.post("/v1/videos", &small("x"), &[]);
    assert_eq!((full.status, full.code().as_str()), (429, "queue_full"));
    assert!(full.header("retry-after").is_some());
    drop(server);

    let server = Server::start_with(data.path(), &["--max-steps", "10", "--max-video", "96x96x25"]);
    for (body, param, code) in [
        (json!({}), "prompt", "invalid_value"),
        (json!({"prompt": ""}), "prompt", "invalid_value"),
        (json!({"prompt": "x", "size": "33x32"}), "size", "invalid_value"),
        (json!({"prompt": "x", "frames": 6}), "frames", "invalid_value"),
        (json!({"prompt": "x", "steps": 11}), "steps", "too_large"),
        (json!({"prompt": "x", "size": "640x640", "frames": 5, "steps": 3}), "size", "too_large"),
        (json!({"prompt": "x", "model": "gpt"}), "model", "model_not_found"),
        (json!({"prompt": "x", "cache": "@/etc/passwd"}), "cache", "invalid_value"),
        (json!({"prompt": "x", "cache": "nonsense"}), "cache", "invalid_value"),
        (json!({"prompt": "x", "cache": "navicache,threshold=many"}), "cache", "invalid_value"),
        (
            json!({"prompt": "x", "input_reference": {"image_url": "http://169.254.169.254/"}}),
            "input_reference",
            "url_not_supported",
        ),
        (
            json!({"prompt": "x", "input_reference": {"image_url": "data:image/png;base64,AAAA"}}),
            "input_reference",
            "bad_image",
        ),
    ] {
        let answer = server.post("/v1/videos", &body, &[]);
        assert_eq!((answer.status, answer.code().as_str()), (400, code), "{body}: {}", answer.json());
        assert_eq!(answer.json()["error"]["param"], param, "{body}: {}", answer.json());
        assert!(!answer.json()["error"]["message"].as_str().unwrap().contains(data.path().to_str().unwrap()));
    }
    let kind = |kind: &str| server.ask("POST", "/v1/videos", &[("Content-Type", kind)], b"x").status;
    assert_eq!((kind("text/plain"), kind("multipart/form-data"), kind("application/json")), (415, 415, 400));
    let gzip = [("Content-Type", "application/json"), ("Content-Encoding", "gzip")];
    assert_eq!(server.ask("POST", "/v1/videos", &gzip, b"x").status, 415);
    let declared = "POST /v1/videos HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: 1000000000\r\n\r\n";
    assert_eq!(server.raw(declared.as_bytes()).status, 413);
    for (method, path, status) in [
        ("GET", "/nothing", 404),
        ("PUT", "/v1/videos", 405),
        ("GET", "/v1/videos/..%2f..%2fetc%2fpasswd", 404),
        ("GET", "/v1/videos/video_00000000000000000000000000/content", 404),
        ("GET", "/v1/videos/%00", 404),
        ("GET", "/v1/videos?limit=0", 400),
        ("GET", "/v1/videos?order=up", 400),
        ("GET", "/v1/videos?after=../x", 400),
        ("POST", "/v1/videos/edits", 404),
    ] {
        let answer = server.ask(method, path, &[], b"");
        assert_eq!(answer.status, status, "{method} {path}");
        assert!(answer.json()["error"]["message"].is_string(), "{method} {path}");
        assert!(answer.header("x-request-id").is_some());
    }
    assert!(server.ask("PUT", "/v1/videos", &[], b"").header("allow").unwrap().contains("POST"));
}

#[test]
fn other_origins_and_other_names_are_refused() {
    let data = folder();
    let server = Server::start_with(data.path(), &["--cors", "https://friend.example"]);
    let host = format!("127.0.0.1:{}", server.port);
    let own = format!("http://{host}");
    for (headers, status) in [
        (&[("Host", "attacker.example")][..], 403),
        (&[("Origin", "https://attacker.example")], 403),
        (&[("Origin", "null")], 403),
        (&[("Origin", own.as_str())], 200),
        (&[("Origin", "https://friend.example")], 200),
        (&[("Host", "localhost")], 200),
        (&[], 200),
    ] {
        let answer = server.ask("GET", "/v1/videos", headers, b"");
        assert_eq!(answer.status, status, "{headers:?}");
        let is_friend = headers.iter().any(|(_, value)| value.contains("friend"));
        assert_eq!(answer.header("access-control-allow-origin").is_some(), is_friend);
        assert_eq!(answer.header("access-control-allow-credentials"), None);
    }
    let preflight = server.ask("OPTIONS", "/v1/videos", &[("Origin", "https://friend.example")], b"");
    assert_eq!(preflight.status, 204);
    for path in [
        "/",
        "/page.css",
        "/page.js",
        "/openapi.json",
        "/health",
        "/metrics",
        "/v1/models",
        "/v1/models/demo",
        "/v1/queue",
    ] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
    let since = Instant::now();
    while server.get("/ready").status != 200 {
        assert!(since.elapsed() < PATIENCE, "{}", server.get("/ready").json());
        std::thread::sleep(Duration::from_millis(50));
    }
    // What it says of itself is what it does: every route is there, with these methods and no others.
    let described = server.get("/openapi.json").json();
    for (path, methods) in described["paths"].as_object().unwrap() {
        let place = path.replace("{id}", "video_00000000000000000000000000");
        for method in ["GET", "POST", "DELETE", "PUT"] {
            let is_listed = methods.get(method.to_lowercase()).is_some();
            let answer = server.ask(method, &place, &[], b"");
            assert_eq!(answer.status != 405, is_listed, "{method} {path}: {}", answer.status);
            let is_known = answer.status < 400 || answer.status == 405 || answer.code() != "not_found";
            assert!(is_known || path == "/ready", "{method} {path}: {}", answer.status);
            let listed = &methods[method.to_lowercase()]["responses"];
            assert!(
                !is_listed || listed.get(answer.status.to_string()).is_some(),
                "{method} {path}: {}",
                answer.status
            );
        }
    }
    for path in ["/", "/page.css", "/page.js", "/favicon.svg"] {
        let tag = server.get(path).header("etag").unwrap().to_string();
        let again = |tags: &str| server.ask("GET", path, &[("If-None-Match", tags)], b"");
        assert_eq!((again(&tag).status, again(&tag).body.len()), (304, 0), "{path}");
        assert_eq!((again(&format!("\"x\", W/{tag}")).status, again("\"x\"").status), (304, 200), "{path}");
    }
    assert!(server.get("/").header("content-security-policy").unwrap().contains("frame-ancestors 'none'"));
    let metrics = String::from_utf8(server.get("/metrics").body).unwrap();
    for name in
        ["navicache_build_info", "navicache_http_requests_total{", "navicache_jobs{", "navicache_queue_capacity 1000"]
    {
        assert!(metrics.contains(name), "{name}: {metrics}");
    }
}

#[test]
fn a_key_sees_its_own_jobs() {
    let data = folder();
    let keys = data.path().join("keys");
    let command = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_navicache"));
        let output = command.args(["serve", "key"]).args(arguments).arg("--keys").arg(&keys).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_string()
    };
    let (ann, bob) = (command(&["new", "ann"]), command(&["new", "bob", "--admin", "--weight", "2"]));
    assert_eq!(command(&["list"]), "ann weight=1\nbob weight=2 admin");
    let mut server =
        Server::start_with(&data.path().join("d"), &["--keys", keys.to_str().unwrap(), "--host", "0.0.0.0"]);
    assert_eq!(
        (server.get("/v1/videos").status, server.get("/metrics").status, server.get("/health").status),
        (401, 401, 200)
    );
    server.key = Some(ann.clone());
    let id = server.create(&small("x"));
    let refused = server.post("/v1/videos", &json!({"prompt": "x", "priority": 5}), &[]);
    assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &json!("priority")));
    command(&["new", "eve"]);
    server.key = Some(bob);
    assert_eq!(server.get("/v1/videos").json()["data"], json!([]), "a list is the key's own");
    assert_eq!(server.get(&format!("/v1/videos/{id}")).status, 200, "an administrator finds all");
    server.key = Some(ann.replace("ann", "bob"));
    assert_eq!(server.get(&format!("/v1/videos/{id}")).status, 401);
    server.key = Some(ann);
    server.finished(&id);
    command(&["revoke", "ann"]);
    std::thread::sleep(Duration::from_millis(1200));
    assert_eq!(server.get("/v1/videos").status, 401, "it was revoked while the server ran");
}

#[test]
fn a_server_open_to_strangers_has_to_be_meant() {
    let data = folder();
    let refused = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_navicache"));
        let output =
            command.args(["serve", "--port", "0", "--data"]).arg(data.path()).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(refused(&["--host", "0.0.0.0"]).contains("--no-keys"));
    assert!(refused(&["--model", "no-such-model"]).contains("no-such-model"));
    let running = Server::start(data.path());
    assert!(refused(&[]).contains(&running.child.id().to_string()), "the folder has a server");
}
