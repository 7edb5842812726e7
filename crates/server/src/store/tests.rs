//! The store alone, without HTTP.

use super::*;
use crate::job::{Job, JobError, Made, Meant, Status, strike};

fn meant() -> Meant {
    Meant {
        prompt: "x".to_string(),
        width: 64,
        height: 64,
        frames: 17,
        fps: navicache_engine::Rate::whole(8),
        steps: 4,
        seed: 7,
        cache: "none".to_string(),
        target: None,
        user: None,
    }
}

fn asked(body: &str) -> Asked {
    Asked {
        key: "a".to_string(),
        priority: 0,
        model: "demo".to_string(),
        request: "{}".to_string(),
        meant: meant(),
        input: None,
        warnings: vec![],
        remixed_from: None,
        idem: None,
        body: body.to_string(),
        is_retry: false,
    }
}

const ROOM: Room = Room { all: 1000, of_key: 1000 };

async fn create(store: &Store, asked: Asked, room: Room) -> Created {
    store.write(move |writer| queries::create(writer, &asked, room)).await.unwrap()
}

/// A job that waits.
pub async fn new(store: &Store, body: &str) -> Job {
    match create(store, asked(body), ROOM).await {
        Created::New(job) => job,
        other => panic!("{other:?}"),
    }
}

fn open(folder: &Path) -> Store {
    Store::open(folder, Box::new(|_| ())).unwrap()
}

fn finish() -> Finish {
    let made = Made { video: Some("ab".to_string()), bytes: Some(100), ..Made::default() };
    Finish { made, warnings: vec![], speedup: Some(2.0), strip: "S|".to_string(), expires_ms: i64::MAX }
}

#[tokio::test]
async fn a_job_runs_at_least_once_and_commits_once() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let id = new(&store, "1").await.id;
    let claim = async |id: &str| {
        let id = id.to_string();
        store.write(move |writer| queries::claim(writer, &id)).await.unwrap()
    };
    let complete = async |id: &str, attempt| {
        let id = id.to_string();
        store.write(move |writer| queries::complete(writer, &id, attempt, &finish(), 5)).await.unwrap()
    };
    assert_eq!(claim(&id).await.unwrap().attempt, 1);
    assert!(claim(&id).await.is_none(), "nobody takes it twice");
    // The server dies and comes back: the first attempt's result is not wanted any more.
    assert_eq!(store.write(queries::requeue_all).await.unwrap(), 1);
    assert_eq!(claim(&id).await.unwrap().attempt, 2);
    assert!(!complete(&id, 1).await);
    assert!(complete(&id, 2).await);
    assert!(!complete(&id, 2).await);
    let job = store.read(|db| queries::job(db, &id)).unwrap().unwrap();
    assert_eq!((job.status, job.made.bytes, job.speedup), (Status::Completed, Some(100), Some(2.0)));

    let cancelled = new(&store, "2").await.id;
    claim(&cancelled).await.unwrap();
    let error = JobError { code: "cancelled".to_string(), message: "x".to_string() };
    let of = cancelled.clone();
    assert!(store.write(move |writer| queries::cancel(writer, &of, &error)).await.unwrap());
    assert!(!complete(&cancelled, 1).await, "what was cancelled is thrown away");
}

#[tokio::test]
async fn crashes_are_counted_from_the_last_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let id = new(&store, "1").await.id;
    let mut crashes = Vec::new();
    for step in [0, 0, 5, 5, 9] {
        let of = id.clone();
        let job = store
            .write(move |writer| {
                let job = queries::claim(writer, &of)?.unwrap();
                queries::checkpointed(writer, &of, job.attempt, step)?;
                queries::requeue(writer, &of, job.attempt, strike::CRASH, &[], 0)?;
                queries::job(&writer.connection, &of)
            })
            .await
            .unwrap();
        crashes.push(job.unwrap().crashes);
    }
    assert_eq!(crashes, [1, 2, 1, 2, 1].map(|times| times * strike::CRASH));
}

#[tokio::test]
async fn a_killed_server_is_hardly_the_jobs_doing_but_not_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let (id, waiting) = (new(&store, "1").await.id, new(&store, "2").await.id);
    let killed = async || {
        let of = id.clone();
        let claimed = store.write(move |writer| queries::claim(writer, &of)).await.unwrap().is_some();
        let again = store.write(queries::requeue_all).await.unwrap();
        (claimed, again)
    };
    for _ in 1..strike::OUT {
        assert_eq!(killed().await, (true, 1));
    }
    assert_eq!(killed().await, (true, 0));
    let job = store.read(|db| queries::job(db, &id)).unwrap().unwrap();
    assert_eq!((job.status, job.error.unwrap().code.as_str()), (Status::Failed, "worker_crashed"));
    let other = store.read(|db| queries::job(db, &waiting)).unwrap().unwrap();
    assert_eq!((other.status, other.crashes), (Status::Queued, 0), "it was not under way");
}

