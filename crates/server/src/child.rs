//! The server's side of its worker: starts the process, speaks with it, ends it.

use std::ffi::OsString;
use std::io;
use std::process::{ExitStatus, Stdio};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::wire::{Order, Said};

/// A worker that runs.
pub struct Worker {
    process: Child,
    was_ended: bool,
    /// What [`memory_kills`] was when it was started.
    memory_kills: Option<u64>,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

/// What comes of waiting for a worker.
pub enum Heard {
    Said(Said),
    /// It has ended.
    Gone(ExitStatus),
}

impl Worker {
    /// Starts one: `command` is the program and its arguments.
    pub fn start(command: &[OsString]) -> io::Result<Self> {
        let (program, arguments) = command.split_first().ok_or_else(|| io::Error::other("no program to start"))?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        // Ctrl-C at a terminal is for the server, which tells its worker.
        #[cfg(unix)]
        command.process_group(0);
        let mut process = command.spawn()?;
        let missing = || io::Error::other("a process without its pipes");
        let input = process.stdin.take().ok_or_else(missing)?;
        let output = BufReader::new(process.stdout.take().ok_or_else(missing)?).lines();
        Ok(Worker { process, was_ended: false, memory_kills: memory_kills(), input, output })
    }

    /// Says something. An error means that it is gone, which [`Worker::hear`] tells too.
    pub async fn order(&mut self, order: &Order) -> io::Result<()> {
        let mut line = serde_json::to_vec(order)?;
        line.push(b'\n');
        self.input.write_all(&line).await?;
        self.input.flush().await
    }

    /// Waits for what it says next. Nothing is lost when the wait is given up.
    pub async fn hear(&mut self) -> io::Result<Heard> {
        while let Some(line) = self.output.next_line().await? {
            match serde_json::from_str(&line) {
                Ok(said) => return Ok(Heard::Said(said)),
                Err(_) => eprintln!("navicache worker: {line}"), // a library's own words
            }
        }
        Ok(Heard::Gone(self.process.wait().await?))
    }

    /// Its process, to be told apart in logs.
    pub fn pid(&self) -> Option<u32> {
        self.process.id()
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.process.try_wait(), Ok(None))
    }

    /// Whether it ended because somebody killed it, and not the system for want of memory.
    pub fn was_killed(&self, status: ExitStatus) -> bool {
        #[cfg(unix)]
        let is_kill = std::os::unix::process::ExitStatusExt::signal(&status) == Some(libc::SIGKILL);
        #[cfg(not(unix))]
        let is_kill = false;
        is_kill && self.memory_kills.is_some() && self.memory_kills == memory_kills()
    }

    /// Whether it was ended from here, by [`Worker::end`].
    pub fn was_ended(&self) -> bool {
        self.was_ended
    }

    /// Ends it now.
    pub async fn end(&mut self) {
        self.was_ended = true;
        let _ = self.process.kill().await; // it may have ended by itself
    }

    /// The same, for good.
    pub async fn kill(mut self) {
        self.end().await;
    }
}

/// How many processes the system has killed for want of memory, where it says so.
fn memory_kills() -> Option<u64> {
    let counts = std::fs::read_to_string("/proc/vmstat").ok()?;
    counts.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()
}
