//! All SQL there is.

use rusqlite::{Connection, Row};
use serde::de::DeserializeOwned;

use crate::id::Names;
use crate::job::{Job, Made, Meant, Status};

/// Version of the schema, as `user_version`.
const SCHEMA: i64 = 1;

const TABLES: &str = "
CREATE TABLE jobs (
    id TEXT PRIMARY KEY,
    key TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    started_ms INTEGER,
    finished_ms INTEGER,
    status TEXT NOT NULL,
    attempt INTEGER NOT NULL DEFAULT 0,
    crashes INTEGER NOT NULL DEFAULT 0,
    priority INTEGER NOT NULL DEFAULT 0,
    model TEXT NOT NULL,
    request TEXT NOT NULL,
    meant TEXT NOT NULL,
    input_sha TEXT,
    checkpoint_step INTEGER NOT NULL DEFAULT 0,
    error TEXT,
    video_sha TEXT,
    thumb_sha TEXT,
    sheet_sha TEXT,
    report_sha TEXT,
    bytes INTEGER,
    expires_ms INTEGER,
    remixed_from TEXT,
    warnings TEXT NOT NULL DEFAULT '[]',
    speedup REAL,
    strip TEXT NOT NULL DEFAULT '',
    device_ms INTEGER NOT NULL DEFAULT 0,
    idem TEXT,
    body TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX jobs_status ON jobs (status, priority, created_ms);
CREATE INDEX jobs_key ON jobs (key, id);
CREATE UNIQUE INDEX jobs_idem ON jobs (key, idem) WHERE idem IS NOT NULL;
CREATE INDEX jobs_body ON jobs (key, body, created_ms);
CREATE INDEX jobs_finished ON jobs (finished_ms);
PRAGMA user_version = 1;
";

const COLUMNS: &str = "id, key, created_ms, finished_ms, status, attempt, crashes, priority, model, \
    request, meant, input_sha, checkpoint_step, error, video_sha, thumb_sha, sheet_sha, report_sha, bytes, expires_ms, \
    remixed_from, warnings, speedup, strip";

/// How long an Idempotency-Key stands for its job.
const IDEMPOTENT_MS: i64 = 24 * 60 * 60 * 1000;
/// How long a client's own retry is told from a second wish.
const RETRIED_MS: i64 = 10 * 60 * 1000;

/// The connection that writes, and the names that are given next.
pub struct Writer {
    pub connection: Connection,
    pub names: Names,
}

/// Makes the tables of a new store, and refuses those of a later program.
pub fn prepare(connection: &Connection) -> Result<(), String> {
    let words = |e: rusqlite::Error| e.to_string();
    let settings = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA busy_timeout = 5000;";
    connection.execute_batch(settings).map_err(words)?;
    match connection.query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0)).map_err(words)? {
        0 => connection.execute_batch(&format!("BEGIN; {TABLES} COMMIT;")).map_err(words),
        SCHEMA => Ok(()),
        newer => {
            Err(format!("is of version {newer}, this program knows {SCHEMA}: use the program that made it, or later"))
        }
    }
}

/// A connection that only reads.
pub fn reader(connection: Connection) -> rusqlite::Result<Connection> {
    connection.execute_batch("PRAGMA busy_timeout = 5000; PRAGMA query_only = 1;")?;
    Ok(connection)
}

/// What is asked of a new job.
#[derive(Debug, Clone)]
pub struct Asked {
    pub key: String,
    pub priority: i64,
    pub model: String,
    pub request: String,
    pub meant: Meant,
    pub input: Option<String>,
    pub warnings: Vec<String>,
    pub remixed_from: Option<String>,
    /// The client's Idempotency-Key.
    pub idem: Option<String>,
    /// Digest of the fields and the picture.
    pub body: String,
    /// Whether the client says that it tries again.
    pub is_retry: bool,
}

/// Most jobs that may wait.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    pub all: usize,
    pub of_key: usize,
}

/// What came of it.
#[derive(Debug)]
pub enum Created {
    New(Job),
    /// The job that the same request made before.
    Replayed(Job),
    /// The Idempotency-Key stands for another request.
    Conflict,
    /// So many wait; the second number is the key's own.
    Full(usize, usize),
}