#[tokio::test]
async fn what_was_made_says_how_long_the_next_takes() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    for device_ms in [1000, 3000] {
        let of = new(&store, "1").await.id;
        store
            .write(move |writer| {
                queries::claim(writer, &of)?;
                queries::complete(writer, &of, 1, &finish(), device_ms)
            })
            .await
            .unwrap();
    }
    let made = store.read(|db| queries::made_last(db, 20)).unwrap();
    assert_eq!(made.iter().map(|(_, _, ms, speedup)| (*ms, *speedup)).collect::<Vec<_>>(), [(1000, 2.0), (3000, 2.0)]);
    let board = crate::board::Board::default();
    assert_eq!(board.expected_seconds("demo", &meant()), None);
    for (model, meant, ms, speedup) in &made {
        board.learn(model, meant, *ms as f64 / 1000.0, *speedup);
    }
    let seconds = |meant: &Meant| board.expected_seconds("demo", meant).unwrap();
    assert!((seconds(&meant()) - 1.6).abs() < 1e-9, "the later one counts less until there are more");
    let unseen = Meant { cache: "stride".to_string(), steps: 8, ..meant() };
    assert!((seconds(&unseen) - 4.0 * 1.6).abs() < 1e-9, "twice the steps, and nothing that is known to be saved");
}

#[tokio::test]
async fn the_same_request_makes_one_job() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let with =
        |idem: Option<&str>, body: &str, is_retry| Asked { idem: idem.map(str::to_string), is_retry, ..asked(body) };
    let Created::New(first) = create(&store, with(Some("k"), "1", false), ROOM).await else { panic!() };
    let Created::Replayed(again) = create(&store, with(Some("k"), "1", false), ROOM).await else { panic!() };
    assert_eq!(first.id, again.id);
    assert!(matches!(create(&store, with(Some("k"), "2", false), ROOM).await, Created::Conflict));
    let other = Asked { key: "b".to_string(), ..with(Some("k"), "2", false) };
    assert!(matches!(create(&store, other, ROOM).await, Created::New(_)), "another key's");

    let Created::New(first) = create(&store, with(None, "3", false), ROOM).await else { panic!() };
    let Created::Replayed(again) = create(&store, with(None, "3", true), ROOM).await else { panic!() };
    assert_eq!(first.id, again.id);
    assert!(matches!(create(&store, with(None, "3", false), ROOM).await, Created::New(_)), "a second wish");
    assert!(matches!(create(&store, with(None, "4", true), ROOM).await, Created::New(_)), "the first try never came");
}

#[tokio::test]
async fn a_full_queue_takes_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let room = Room { all: 3, of_key: 2 };
    for _ in 0..2 {
        assert!(matches!(create(&store, asked("1"), room).await, Created::New(_)));
    }
    assert!(matches!(create(&store, asked("1"), room).await, Created::Full(2, 2)));
    let other = || Asked { key: "b".to_string(), ..asked("1") };
    assert!(matches!(create(&store, other(), room).await, Created::New(_)));
    assert!(matches!(create(&store, other(), room).await, Created::Full(3, 1)));
}

#[tokio::test]
async fn pages_have_no_gap_and_nothing_twice() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let mut ids = Vec::new();
    for i in 0..23 {
        ids.push(new(&store, &i.to_string()).await.id);
    }
    for ascending in [true, false] {
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let page = Page { key: Some("a".to_string()), status: None, after, ascending, limit: 5 };
            let (jobs, has_more) = store.read(|db| queries::list(db, &page)).unwrap();
            seen.extend(jobs.iter().map(|job| job.id.clone()));
            if !has_more {
                break;
            }
            if ascending {
                new(&store, "more").await;
                ids.push(store.read(queries::last_id).unwrap().unwrap());
            }
            after = seen.last().cloned();
            if seen.len() > 60 {
                ids.truncate(seen.len()); // jobs come as fast as pages: far enough
                break;
            }
        }
        if !ascending {
            seen.reverse();
        }
        assert_eq!(seen, ids[..seen.len()], "ascending: {ascending}");
    }
}

