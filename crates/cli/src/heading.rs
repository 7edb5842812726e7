//! How the many options of commands that run a model are arranged in their help: those that matter most first, the
//! others in groups. `-h` shows the first ones only.

use clap::Command;

/// In this order.
const FIRST: &[&str] = &["output", "model", "cache", "target", "size", "frames", "steps", "seed"];

/// The others. The order of the groups is that in which the options are declared.
const GROUPS: &[(&str, &[&str])] = &[
    ("Video", &["negative_prompt", "image", "resolution", "aspect_ratio", "fps", "scale", "scale", "prompts", "seeds"]),
    (
        "Sampling",
        &[
            "guidance",
            "guidance_2",
            "true_guidance",
            "dynamic_guidance",
            "shift",
            "solver",
            "max_sequence_length",
            "latents",
        ],
    ),
    ("Caching", &["cache_memory", "guard"]),
    ("Output", &["quiet", "json", "report", "save_latents", "tile", "resume_decode", "preview"]),
    (
        "Weights",
        &[
            "transformer",
            "transformer_2",
            "text_encoder",
            "text_encoder_2",
            "vae",
            "image_encoder",
            "tokenizer",
            "tokenizer_2",
            "lora",
        ],
    ),
    ("Machine", &["device", "dtype", "threads", "memory"]),
    (
        "Checkpoints",
        &["checkpoint", "checkpoint_every", "keep_checkpoint", "resume", "allow_other_build", "stop_after"],
    ),
];

/// A command with its options arranged, if it runs a model.
pub fn arranged(command: Command) -> Command {
    let runs_a_model = command.get_arguments().any(|argument| argument.get_id() == "steps");
    if !runs_a_model {
        return command;
    }
    command.mut_args(|argument| {
        let id = argument.get_id().as_str();
        let place = FIRST.iter().position(|first| *first == id);
        let group = GROUPS.iter().find(|(_, options)| options.contains(&id)).map(|(name, _)| *name);
        match (place, group) {
            (Some(place), _) => argument.display_order(place),
            (None, Some(group)) => argument.help_heading(group).hide_short_help(true),
            (None, None) => argument, // what only this command has
        }
    })
}

#[cfg(test)]
mod tests {
    use clap::Arg;

    use super::*;

    #[test]
    fn what_generate_takes_has_a_place() {
        let program = crate::args::program();
        let generate = program.find_subcommand("generate").unwrap();
        let has_no_place = |argument: &&Arg| {
            argument.get_long().is_some()
                && argument.get_help_heading().is_none()
                && !FIRST.contains(&argument.get_id().as_str())
        };
        let without: Vec<_> = generate.get_arguments().filter(has_no_place).map(Arg::get_id).collect();
        assert!(without.is_empty(), "no group for {without:?}: see GROUPS");
    }
}