/// How an attempt ends.
#[derive(Debug, Clone)]
pub struct Finish {
    pub made: Made,
    pub warnings: Vec<String>,
    pub speedup: Option<f64>,
    pub strip: String,
    pub expires_ms: i64,
}

/// A page of a list.
#[derive(Debug, Clone)]
pub struct Page {
    pub key: Option<String>,
    pub status: Option<Status>,
    pub after: Option<String>,
    pub ascending: bool,
    pub limit: usize,
}

/// Questions and changes, each a statement or a few.
pub mod queries {
    use crate::id::now_ms;
    use crate::job::{Job, JobError, Meant, code, strike};
    use crate::store::sql::{
        Asked, COLUMNS, Created, Finish, IDEMPOTENT_MS, Page, RETRIED_MS, Room, Writer, json, parsed, read_job,
    };
    use rusqlite::types::Value;
    use rusqlite::{Connection, OptionalExtension, Row, params, params_from_iter};

    pub fn last_id(db: &Connection) -> rusqlite::Result<Option<String>> {
        db.query_row("SELECT max(id) FROM jobs", [], |row| row.get(0))
    }

    /// Takes a job, unless it is there already or there is no room.
    pub fn create(writer: &mut Writer, asked: &Asked, room: Room) -> rusqlite::Result<Created> {
        let (db, now) = (&writer.connection, now_ms());
        if let Some(found) = replayed(db, asked, now)? {
            return Ok(found);
        }
        let counted = "SELECT count(*), count(*) FILTER (WHERE key = ?1) FROM jobs WHERE status = 'queued'";
        let (all, of_key): (i64, i64) =
            db.prepare_cached(counted)?.query_row([&asked.key], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let (all, of_key) = (all as usize, of_key as usize);
        if all >= room.all || of_key >= room.of_key {
            return Ok(Created::Full(all, of_key));
        }
        let id = writer.names.next(now);
        let insert = "INSERT INTO jobs (id, key, created_ms, status, priority, model, request, meant, input_sha, \
            warnings, remixed_from, idem, body) VALUES (?1, ?2, ?3, 'queued', ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)";
        db.prepare_cached(insert)?.execute(params![
            id,
            asked.key,
            now,
            asked.priority,
            asked.model,
            asked.request,
            json(&asked.meant),
            asked.input,
            json(&asked.warnings),
            asked.remixed_from,
            asked.idem,
            asked.body,
        ])?;
        job(db, &id)?.map(Created::New).ok_or(rusqlite::Error::QueryReturnedNoRows)
    }

    fn replayed(db: &Connection, asked: &Asked, now: i64) -> rusqlite::Result<Option<Created>> {
        if let Some(idem) = &asked.idem {
            let forget = "UPDATE jobs SET idem = NULL WHERE key = ?1 AND idem = ?2 AND created_ms < ?3";
            db.prepare_cached(forget)?.execute(params![asked.key, idem, now - IDEMPOTENT_MS])?;
            let same = "SELECT id, body FROM jobs WHERE key = ?1 AND idem = ?2";
            let found = db.prepare_cached(same)?.query_row(params![asked.key, idem], id_and_body).optional()?;
            return Ok(match found {
                None => None,
                Some((_, body)) if body != asked.body => Some(Created::Conflict),
                Some((id, _)) => job(db, &id)?.map(Created::Replayed),
            });
        }
        if !asked.is_retry {
            return Ok(None);
        }
        let same =
            "SELECT id, body FROM jobs WHERE key = ?1 AND body = ?2 AND created_ms > ?3 ORDER BY id DESC LIMIT 1";
        let found = db.prepare_cached(same)?.query_row(params![asked.key, asked.body, now - RETRIED_MS], id_and_body);
        Ok(match found.optional()? {
            None => None,
            Some((id, _)) => job(db, &id)?.map(Created::Replayed),
        })
    }

    fn id_and_body(row: &Row) -> rusqlite::Result<(String, String)> {
        Ok((row.get(0)?, row.get(1)?))
    }

    pub fn job(db: &Connection, id: &str) -> rusqlite::Result<Option<Job>> {
        db.prepare_cached(&format!("SELECT {COLUMNS} FROM jobs WHERE id = ?1"))?.query_row([id], read_job).optional()
    }

    /// The jobs of a page, and whether there are more.
    pub fn list(db: &Connection, page: &Page) -> rusqlite::Result<(Vec<Job>, bool)> {
        let (compare, order) = if page.ascending { (">", "ASC") } else { ("<", "DESC") };
        let mut sql = format!("SELECT {COLUMNS} FROM jobs WHERE 1");
        let mut values: Vec<Value> = Vec::new();
        if let Some(key) = &page.key {
            sql += " AND key = ?";
            values.push(key.clone().into());
        }
        if let Some(status) = page.status {
            sql += " AND status = ?";
            values.push(status.name().to_string().into());
        }
        if let Some(after) = &page.after {
            sql += &format!(" AND id {compare} ?");
            values.push(after.clone().into());
        }
        sql += &format!(" ORDER BY id {order} LIMIT {}", page.limit + 1);
        let mut statement = db.prepare_cached(&sql)?;
        let mut jobs = statement.query_map(params_from_iter(values), read_job)?.collect::<Result<Vec<Job>, _>>()?;
        let has_more = jobs.len() > page.limit;
        jobs.truncate(page.limit);
        Ok((jobs, has_more))
    }

    /// All that wait.
    pub fn queued(db: &Connection) -> rusqlite::Result<Vec<Job>> {
        let all = format!("SELECT {COLUMNS} FROM jobs WHERE status = 'queued' ORDER BY id");
        db.prepare_cached(&all)?.query_map([], read_job)?.collect()
    }

    /// How many jobs there are of each status.
    pub fn counts(db: &Connection) -> rusqlite::Result<Vec<(String, i64)>> {
        let mut statement = db.prepare_cached("SELECT status, count(*) FROM jobs GROUP BY status")?;
        statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
    }

    /// Device-milliseconds by key, of jobs that finished later than so.
    pub fn used_since(db: &Connection, since_ms: i64) -> rusqlite::Result<Vec<(String, i64)>> {
        let sums = "SELECT key, sum(device_ms) FROM jobs WHERE finished_ms > ?1 GROUP BY key";
        db.prepare_cached(sums)?.query_map([since_ms], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
    }

    /// Of the last videos that were made in one go, the oldest first: model, what was made, device-milliseconds, and
    /// all work over what was computed.
    pub fn made_last(db: &Connection, most: usize) -> rusqlite::Result<Vec<(String, Meant, i64, f64)>> {
        let last = "SELECT model, meant, device_ms, speedup FROM (SELECT model, meant, device_ms, speedup, finished_ms \
            FROM jobs WHERE status = 'completed' AND attempt = 1 AND speedup > 0 ORDER BY finished_ms DESC LIMIT ?1) \
            ORDER BY finished_ms";
        let read = |row: &Row| -> rusqlite::Result<(String, Meant, i64, f64)> {
            Ok((row.get(0)?, parsed(1, &row.get::<_, String>(1)?)?, row.get(2)?, row.get(3)?))
        };
        db.prepare_cached(last)?.query_map([most as i64], read)?.collect()
    }

    /// The server starts: what was under way waits again, but for jobs under which it ended too often. Says how many
    /// wait again.
    pub fn requeue_all(writer: &mut Writer) -> rusqlite::Result<usize> {
        let db = &writer.connection;
        let message = "the server ended each time while it was made, without getting to a later checkpoint".to_string();
        let error = JobError { code: code::WORKER_CRASHED.to_string(), message };
        let out = "UPDATE jobs SET status = 'failed', finished_ms = ?1, error = ?2 \
            WHERE status = 'in_progress' AND crashes + ?3 >= ?4";
        db.execute(out, params![now_ms(), json(&error), strike::KILL, strike::OUT])?;
        let again = "UPDATE jobs SET status = 'queued', crashes = crashes + ?1 WHERE status = 'in_progress'";
        db.execute(again, [strike::KILL])
    }

    /// Starts a job; `None` where it does not wait any more.
    pub fn claim(writer: &mut Writer, id: &str) -> rusqlite::Result<Option<Job>> {
        let claim = "UPDATE jobs SET status = 'in_progress', attempt = attempt + 1, \
            started_ms = coalesce(started_ms, ?2) WHERE id = ?1 AND status = 'queued'";
        match writer.connection.prepare_cached(claim)?.execute(params![id, now_ms()])? {
            0 => Ok(None),
            _ => job(&writer.connection, id),
        }
    }

    /// An attempt ended before the job did: it waits again. `weight` is what that counts against it.
    pub fn requeue(
        writer: &mut Writer,
        id: &str,
        attempt: i64,
        weight: i64,
        warnings: &[String],
        device_ms: i64,
    ) -> rusqlite::Result<bool> {
        let back = "UPDATE jobs SET status = 'queued', crashes = crashes + ?3, warnings = ?4, \
            device_ms = device_ms + ?5 WHERE id = ?1 AND attempt = ?2 AND status = 'in_progress'";
        let changed = writer.connection.prepare_cached(back)?.execute(params![
            id,
            attempt,
            weight,
            json(&warnings),
            device_ms
        ])?;
        Ok(changed == 1)
    }

    /// A checkpoint is on disk: the worker got further than before.
    pub fn checkpointed(writer: &mut Writer, id: &str, attempt: i64, step: i64) -> rusqlite::Result<()> {
        let further = "UPDATE jobs SET crashes = CASE WHEN ?3 > checkpoint_step THEN 0 ELSE crashes END, \
            checkpoint_step = ?3 WHERE id = ?1 AND attempt = ?2 AND status = 'in_progress'";
        writer.connection.prepare_cached(further)?.execute(params![id, attempt, step]).map(drop)
    }

    /// The result of an attempt becomes the job's. False: it is not wanted any more, and is thrown away.
    pub fn complete(
        writer: &mut Writer,
        id: &str,
        attempt: i64,
        finish: &Finish,
        device_ms: i64,
    ) -> rusqlite::Result<bool> {
        let Finish { made, warnings, speedup, strip, expires_ms } = finish;
        let commit = "UPDATE jobs SET status = 'completed', finished_ms = ?3, video_sha = ?4, thumb_sha = ?5, \
            sheet_sha = ?6, report_sha = ?7, bytes = ?8, expires_ms = ?9, warnings = ?10, speedup = ?11, strip = ?12, \
            device_ms = device_ms + ?13, error = NULL WHERE id = ?1 AND attempt = ?2 AND status = 'in_progress'";
        let changed = writer.connection.prepare_cached(commit)?.execute(params![
            id,
            attempt,
            now_ms(),
            made.video,
            made.thumbnail,
            made.spritesheet,
            made.report,
            made.bytes,
            expires_ms,
            json(warnings),
            speedup,
            strip,
            device_ms,
        ])?;
        Ok(changed == 1)
    }

    /// An attempt failed for good.
    pub fn fail(
        writer: &mut Writer,
        id: &str,
        attempt: i64,
        error: &JobError,
        warnings: &[String],
        device_ms: i64,
    ) -> rusqlite::Result<bool> {
        let fail = "UPDATE jobs SET status = 'failed', finished_ms = ?3, error = ?4, warnings = ?5, \
            device_ms = device_ms + ?6 WHERE id = ?1 AND attempt = ?2 AND status = 'in_progress'";
        let values = params![id, attempt, now_ms(), json(error), json(&warnings), device_ms];
        Ok(writer.connection.prepare_cached(fail)?.execute(values)? == 1)
    }

    /// Somebody does not want the job any more. False: it is finished.
    pub fn cancel(writer: &mut Writer, id: &str, error: &JobError) -> rusqlite::Result<bool> {
        let cancel = "UPDATE jobs SET status = 'failed', finished_ms = ?2, error = ?3 \
            WHERE id = ?1 AND status IN ('queued', 'in_progress')";
        Ok(writer.connection.prepare_cached(cancel)?.execute(params![id, now_ms(), json(error)])? == 1)
    }

    /// What the device did for a job that was cancelled meanwhile.
    pub fn charge(writer: &mut Writer, id: &str, device_ms: i64) -> rusqlite::Result<()> {
        let charge = "UPDATE jobs SET device_ms = device_ms + ?2 WHERE id = ?1";
        writer.connection.prepare_cached(charge)?.execute(params![id, device_ms]).map(drop)
    }

    /// Removes a job; says whether it was there.
    pub fn delete(writer: &mut Writer, id: &str) -> rusqlite::Result<bool> {
        Ok(writer.connection.prepare_cached("DELETE FROM jobs WHERE id = ?1")?.execute([id])? == 1)
    }

    /// Of these digests, those that a job refers to.
    pub fn referenced(db: &Connection, digests: &[String]) -> rusqlite::Result<Vec<String>> {
        let all = "SELECT input_sha FROM jobs UNION SELECT video_sha FROM jobs UNION SELECT thumb_sha FROM jobs \
            UNION SELECT sheet_sha FROM jobs UNION SELECT report_sha FROM jobs";
        let referenced = format!("SELECT value FROM json_each(?1) WHERE value IN ({all})");
        let mut statement = db.prepare_cached(&referenced)?;
        statement.query_map([json(&digests)], |row| row.get(0))?.collect()
    }

    /// Results whose time is over, those that are the oldest beyond so many bytes, and rows without a video whose job
    /// was finished, and whose video expired, before `rows_before_ms`.
    pub fn expire(writer: &mut Writer, most_bytes: i64, rows_before_ms: i64) -> rusqlite::Result<usize> {
        let (db, now) = (&writer.connection, now_ms());
        let forget = "SET video_sha = NULL, thumb_sha = NULL, sheet_sha = NULL, report_sha = NULL, input_sha = NULL, bytes = NULL";
        let over =
            format!("UPDATE jobs {forget} WHERE status = 'completed' AND video_sha IS NOT NULL AND expires_ms < ?1");
        let mut expired = db.execute(&over, [now])?;
        let beyond = format!(
            "UPDATE jobs {forget}, expires_ms = ?2 WHERE id IN (SELECT id FROM (SELECT id, sum(bytes) OVER (ORDER BY \
             finished_ms DESC, id DESC) AS sum FROM jobs WHERE video_sha IS NOT NULL) WHERE sum > ?1)"
        );
        expired += db.execute(&beyond, params![most_bytes, now])?;
        let rows = "DELETE FROM jobs WHERE finished_ms < ?1 AND video_sha IS NULL AND coalesce(expires_ms, 0) < ?1";
        db.execute(rows, [rows_before_ms])?;
        Ok(expired)
    }
}

fn read_job(row: &Row) -> rusqlite::Result<Job> {
    let status: String = row.get(4)?;
    let error: Option<String> = row.get(13)?;
    Ok(Job {
        id: row.get(0)?,
        key: row.get(1)?,
        created_ms: row.get(2)?,
        finished_ms: row.get(3)?,
        status: Status::from_name(&status).ok_or_else(|| unreadable(4, &status))?,
        attempt: row.get(5)?,
        crashes: row.get(6)?,
        priority: row.get(7)?,
        model: row.get(8)?,
        request: row.get(9)?,
        meant: parsed(10, &row.get::<_, String>(10)?)?,
        input: row.get(11)?,
        checkpoint_step: row.get(12)?,
        error: error.map(|error| parsed(13, &error)).transpose()?,
        made: Made {
            video: row.get(14)?,
            thumbnail: row.get(15)?,
            spritesheet: row.get(16)?,
            report: row.get(17)?,
            bytes: row.get(18)?,
        },
        expires_ms: row.get(19)?,
        remixed_from: row.get(20)?,
        warnings: parsed(21, &row.get::<_, String>(21)?)?,
        speedup: row.get(22)?,
        strip: row.get(23)?,
    })
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

fn parsed<T: DeserializeOwned>(column: usize, text: &str) -> rusqlite::Result<T> {
    serde_json::from_str(text).map_err(|_| unreadable(column, text))
}

fn unreadable(column: usize, text: &str) -> rusqlite::Error {
    let reason = format!("{text:?} was not written by this program");
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, reason.into())
}
