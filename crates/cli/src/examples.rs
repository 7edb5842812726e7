//! Examples in the help of commands. A test reads each of them as a command line.

pub const PROGRAM: &str = "\
Examples:
  navicache generate \"an orange ring growing on a brown background\"
  navicache doctor
  navicache pull wan2.1-t2v-1.3b

Exit codes: 0 done; 1 failed; 2 the request makes no sense; 75 steps are left, as --stop-after asked; 130 Ctrl-C.
Options can also be set by NAVICACHE_* variables and a configuration file: navicache config shows them.";

pub const GENERATE: &str = "\
Examples:
  navicache generate \"an orange ring growing on a brown background\" -o out.mp4
  navicache generate \"a blue star growing on a black background\" --target speedup=2
  navicache generate \"two cats boxing\" --model wan2.1-t2v-1.3b --size 480x272
  navicache generate \"the cat jumps\" --model wan2.1-i2v-14b-480p --image cat.jpg";

pub const ESTIMATE: &str = "\
Examples:
  navicache estimate wan2.1-t2v-1.3b --size 480x272 --frames 33
  navicache estimate wan2.1-t2v-14b --memory 24GiB --json";

pub const PULL: &str = "\
Examples:
  navicache pull wan2.1-t2v-1.3b
  navicache pull city96/Wan2.1-T2V-14B-gguf --only Q4_K_M";

pub const COMPARE: &str = "\
Examples:
  navicache compare \"an orange ring growing on a brown background\" --methods none,navicache:fast,stride --seeds 0,1
  navicache compare --from compare --plot";

pub const VBENCH: &str = "\
Examples:
  navicache vbench VBench_full_info.json -o videos --model wan2.1-t2v-1.3b --cache navicache:fast
  navicache vbench VBench_full_info.json -o videos --start 0 --end 100";

pub const METRICS: &str = "\
Examples:
  navicache metrics plain.safetensors fast.safetensors
  navicache metrics plain/ fast/ --convention videosys --csv curves.csv";

pub const METHODS: &str = "\
Examples:
  navicache methods
  navicache methods teacache
  navicache methods --best";

pub const TUNE: &str = "\
Examples:
  navicache trace \"a blue star spinning on a cream background\" -o star.jsonl
  navicache replay star.jsonl --cache navicache,threshold=0.02..0.2
  navicache tune star.jsonl --speedup 2.5 -o preset.json
  navicache generate \"a blue star spinning on a cream background\" --cache @preset.json";

pub const BENCH: &str = "\
Examples:
  navicache bench block --tokens 4096
  navicache bench end-to-end --runs 3";

pub const CONFIG: &str = "\
The configuration file is ~/.config/navicache/config.toml, or what NAVICACHE_CONFIG names. Keys are options:

  threads = 8                      # for every command that has the option
  memory = \"12GiB\"

  [generate]                       # for one command
  model = \"wan2.1-t2v-1.3b\"
  cache = \"navicache:fast\"

Examples:
  navicache config
  navicache config generate";

pub const COMPLETIONS: &str = "\
Examples, where the folder is there (mkdir -p):
  navicache completions bash > ~/.local/share/bash-completion/completions/navicache
  navicache completions zsh > ~/.zfunc/_navicache
  navicache completions fish > ~/.config/fish/completions/navicache.fish";

#[cfg(test)]
mod tests {
    use super::*;

    /// The words of a line as a shell has them: only double quotes are used.
    fn words(line: &str) -> Vec<String> {
        let line = line.split(" > ").next().unwrap_or_default();
        let mut words: Vec<String> = Vec::new();
        for (i, part) in line.split('"').enumerate() {
            match i % 2 {
                0 => words.extend(part.split_whitespace().map(str::to_string)),
                _ => words.push(part.to_string()),
            }
        }
        words
    }

    #[test]
    fn every_example_is_a_command() {
        let all =
            [PROGRAM, GENERATE, ESTIMATE, PULL, COMPARE, VBENCH, METRICS, METHODS, TUNE, BENCH, CONFIG, COMPLETIONS];
        let examples = all.iter().flat_map(|text| text.lines()).filter_map(|line| line.strip_prefix("  navicache "));
        let mut count = 0;
        for example in examples {
            let arguments = words(&format!("navicache {example}"));
            // A preset of a file is read with the command line.
            let is_there = !arguments.iter().any(|argument| argument.starts_with('@'));
            if is_there {
                let read = crate::args::program().try_get_matches_from(&arguments);
                assert!(read.is_ok(), "{example}: {}", read.unwrap_err());
                count += 1;
            }
        }
        assert!(count >= 20, "{count}");
    }
}
