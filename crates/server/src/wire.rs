//! What a server and its worker say to each other: JSON lines over the worker's standard input and output.

use std::path::PathBuf;

use navicache_engine::{Every, Request};
use serde::{Deserialize, Serialize};

/// What the server says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Order {
    /// Make a video.
    Make(Box<Make>),
    /// Stop that one at the next step, or chunk of frames.
    Stop { id: String, attempt: i64 },
}

/// A video to make.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Make {
    pub id: String,
    pub attempt: i64,
    /// As it is opened.
    pub model: String,
    /// As reports may call it.
    pub model_name: String,
    pub request: Request,
    /// Where the results of this attempt go.
    pub folder: PathBuf,
    /// Where the job's checkpoint is, if there is one, and where new ones go.
    pub checkpoint: PathBuf,
    pub every: Every,
}

/// What the worker says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "said", rename_all = "snake_case")]
pub enum Said {
    /// It can take an order.
    Ready,
    /// A model was opened.
    Loaded {
        model: String,
        seconds: f64,
    },
    /// A stage begins: one of the engine's.
    Stage {
        stage: String,
    },
    Warning {
        text: String,
    },
    /// A step is done. `ran`: a character for each branch.
    Step {
        index: usize,
        steps: usize,
        seconds: f64,
        ran: String,
    },
    /// It goes on from a checkpoint: so many steps are done, and this ran.
    Resumed {
        step: usize,
        strip: String,
    },
    Checkpoint {
        step: usize,
        seconds: f64,
        bytes: u64,
    },
    Frames {
        done: usize,
        frames: usize,
    },
    /// A JPEG in base64.
    Preview {
        index: usize,
        width: usize,
        height: usize,
        jpeg: String,
    },
    /// The results are in the folder.
    Done(Box<Done>),
    /// It stopped, because it was asked to.
    Stopped,
    /// `detail` is for the server's own log.
    Failed {
        code: String,
        message: String,
        detail: String,
    },
}

/// What became of a video.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Done {
    pub strip: String,
    pub speedup: f64,
    pub decode_seconds: f64,
    /// Names of guards that raised an alarm.
    pub guards: Vec<String>,
    /// The speed-up that was realised over the one that was asked for.
    pub target_miss: Option<f64>,
    /// Most memory that the worker held, so far.
    pub memory: u64,
}

/// Names of an attempt's files.
pub mod files {
    pub const VIDEO: &str = "video.mp4";
    pub const THUMBNAIL: &str = "thumbnail.webp";
    pub const SPRITESHEET: &str = "spritesheet.jpg";
    pub const REPORT: &str = "report.json";
}
