//! The status line: what happens, what runs it, how fast.

use leptos::prelude::*;

use super::{format, loading, state, state::Phase, upload};
use crate::protocol::Kept;

#[component]
pub fn StatusLine() -> impl IntoView {
    let state = state();
    let captions = Memo::new(move |_| {
        state.pictures.with(|all| all.iter().filter(|p| p.caption.with(|c| c.pending().is_some())).count())
    });
    let doing = move || {
        if !state.ready() {
            return state.phase.with(loading::words);
        }
        let indexing = state.indexing.get();
        let all = state.pictures.with(Vec::len);
        match (captions.get(), state.adding.with(Vec::len)) {
            _ if state.searching.with(Option::is_some) => "Searching".to_string(),
            (1, _) => "Writing a description".to_string(),
            (n @ 2.., _) => format!("Writing {n} descriptions"),
            (_, n @ 1..) => format!("Reading {}", format::count(n, "file", "files")),
            _ if state.is_indexing() => format!("Indexing: {} of {all}", indexing.done),
            _ => "Idle".to_string(),
        }
    };
    let mood = move || match state.phase.get() {
        Phase::Failed(_) => "failed",
        Phase::Ready(_) if doing() == "Idle" => "idle",
        _ => "busy",
    };
    let facts = move || match state.phase.get() {
        Phase::Ready(facts) => Some(facts),
        _ => None,
    };
    let indexed = move || {
        let (indexing, all) = (state.indexing.get(), state.pictures.with(Vec::len));
        let speed =
            indexing.mean_ms().map(|ms| format!(", {} per image", format::milliseconds(ms))).unwrap_or_default();
        format!("{} of {all} indexed{speed}", indexing.done)
    };
    view! {
        <footer class="status" data-testid="status" data-mood=mood>
            <p class="doing">
                <span class="dot" aria-hidden="true"></span>
                <span role="status" data-testid="doing">{doing}</span>
                <Show when=move || { captions.get() > 0 }>
                    <button type="button" class="small" data-testid="stop" on:click=move |_| state.stop_all()>
                        "Stop"
                    </button>
                </Show>
            </p>
            <p class="facts">
                {move || {
                    facts()
                        .map(|facts| {
                            let size = format!("{}, {} MB", facts.name, format::megabytes(facts.bytes));
                            let room = facts.need.map(|need| format!("{} of its memory", loading::room(&need)));
                            view! {
                                <span data-testid="model">{size}</span>
                                <upload::ModelButton />
                                <StoredModel />
                                <span data-testid="runs-on" title=facts.because.or(room)>{facts.runs_on}</span>
                                <span data-testid="indexed">{indexed}</span>
                            }
                        })
                }}
                {move || state.speed.get().map(|s| view! { <span data-testid="speed">{format::speed(s)}</span> })}
            </p>
        </footer>
    }
}

/// Where the model that came with the page is kept, and the way to remove it from there.
#[component]
fn StoredModel() -> impl IntoView {
    let state = state();
    let words = |kept: Kept| match kept {
        Kept::Stored { .. } => "stored in this browser".to_string(),
        Kept::Partly { because } => format!("not all of it is stored in this browser: {because}"),
        Kept::Nowhere { because } => format!("not stored in this browser: {because}"),
    };
    let stored = move || state.kept.with(|kept| matches!(kept, Some(Kept::Stored { .. } | Kept::Partly { .. })));
    view! {
        {move || state.kept.get().map(|kept| view! { <span data-testid="kept">{words(kept)}</span> })}
        <Show when=stored>
            <button
                type="button"
                class="small"
                data-testid="discard"
                disabled=move || state.discarding.with(Option::is_some)
                on:click=move |_| state.discard()
            >
                "Remove the stored model"
            </button>
        </Show>
    }
}
