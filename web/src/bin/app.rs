//! Entry point of the page.

fn main() {
    rscapret_web::app::start();
}