#[tokio::test]
async fn results_expire_and_the_oldest_leave_first() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let mut ids = Vec::new();
    for i in 0..3 {
        let id = new(&store, &i.to_string()).await.id;
        let of = id.clone();
        let expires_ms = if i == 0 { 0 } else { i64::MAX };
        store
            .write(move |writer| {
                queries::claim(writer, &of)?;
                queries::complete(writer, &of, 1, &Finish { expires_ms, ..finish() }, 5)
            })
            .await
            .unwrap();
        ids.push(id);
    }
    let expire = async |most| store.write(move |writer| queries::expire(writer, most, 0)).await.unwrap();
    let expired = |id: &String| store.read(|db| queries::job(db, id)).unwrap().unwrap().is_expired();
    assert_eq!(expire(1000).await, 1, "its time is over");
    assert!(expired(&ids[0]) && !expired(&ids[1]));
    assert_eq!(expire(100).await, 1, "two of 100 bytes each do not fit");
    assert!(expired(&ids[1]) && !expired(&ids[2]));
    let rows_before = async |ms| store.write(move |writer| queries::expire(writer, 1000, ms)).await.unwrap();
    let is_there = |id: &String| store.read(|db| queries::job(db, id)).unwrap().is_some();
    rows_before(1).await;
    assert!(ids.iter().all(is_there), "rows stay for a while");
    rows_before(i64::MAX).await;
    assert!(!is_there(&ids[0]) && !is_there(&ids[1]), "rows leave too");
    assert!(is_there(&ids[2]) && !expired(&ids[2]), "a row stays as long as its video is kept");
}

#[tokio::test]
async fn a_store_has_one_server_and_no_later_program() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let second = Store::open(folder.path(), Box::new(|_| ())).err().unwrap().to_string();
    assert!(second.contains(&std::process::id().to_string()), "{second}");
    let id = new(&store, "1").await.id;
    drop(store);
    // The writer's thread ends on its own, the lock goes with the store.
    let store = open(folder.path());
    assert!(store.read(|db| queries::job(db, &id)).unwrap().is_some(), "what was answered is there");
    store.write(|writer| writer.connection.execute_batch("PRAGMA user_version = 99")).await.unwrap_or_default();
    drop(store);
    let db = Connection::open(folder.path().join("jobs.sqlite")).unwrap();
    db.execute_batch("PRAGMA user_version = 99").unwrap();
    let newer = Store::open(folder.path(), Box::new(|_| ())).err().unwrap().to_string();
    assert!(newer.contains("version 99"), "{newer}");
}

#[tokio::test]
async fn one_error_does_not_undo_what_others_write() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let bad = store.write(|writer| writer.connection.execute("INSERT INTO no_table VALUES (1)", []));
    let good = new(&store, "1");
    let (bad, good) = tokio::join!(bad, good);
    let bad = bad.unwrap_err().to_string();
    assert!(bad.contains("no such table"), "{bad}");
    assert!(store.read(|db| queries::job(db, &good.id)).unwrap().is_some());
}

#[tokio::test]
async fn nothing_is_written_outside_of_a_transaction() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let is_empty = || store.read(queries::last_id).unwrap().is_none();
    let create = || store.write(|writer| queries::create(writer, &asked("1"), ROOM));

    // Another program holds the database: no transaction begins.
    store.write(|writer| writer.connection.execute_batch("PRAGMA busy_timeout = 0")).await.unwrap();
    let other = Connection::open(folder.path().join("jobs.sqlite")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let refused = create().await.unwrap_err().to_string();
    assert!(refused.contains("locked"), "{refused}");
    other.execute_batch("ROLLBACK").unwrap();
    assert!(is_empty());

    // It ends in the middle: neither what came before nor what comes behind is kept, and nobody is told otherwise.
    let (all_wait, hold) = mpsc::channel();
    let first = store.write(move |writer| {
        hold.recv().unwrap();
        queries::create(writer, &asked("1"), ROOM)
    });
    let undone = store.write(|writer| writer.connection.execute_batch("ROLLBACK"));
    let (first, undone, behind, ()) = tokio::join!(first, undone, create(), async move { all_wait.send(()).unwrap() });
    assert!(first.is_err() && undone.is_err() && behind.is_err());
    assert!(is_empty());
    assert!(matches!(create().await, Ok(Created::New(_))), "the next transaction is whole");
}

#[test]
fn a_full_disk_is_told_by_its_kind() {
    let full = rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_FULL), None);
    assert!(matches!(StoreError::from(full), StoreError::Full(_)));
    assert!(matches!(StoreError::from(io::Error::from(io::ErrorKind::StorageFull)), StoreError::Full(_)));
    assert!(matches!(StoreError::from(io::Error::other("a full moon")), StoreError::Other(_)));
}
