//! How many threads compute.

use std::{env, thread};

/// What rayon and candle read.
const NAME: &str = "RAYON_NUM_THREADS";

/// Settles it for the whole program: as many as there are cores, or what `RAYON_NUM_THREADS` says. To be called first of all.
///
/// Where the variable is absent candle-core 0.11 counts the cores before each product of matrices, and reads
/// `/proc/cpuinfo` for it: small models spend most of their time there (`cargo xtask bench decode/demo`, with the variable
/// and without). A running program cannot safely change its environment, so it becomes itself anew with it; where that
/// cannot be done it goes on as it is.
pub fn settle() {
    if env::var_os(NAME).is_some() {
        return;
    }
    #[cfg(unix)]
    if let Ok(program) = env::current_exe() {
        use std::os::unix::process::CommandExt;

        let mut arguments = env::args_os();
        let mut again = std::process::Command::new(program);
        if let Some(name) = arguments.next() {
            again.arg0(name);
        }
        // It returns only if it failed.
        let _ = again.args(arguments).env(NAME, cores().to_string()).exec();
    }
}

/// Cores of this machine that the program may use; threads that share a core gain nothing.
fn cores() -> usize {
    let allowed = thread::available_parallelism().map_or(1, usize::from);
    allowed.min(num_cpus::get_physical()).max(1)
}

#[cfg(test)]
mod tests {
    #[test]
    fn there_is_a_core() {
        assert!((1..=std::thread::available_parallelism().unwrap().get()).contains(&super::cores()));
    }
}
