//! What a power failure does to a training run.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    thread::sleep,
    time::Duration,
};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

use crate::command::rscapret;

/// Runs a stage twice, by these arguments and `--run`: as `whole`, undisturbed; and as `cut`, killed so many times at random
/// moments, in a step, in a validation, in the writing of a checkpoint, and gone on with. Both have logged the same losses
/// then.
///
/// # Panics
/// Where they have not; and when the stage fails, or is so short that it is never caught.
pub fn survive(folder: &Path, stage: &[&str], kills: usize) {
    let command = |name: &str, more: &[&str]| {
        let mut command = rscapret();
        command.current_dir(folder).args(stage).args(["--run", name]).args(more);
        command.env("RAYON_NUM_THREADS", "1").stderr(Stdio::null());
        command
    };
    let succeeds = |mut command: Command| assert!(command.status().unwrap().success(), "{command:?}");
    succeeds(command("whole", &[]));
    let (mut rng, mut done, mut tries) = (ChaCha8Rng::seed_from_u64(1), 0, 0);
    while done < kills {
        tries += 1;
        assert!(tries < 10 * kills, "{done} kills in {tries} runs");
        let again: &[&str] = if folder.join("cut/config.toml").exists() { &["--resume"] } else { &[] };
        let mut run = command("cut", again).spawn().unwrap();
        // Not before it has begun, or it would never get anywhere.
        let log = folder.join("cut/metrics.jsonl");
        let length = || fs::metadata(&log).map_or(0, |data| data.len());
        let before = length();
        while length() <= before && run.try_wait().unwrap().is_none() {
            sleep(Duration::from_millis(1));
        }
        sleep(Duration::from_millis(rng.random_range(0..40)));
        if run.try_wait().unwrap().is_none() {
            run.kill().unwrap();
            done += 1;
        } else {
            // It ended first: once more from the start.
            fs::remove_dir_all(folder.join("cut")).unwrap();
        }
        run.wait().unwrap();
    }
    succeeds(command("cut", &["--resume"]));
    let log = |name: &str| -> Vec<(u64, f64)> {
        let text = fs::read_to_string(folder.join(name).join("metrics.jsonl")).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.filter_map(|line| Some((line["step"].as_u64()?, line["loss"].as_f64()?))).collect()
    };
    assert_eq!(log("whole"), log("cut"));
}
