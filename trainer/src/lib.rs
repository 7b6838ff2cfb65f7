//! Trainer of rscapret, and its command line.

pub mod ahead;
pub mod bridge;
pub mod captioning;
pub mod cli;
pub mod clip;
pub mod clip_finetune;
pub mod dataset;
pub mod eval;
pub mod evaluate;
pub mod features;
pub mod files;
#[cfg(test)]
mod golden;
pub mod hub;
pub mod images;
pub mod loss;
pub mod optim;
pub mod parallel;
pub mod pretrain;
pub(crate) mod progress;
pub mod provenance;
pub mod report;
pub mod run_dir;
pub mod stage;
pub mod sweep;
pub mod threads;
pub mod vars;
pub mod vocabulary;
