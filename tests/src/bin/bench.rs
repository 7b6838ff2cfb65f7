//! `rscapret-bench [NAME...]`: measures and prints a line of JSON for each row; see `cargo xtask bench`.

use std::process::ExitCode;

use rscapret::{Error, Result, bench::Row};
use rscapret_tests::bench::{frozen, llama_step, run};

fn main() -> ExitCode {
    rscapret_trainer::threads::settle();
    let names: Vec<String> = std::env::args().skip(1).collect();
    let done = match &names[..] {
        // One measurement in a process of its own, asked for by the program itself.
        [child, kind] if child == "--child" => frozen::child(kind),
        [child, kind, shape] if child == "--child" && kind == llama_step::KIND => llama_step::child(shape),
        _ => run(&names, print),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn print(row: Row) -> Result<()> {
    println!("{}", serde_json::to_string(&row).map_err(|e| Error::Io(e.to_string()))?);
    Ok(())
}
