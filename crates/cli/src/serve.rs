//! The server, its keys, and its worker.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use navicache_engine::{DeviceChoice, DtypeChoice, Every, LoadOptions, Size, use_threads};
use navicache_server::{Access, Limits, Options, WorkerOptions, key_weight, new_key, read_keys, revoke_key};

use crate::error::Result;
use crate::terminal::{print, tell};
use crate::values::{bytes, duration, origin, steps, video};

/// The routes are OpenAI's: its clients work with http://127.0.0.1:8080/v1 as their base URL. Jobs and videos are kept
/// in --data, so that nothing is lost when the server is stopped or killed; docs/serve.md shows all of it.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Serve {
    #[command(subcommand)]
    pub keys: Option<Keys>,

    /// A model by name or path; may be given again, the first is the default
    #[arg(short, long, value_name = "NAME|PATH", default_value = "demo")]
    pub model: Vec<String>,

    /// Address or name to listen on
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1")]
    pub host: String,

    /// Port to listen on; 0 takes one that is free, and the line at the start says which
    #[arg(long, value_name = "N", default_value_t = 8080)]
    pub port: u16,

    /// Another name that this server is called by, as behind a proxy; may be given again
    #[arg(long, value_name = "NAME")]
    pub name: Vec<String>,

    /// Folder for jobs and videos
    #[arg(long, value_name = "DIR", default_value = "navicache-data")]
    pub data: PathBuf,

    /// Let in who has a key of this file (`navicache serve key new`)
    #[arg(long = "keys", value_name = "FILE", conflicts_with = "no_keys")]
    pub keys_file: Option<PathBuf>,

    /// Let everybody in, from other machines too
    #[arg(long)]
    pub no_keys: bool,

    /// Certificate chain, PEM; read again at SIGHUP
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,

    /// Its key, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,

    /// Let pages of this origin use the server, as in https://example.org; may be given again
    #[arg(long, value_name = "ORIGIN", value_parser = origin)]
    pub cors: Vec<String>,

    /// Most jobs that wait
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub max_queue: usize,

    /// Most jobs of one key that wait
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub max_queue_per_key: usize,

    /// Most steps of a video
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = steps)]
    pub max_steps: usize,

    /// Largest video, as in 832x480x81: a longer one may be smaller
    #[arg(long, value_name = "WxHxFRAMES", value_parser = video)]
    pub max_video: Option<(Size, usize)>,

    /// Largest picture
    #[arg(long, value_name = "SIZE", default_value = "20MiB", value_parser = bytes)]
    pub max_upload: u64,

    /// Most minutes that the device works on a video at a time
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub max_minutes: Option<u64>,

    /// How long a video is kept, as in 7d, 12h or 30min
    #[arg(long, value_name = "TIME", default_value = "7d", value_parser = duration)]
    pub keep: Duration,

    /// How much is kept; the oldest videos leave first
    #[arg(long, value_name = "SIZE", default_value = "50GB", value_parser = bytes)]
    pub keep_bytes: u64,

    /// How long a step may take to end when the server stops or a video is not wanted any more
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub grace: Duration,

    /// After how many steps a checkpoint is written: a number, or auto, as often as a hundredth of the time allows
    #[arg(long, value_name = "auto|N", default_value = "auto")]
    pub checkpoint_every: Every,

    /// Show the metrics without a key on an address of their own
    #[arg(long, value_name = "ADDR:PORT")]
    pub metrics_listen: Option<SocketAddr>,

    /// Write prompts to the log
    #[arg(long)]
    pub log_prompts: bool,

    #[command(flatten)]
    pub device: Device,
}

/// Where the worker works.
#[derive(Args)]
pub struct Device {
    /// auto, cpu, cuda, cuda:N or metal
    #[arg(long, value_name = "NAME", default_value = "auto")]
    pub device: DeviceChoice,

    /// Format that weights are kept in: auto, f32, bf16 or f16
    #[arg(long, value_name = "NAME", default_value = "auto")]
    pub dtype: DtypeChoice,

    /// Threads to compute with; left out, those that the machine has
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,

    /// Most memory to use, as in 12GiB
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    pub memory: Option<u64>,
}

impl Device {
    /// Where the worker will work, as far as it is known without CUDA.
    fn of_worker(&self) -> DeviceChoice {
        #[cfg(not(feature = "cuda"))]
        if self.device == DeviceChoice::Auto && crate::handover::usable().is_err() {
            return DeviceChoice::Cpu;
        }
        self.device
    }

