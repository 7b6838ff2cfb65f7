//! What is seen until the model answers, or instead of it.

use leptos::prelude::*;

use super::{format, state, state::Phase};
use crate::protocol::{Kept, Need, Stage};

/// A stage in words.
pub fn words(phase: &Phase) -> String {
    match phase {
        Phase::Starting => "Starting".into(),
        Phase::Loading { stage: Stage::Album, .. } => "Loading the album".into(),
        Phase::Loading { stage: Stage::Fetching(file), bytes, total } => {
            format!("Loading {file}: {} of {} MB", format::megabytes(*bytes), format::megabytes(*total))
        }
        Phase::Loading { stage: Stage::Stored(file), bytes, total } => {
            let (bytes, total) = (format::megabytes(*bytes), format::megabytes(*total));
            format!("Reading {file} from this browser's storage: {bytes} of {total} MB")
        }
        Phase::Loading { stage: Stage::Verifying(file), .. } => format!("Verifying {file} (SHA-256)"),
        Phase::Loading { stage: Stage::Building { need: Some(need), offer }, .. } => {
            let offer = offer.map(|bytes| format!(", which gives pieces of up to {} MB", format::megabytes(bytes)));
            format!("Building the model: {} on the GPU{}", room(need), offer.unwrap_or_default())
        }
        Phase::Loading { stage: Stage::Building { .. }, .. } => "Building the model".into(),
        Phase::Ready(_) => "Ready".into(),
        Phase::Failed(_) => "Stopped".into(),
    }
}

/// What a model needs of a GPU's memory, in words.
pub fn room(need: &Need) -> String {
    let [weights, cache, scratch] = [need.weights, need.cache, need.scratch].map(format::megabytes);
    let total = format::megabytes(need.total());
    format!("{total} MB ({weights} of weights, {cache} of keys and values, {scratch} to work in)")
}

/// What becomes of the model after this visit.
fn keeping(kept: &Kept) -> String {
    match kept {
        Kept::Stored { offer } => {
            let offer = offer.map(|bytes| format!(", which offers {} MB", format::megabytes(bytes)));
            format!("Once: it is kept in this browser's storage{}. ", offer.unwrap_or_default())
        }
        Kept::Partly { because } => {
            format!("This browser does not keep all of the model: {because}. The next visit loads the rest again. ")
        }
        Kept::Nowhere { because } => {
            format!("This browser does not keep the model: {because}. The next visit loads it again. ")
        }
    }
}

/// The progress bar.
#[component]
pub fn Panel() -> impl IntoView {
    let state = state();
    let part = move || match state.phase.get() {
        Phase::Loading { bytes, total, .. } if total > 0 => bytes as f64 / total as f64,
        _ => 0.0,
    };
    view! {
        <Show when=move || !state.ready()>
            <section class="panel" data-testid="loading" aria-label="Loading">
                <p>{move || state.phase.with(words)}</p>
                <progress max="1" value=part aria-label="Part of the model that has arrived"></progress>
                <p class="note" data-testid="keeping">
                    {move || state.kept.with(|kept| kept.as_ref().map(keeping))}
                    "After that the page asks the network for nothing."
                </p>
            </section>
        </Show>
    }
}

/// The end of it.
#[component]
pub fn Failure(cause: String) -> impl IntoView {
    let (what, remedy) = match cause.split_once('\n') {
        Some((what, remedy)) => (what.to_string(), Some(remedy.to_string())),
        None => (cause, None),
    };
    let reload = move |_| {
        // A page that cannot be reloaded can be closed.
        let _ = window().location().reload();
    };
    view! {
        <section class="panel failure" role="alert" data-testid="failure">
            <h2>"The model is not available"</h2>
            <p class="cause">{what}</p>
            {remedy.map(|remedy| view! { <p>{remedy}</p> })}
            <button type="button" class="primary" on:click=reload>
                "Try again"
            </button>
        </section>
    }
}
