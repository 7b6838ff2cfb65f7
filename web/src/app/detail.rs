//! The large view: one picture and its caption as it is written.

use leptos::{html, prelude::*};
use web_sys::MouseEvent;

use super::{
    format, state,
    state::{Caption, Picture},
};
use crate::protocol::Query;

#[component]
pub fn Detail() -> impl IntoView {
    let state = state();
    let dialog = NodeRef::<html::Dialog>::new();
    // The browser's own modal dialog: it keeps the focus inside and gives it back, and Escape closes it.
    Effect::new(move || {
        let Some(dialog) = dialog.get() else { return };
        match state.open.get() {
            Some(_) if !dialog.open() => {
                // Fails only for a dialog that is open or outside of the document.
                let _ = dialog.show_modal();
            }
            None if dialog.open() => dialog.close(),
            _ => {}
        }
    });
    // By Escape, or late by ourselves: the event is queued, and the next picture may be open already.
    let closed = move |_| {
        if dialog.get_untracked().is_some_and(|dialog| !dialog.open()) {
            state.close();
        }
    };
    // The padding belongs to what is inside: a click on the dialog itself is one beside it.
    let beside = move |event: MouseEvent| {
        if event.target() == event.current_target() {
            state.close();
        }
    };
    view! {
        <dialog
            node_ref=dialog
            class="detail"
            data-testid="detail"
            aria-label="Image and its description"
            on:close=closed
            on:click=beside
        >
            // Outside of what changes: the focus begins here and stays.
            <button
                type="button"
                class="close"
                aria-label="Close"
                data-testid="close"
                autofocus
                on:click=move |_| state.close()
            >
                "✕"
            </button>
            {move || state.open.get().and_then(|id| state.picture(id)).map(|picture| view! { <Content picture /> })}
        </dialog>
    }
}

#[component]
fn Content(picture: Picture) -> impl IntoView {
    let state = state();
    let Picture { id, name, url, caption, .. } = picture;
    let subject = name.clone();
    let alt = move || match caption.with(|c| c.text().to_string()) {
        text if text.is_empty() => format!("Aerial image {subject}"),
        text => text,
    };
    let busy = move || caption.with(|c| c.pending().is_some());
    let text = move || match caption.get() {
        Caption::None => String::new(),
        Caption::Waiting(_) => match state.ready() {
            true => "Looking …".to_string(),
            false => "Waits for the model …".to_string(),
        },
        Caption::Failed(cause) => format!("No description: {cause}"),
        other => other.text().to_string(),
    };
    let fact = move || match caption.get() {
        Caption::Writing(..) => "writing …".to_string(),
        Caption::Done(_, speed) => format!("written at {}", format::speed(speed)),
        Caption::Stopped(_) => "stopped".to_string(),
        _ => String::new(),
    };
    let phase = move || match caption.get() {
        Caption::None => "none",
        Caption::Waiting(_) => "waiting",
        Caption::Writing(..) => "writing",
        Caption::Done(..) => "done",
        Caption::Stopped(_) => "stopped",
        Caption::Failed(_) => "failed",
    };
    let similar = move |_| {
        state.close();
        state.search(Query::Image(id));
    };
    let waits = move || !state.ready();
    view! {
        <article class="sheet">
            <img src=url alt=alt />
            <div class="words">
                <p class="name">{name}</p>
                <p
                    class="caption"
                    data-testid="caption"
                    data-state=phase
                    aria-live="polite"
                    aria-atomic="true"
                    aria-busy=move || busy().to_string()
                >
                    {text}
                    <Show when=busy>
                        <span class="cursor" aria-hidden="true"></span>
                    </Show>
                </p>
                <p class="note" data-testid="caption-fact">{fact}</p>
                <div class="actions">
                    <Show
                        when=busy
                        fallback=move || {
                            view! {
                                <Show when=move || {
                                    caption.with(|c| matches!(c, Caption::None | Caption::Stopped(_) | Caption::Failed(_)))
                                }>
                                    <button type="button" data-testid="describe" on:click=move |_| state.show(id)>
                                        "Describe again"
                                    </button>
                                </Show>
                            }
                        }
                    >
                        <button type="button" data-testid="stop-caption" on:click=move |_| state.stop_all()>
                            "Stop"
                        </button>
                    </Show>
                    <button type="button" class="primary" data-testid="detail-similar" on:click=similar disabled=waits>
                        "Find similar"
                    </button>
                </div>
            </div>
        </article>
    }
}
