//! The page: shows what the worker says and asks it for more. Touches no model.

mod album;
mod detail;
mod format;
mod link;
mod loading;
mod receive;
mod search;
mod state;
mod status;
mod upload;

use leptos::prelude::*;

use state::{Phase, State};

/// Puts the page into the document.
pub fn start() {
    console_error_panic_hook::set_once();
    mount_to_body(App);
}

#[component]
fn App() -> impl IntoView {
    let state = State::new();
    provide_context(state);
    link::connect(state);
    upload::accept_drops(state);

    let failure = Memo::new(move |_| match state.phase.get() {
        Phase::Failed(cause) => Some(cause),
        _ => None,
    });
    view! {
        <header class="top">
            <a class="skip" href="#album">"Skip to the album"</a>
            <h1>"Ask the "<em>"view from above"</em></h1>
            <p class="lead">
                "A small model describes these aerial images and finds them by what you type. It shows the way, and is "
                "often wrong. It runs in this tab, on your machine: "<strong>"nothing is uploaded."</strong>
            </p>
            <search::SearchForm />
        </header>
        <main>
            {move || match failure.get() {
                Some(cause) => view! { <loading::Failure cause /> }.into_any(),
                None => view! { <loading::Panel /> }.into_any(),
            }}
            <upload::Notices />
            <album::Album />
        </main>
        <detail::Detail />
        <upload::DropHint />
        <status::StatusLine />
    }
}

/// The state that [`App`] provides to everything below it.
fn state() -> State {
    expect_context()
}