    fn load(&self) -> LoadOptions {
        LoadOptions { device: self.device, dtype: self.dtype, memory: self.memory, ..LoadOptions::default() }
    }

    /// The same for the worker's command line.
    fn arguments(&self) -> Vec<OsString> {
        let mut arguments = vec!["--device".into(), self.device.to_string().into()];
        arguments.extend(["--dtype".into(), self.dtype.to_string().into()]);
        for (name, value) in [("--threads", self.threads.map(u64::from)), ("--memory", self.memory)] {
            if let Some(value) = value {
                arguments.extend([name.into(), value.to_string().into()]);
            }
        }
        arguments
    }
}

#[derive(Subcommand)]
pub enum Keys {
    /// Make, list and revoke keys
    #[command(subcommand)]
    Key(Key),
}

#[derive(Subcommand)]
pub enum Key {
    /// Make a key; its secret is printed once
    New {
        /// Whose it is: a-z, 0-9 and -
        name: String,
        /// The file of keys
        #[arg(long, value_name = "FILE")]
        keys: PathBuf,
        /// May set priorities, and sees everybody's jobs
        #[arg(long)]
        admin: bool,
        /// Its share of the device, against the others'
        #[arg(long, value_name = "N", default_value_t = 1.0, value_parser = key_weight)]
        weight: f64,
    },
    /// List the keys
    List {
        /// The file of keys
        #[arg(long, value_name = "FILE")]
        keys: PathBuf,
    },
    /// Take a key out; a server that runs knows it within a second
    Revoke {
        /// Whose it is
        name: String,
        /// The file of keys
        #[arg(long, value_name = "FILE")]
        keys: PathBuf,
    },
}

/// The process that makes a server's videos.
#[derive(Args)]
pub struct Worker {
    /// The server's data folder
    #[arg(long)]
    pub data: PathBuf,

    #[command(flatten)]
    pub device: Device,
}

pub fn serve(options: &Serve) -> Result<()> {
    if let Some(Keys::Key(key)) = &options.keys {
        return Ok(keys(key)?);
    }
    let access = match (&options.keys_file, options.no_keys) {
        (Some(file), _) => Access::Keys(file.clone()),
        (None, true) => Access::Everybody,
        (None, false) => Access::ThisMachine,
    };
    let program =
        std::env::current_exe().map_err(|source| navicache_server::Error::Io { path: "navicache".into(), source })?;
    let mut worker: Vec<OsString> = vec![program.into(), "worker".into(), "--data".into(), options.data.clone().into()];
    worker.extend(options.device.arguments());
    let settings = Options {
        models: options.model.clone(),
        load: LoadOptions { device: options.device.of_worker(), ..options.device.load() },
        worker,
        host: options.host.clone(),
        port: options.port,
        names: options.name.clone(),
        data: options.data.clone(),
        access,
        tls: options.tls_cert.clone().zip(options.tls_key.clone()),
        cors: options.cors.clone(),
        limits: Limits {
            max_queue: options.max_queue,
            max_queue_per_key: options.max_queue_per_key,
            max_steps: options.max_steps,
            max_video: options.max_video,
            max_upload: options.max_upload,
            max_time: options.max_minutes.map(|minutes| Duration::from_secs(60 * minutes)),
        },
        keep: options.keep,
        keep_bytes: options.keep_bytes,
        grace: options.grace,
        checkpoint_every: options.checkpoint_every,
        metrics_listen: options.metrics_listen,
        log_prompts: options.log_prompts,
    };
    Ok(navicache_server::serve(settings, |url| {
        tell(&format!("listening on {url}"));
    })?)
}

fn keys(key: &Key) -> navicache_server::Result<()> {
    match key {
        Key::New { name, keys, admin, weight } => print(&new_key(keys, name, *weight, *admin)?),
        Key::List { keys } => {
            for key in read_keys(keys)? {
                let admin = if key.is_admin { " admin" } else { "" };
                print(&format!("{} weight={}{admin}", key.name, key.weight));
            }
        }
        Key::Revoke { name, keys } => revoke_key(keys, name)?,
    }
    Ok(())
}

pub fn work(options: &Worker) -> Result<()> {
    use_threads(options.device.threads.map(usize::from))?;
    Ok(navicache_server::work(&WorkerOptions { data: options.data.clone(), load: options.device.load() })?)
}
