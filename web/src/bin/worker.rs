//! Entry point of the worker.

fn main() {
    rscapret_web::worker::start();
}
