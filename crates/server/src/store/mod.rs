//! Jobs in SQLite. One thread writes and commits together what has queued up; readers have connections of their own.
//!
//! `synchronous=FULL`: what was answered survives a power cut. All SQL is in [`sql`].

mod sql;

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use navicache_media::fail_point;
use rusqlite::{Connection, OpenFlags};
use tokio::sync::oneshot;

use crate::id::Names;
use crate::{Error, Result};

pub use sql::{Asked, Created, Finish, Page, Room, Writer, queries};

/// Most writes that are committed together.
const TOGETHER: usize = 256;
/// Connections that readers leave for the next.
const READERS: usize = 8;

/// Tells the caller, once its transaction is committed or not.
type Answer = Box<dyn FnOnce(Result<(), StoreError>) + Send>;
/// Told why where there is no transaction to work in.
type Work = Box<dyn FnOnce(Result<&mut Writer, StoreError>) -> Answer + Send>;
/// What is told of each commit: how long it took.
pub type OnCommit = Box<dyn Fn(Duration) + Send>;

/// The jobs of a server.
#[derive(Clone)]
pub struct Store {
    writer: mpsc::Sender<Work>,
    readers: Arc<Readers>,
    /// Held as long as the store is used: nobody else writes into the folder.
    _lock: Arc<File>,
}

struct Readers {
    path: std::path::PathBuf,
    idle: Mutex<Vec<Connection>>,
}

/// Why an operation on the store, or on the files beside it, failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    #[error("the disk is full: {0}")]
    Full(String),
    #[error("the store of jobs: {0}")]
    Other(String),
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull) => StoreError::Full(error.to_string()),
            _ => StoreError::Other(error.to_string()),
        }
    }
}

impl From<io::Error> for StoreError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::Full(error.to_string()),
            _ => StoreError::Other(error.to_string()),
        }
    }
}

impl Store {
    /// Opens the store of a data folder, or makes it. Refused where another server has it.
    pub fn open(data: &Path, on_commit: OnCommit) -> Result<Self> {
        let lock = lock(data)?;
        let path = data.join("jobs.sqlite");
        let connection = Connection::open(&path)?;
        sql::prepare(&connection).map_err(|reason| Error::Refused(format!("{}: {reason}", path.display())))?;
        let names = Names::after(queries::last_id(&connection)?.as_deref());
        let (writer, work) = mpsc::channel();
        let start = std::thread::Builder::new().name("store".to_string());
        start.spawn(move || write_all(Writer { connection, names }, &work, &on_commit)).map_err(Error::io(&path))?;
        let readers = Arc::new(Readers { path, idle: Mutex::new(Vec::new()) });
        Ok(Store { writer, readers, _lock: Arc::new(lock) })
    }

    /// Changes something. The answer comes when it is on disk.
    pub async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Writer) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        let work: Work = Box::new(move |writer| {
            let result = writer.and_then(|writer| Ok(in_savepoint(writer, work)?));
            Box::new(move |committed| {
                let result = result.and_then(|value| committed.map(|()| value));
                let _ = answer.send(result); // a caller that went away does not want to know
            })
        });
        let gone = || StoreError::Other("its writer has ended".to_string());
        self.writer.send(work).map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }

    /// Looks something up: microseconds, so that it is done where it is asked.
    pub fn read<T>(&self, look: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        let idle = || self.readers.idle.lock().unwrap_or_else(|broken| broken.into_inner());
        let taken = idle().pop();
        let connection = match taken {
            Some(connection) => connection,
            None => sql::reader(Connection::open_with_flags(&self.readers.path, OpenFlags::SQLITE_OPEN_READ_ONLY)?)?,
        };
        let result = look(&connection)?;
        let mut idle = idle();
        if idle.len() < READERS {
            idle.push(connection);
        }
        Ok(result)
    }
}

fn lock(data: &Path) -> Result<File> {
    let path = data.join("lock");
    let file = File::options().create(true).truncate(false).read(true).write(true).open(&path);
    let file = file.map_err(Error::io(&path))?;
    if file.try_lock().is_err() {
        let pid = std::fs::read_to_string(&path).unwrap_or_default();
        let (data, pid) = (data.display(), pid.trim());
        return Err(Error::Refused(format!(
            "{data} is used by another server (process {pid}); stop that one, or give this one another folder by --data"
        )));
    }
    file.set_len(0).map_err(Error::io(&path))?;
    std::fs::write(&path, format!("{}\n", std::process::id())).map_err(Error::io(&path))?;
    Ok(file)
}

/// The thread that writes: takes what has queued up, commits it together, and tells everybody.
fn write_all(mut writer: Writer, work: &mpsc::Receiver<Work>, on_commit: &OnCommit) {
    while let Ok(first) = work.recv() {
        let mut state = writer.connection.execute_batch("BEGIN IMMEDIATE").map_err(StoreError::from);
        let mut answers = Vec::new();
        let mut next = Some(first);
        while let Some(work_item) = next {
            answers.push(work_item(state.clone().map(|()| &mut writer)));
            state = state.and_then(|()| in_transaction(&writer));
            next = if answers.len() < TOGETHER { work.try_recv().ok() } else { None };
        }
        fail_point("commit begins");
        let clock = Instant::now();
        let committed = state.and_then(|()| Ok(writer.connection.execute_batch("COMMIT")?));
        on_commit(clock.elapsed());
        fail_point("committed");
        if committed.is_err() && !writer.connection.is_autocommit() {
            let _ = writer.connection.execute_batch("ROLLBACK"); // the error is told
        }
        answers.into_iter().for_each(|answer| answer(committed.clone()));
    }
}

/// After some errors SQLite ends the whole transaction, and each statement behind it would be committed by itself.
fn in_transaction(writer: &Writer) -> Result<(), StoreError> {
    match writer.connection.is_autocommit() {
        true => Err(StoreError::Other("another write undid the transaction; nothing of it was kept".to_string())),
        false => Ok(()),
    }
}

/// One writer's error does not undo what others wrote in the same transaction.
fn in_savepoint<T>(writer: &mut Writer, work: impl FnOnce(&mut Writer) -> rusqlite::Result<T>) -> rusqlite::Result<T> {
    writer.connection.execute_batch("SAVEPOINT one")?;
    let result = work(writer).and_then(|value| writer.connection.execute_batch("RELEASE one").map(|()| value));
    if result.is_err() && writer.connection.execute_batch("ROLLBACK TO one; RELEASE one").is_err() {
        let _ = writer.connection.execute_batch("ROLLBACK"); // the others are told, by `in_transaction`
    }
    result
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub use tests::new as test_job;
