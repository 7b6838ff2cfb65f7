//! The command line: one file a subcommand with its `Args`, as the user writes them, and `run`.

mod assemble;
mod bundle;
pub mod caption;
pub mod chat;
pub mod clip;
pub mod data;
pub mod device;
pub mod embed;
pub mod eval;
pub mod export;
pub mod features;
pub mod index;
pub mod inspect;
pub mod merge;
mod output;
pub mod perplexity;
pub mod pretrain_clip;
pub mod pretrain_lm;
pub mod report;
pub mod score;
pub mod search;
pub mod sweep;
pub mod tokenize;
pub mod train;
mod values;

pub use bundle::BundleArgs;
pub use device::DeviceArgs;

use std::process::ExitCode;

use rscapret::Result;

/// Describe aerial images in words and find them by words; train and check the models that do so
///
/// RS-CapRet in Rust: a language model (Llama) and an image encoder (CLIP), both as they were published, and small
/// trained maps between them. A bundle is a folder with all three, such as models/demo.
#[derive(Debug, Clone, clap::Parser)]
#[command(
    name = "rscapret",
    version,
    propagate_version = true,
    after_help = "Every command has examples in its --help. Exit codes: 0 done, 1 something failed (it is said on \
                  standard error), 2 wrong usage, or a check that was not passed."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Clone, clap::Subcommand)]
#[allow(missing_docs)] // each one's text is that of its `Args`
pub enum Command {
    Caption(caption::Args),
    Chat(chat::Args),
    Index(index::Args),
    Search(search::Args),
    Inspect(inspect::Args),
    Tokenize(tokenize::Args),
    Embed(embed::Args),
    Perplexity(perplexity::Args),
    Data(data::Args),
    PretrainLm(pretrain_lm::Args),
    PretrainClip(pretrain_clip::Args),
    Clip(clip::Args),
    Features(features::Args),
    Train(train::Args),
    Sweep(sweep::Args),
    Eval(eval::Args),
    Report(report::Args),
    Export(export::Args),
    Merge(merge::Args),
    Score(score::Args),
}

impl Cli {
    /// Runs the subcommand. An exit code other than 0 is an answer, not an error.
    ///
    /// # Errors
    /// What the subcommand says.
    pub fn run(&self) -> Result<ExitCode> {
        match &self.command {
            Command::Data(args) => return data::run(args),
            Command::Caption(args) => caption::run(args),
            Command::Chat(args) => chat::run(args),
            Command::Index(args) => index::run(args),
            Command::Search(args) => search::run(args),
            Command::Inspect(args) => inspect::run(args),
            Command::Tokenize(args) => tokenize::run(args),
            Command::Embed(args) => embed::run(args),
            Command::Perplexity(args) => perplexity::run(args),
            Command::PretrainLm(args) => pretrain_lm::run(args),
            Command::PretrainClip(args) => pretrain_clip::run(args),
            Command::Clip(args) => clip::run(args),
            Command::Features(args) => features::run(args),
            Command::Train(args) => train::run(args),
            Command::Sweep(args) => sweep::run(args),
            Command::Eval(args) => eval::run(args),
            Command::Report(args) => report::run(args),
            Command::Export(args) => export::run(args),
            Command::Merge(args) => merge::run(args),
            Command::Score(args) => score::run(args),
        }?;
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use std::path::Path;

    use crate::{bridge, clip_finetune, dataset::read_datasets, pretrain, run_dir::read_config, sweep};

    #[test]
    fn definition_is_sound() {
        super::Cli::command().debug_assert();
    }

    #[test]
    fn every_configuration_is_what_its_command_reads() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
        let mut commands = Vec::new();
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if !name.ends_with(".toml") {
                continue;
            }
            // The head of the file shows the command that it is for.
            let text = std::fs::read_to_string(&path).unwrap();
            let (_, shown) = text.split_once("rscapret ").unwrap_or_else(|| panic!("{name} shows no command"));
            let line = shown.lines().next().unwrap();
            assert!(line.contains(&format!("trainer/configs/{name}")), "{name}: {line}");
            let command = line.split_whitespace().next().unwrap();
            match command {
                "pretrain-lm" => read_config::<pretrain::lm::Config>(&path).map(drop),
                "pretrain-clip" => read_config::<pretrain::clip::Config>(&path).map(drop),
                "clip" => read_config::<clip_finetune::Config>(&path).map(drop),
                "features" | "train" => read_config::<bridge::Config>(&path).and_then(|config| config.check()),
                // Its variants are looked at where they are made.
                "sweep" => read_config::<sweep::Config>(&path).map(drop),
                "eval" => read_datasets(&path).map(drop),
                other => panic!("{name}: {other}"),
            }
            .unwrap_or_else(|error| panic!("{error}"));
            commands.push(command.to_string());
        }
        commands.sort();
        commands.dedup();
        assert_eq!(commands, ["clip", "eval", "features", "pretrain-clip", "pretrain-lm", "sweep", "train"]);
    }
}
