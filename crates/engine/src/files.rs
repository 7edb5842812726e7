//! The files of a run: none of them is lost to another.

use std::path::Path;

use navicache_media::overwritten;

use crate::field::Field;
use crate::{Error, Request, Result};

/// Refuses a run that would write two things to one file, or over what it reads.
///
/// * `video` - the file of the video, if there is one
pub(crate) fn check(request: &Request, video: Option<&Path>) -> Result<()> {
    let resumed = request.resume.as_ref().map(|resume| resume.path.as_path());
    // A run goes on in the file that it is resumed from.
    let checkpoint = request.checkpoint.as_ref().map(|checkpoint| checkpoint.path.as_path());
    let checkpoint = checkpoint.filter(|path| resumed != Some(*path));
    let read = [
        (Some(Field::Image), request.image.as_deref()),
        (Some(Field::Latents), request.latents.as_deref()),
        (Some(Field::Resume), resumed),
    ];
    let written = [
        (None, video),
        (Some(Field::SaveLatents), request.save_latents.as_deref()),
        (Some(Field::Checkpoint), checkpoint),
    ];
    let written = written.into_iter().filter_map(|(what, path)| Some((what, path?)));
    let read = read.into_iter().filter_map(|(what, path)| Some((what, path?)));
    let Some((what, path, other)) = overwritten(written, read) else { return Ok(()) };
    // The video is no field, and stands on one side at most.
    let (field, other) = what.map_or((other, what), |_| (what, other));
    let other = other.map_or("the video".to_string(), |field| field.to_string());
    let expected = format!("is the file of {other} too: one would be lost; give another name");
    let field = field.unwrap_or(Field::SaveLatents);
    Err(Error::Invalid { field, found: path.display().to_string(), expected })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Checkpoint, Every, Resume};

    #[test]
    fn no_file_of_a_run_is_lost_to_another() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir(at("sub")).unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink("a.mp4", at("link")).unwrap();
        let save_latents = |name: &str| Request { save_latents: Some(at(name)), ..Request::new("x") };
        let image = Request { image: Some(at("a.png")), ..Request::new("x") };
        let checkpoint = Checkpoint { path: at("a.ckpt"), every: Every::Auto, stop_after: None, keep: false };
        let resume = Resume { path: at("a.ckpt"), allow_other_build: false };
        let resumed = Request { checkpoint: Some(checkpoint), resume: Some(resume), ..Request::new("x") };
        let both = Request { latents: Some(at("l.safetensors")), ..save_latents("sub/../l.safetensors") };
        for (request, video, says) in [
            (save_latents("a.y4m"), Some("sub/../a.y4m"), "`save_latents` "),
            (image, Some("a.png"), "`image` "),
            (both, None, "is the file of `latents` too"),
            (Request { save_latents: Some(at("a.ckpt")), ..resumed.clone() }, None, "is the file of `resume` too"),
            (resumed.clone(), Some("a.ckpt"), "`resume` "),
            (save_latents("frames/frame-0002.png"), Some("frames"), "`save_latents` "),
            #[cfg(unix)]
            (save_latents("link"), Some("a.mp4"), "`save_latents` "),
        ] {
            let refused = check(&request, video.map(at).as_deref()).unwrap_err().to_string();
            assert!(refused.contains(says) && refused.contains("one would be lost"), "{refused}");
        }
        let beside_frames = (save_latents("frames/latents.safetensors"), Some("frames"));
        for (request, video) in
            [(save_latents("a.safetensors"), Some("a.mp4")), beside_frames, (resumed, Some("b.mp4"))]
        {
            check(&request, video.map(at).as_deref()).unwrap();
        }
    }
}
