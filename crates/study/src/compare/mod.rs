//! Methods side by side: every prompt, seed and method of a [`Plan`] is run, measured against the uncached video, and
//! shown on one page.
//!
//! [`run`] fills a folder. A run is done when its record is there: what was interrupted goes on where it stopped, and
//! more prompts, seeds and methods can be added to what there is. [`Results::read`] is what a folder has to say,
//! [`write()`] makes its page.

mod folder;
mod page;
mod plot;
mod promise;
mod results;
mod run;
mod table;

pub use folder::{Call, REFERENCE};
pub use page::{Page, Videos, write};
pub use promise::{check_promise, promise};
pub use results::{Measured, Results, Run, Summary};
pub use run::{Event, Plan, run};
