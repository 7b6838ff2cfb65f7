//! Finding by a sentence.

use leptos::{ev::SubmitEvent, prelude::*};

use super::state;
use crate::protocol::Query;

/// What the album holds, as a beginning.
const EXAMPLES: [&str; 6] = [
    "cars in a parking lot",
    "many boats",
    "a beach with waves",
    "a forest with green trees",
    "two tennis courts",
    "a runway",
];

#[component]
pub fn SearchForm() -> impl IntoView {
    let state = state();
    let text = state.sentence;
    let search = move |sentence: &str| {
        let sentence = sentence.trim();
        if sentence.is_empty() {
            state.show_all();
        } else if state.ready() {
            state.search(Query::Text(sentence.to_string()));
        }
    };
    let submit = move |event: SubmitEvent| {
        event.prevent_default();
        // A copy: searching sets this same signal.
        search(&text.get_untracked());
    };
    // An empty field asks for nothing.
    let cleared = move |event| {
        if event_target_value(&event).is_empty() {
            state.show_all();
        }
    };
    let waits = move || !state.ready();
    let examples = EXAMPLES.map(|example| {
        let pick = move |_| search(example);
        view! {
            <li>
                <button type="button" class="chip" on:click=pick disabled=waits>
                    {example}
                </button>
            </li>
        }
    });
    view! {
        <search>
            <form class="search" on:submit=submit>
                <label class="visually-hidden" for="query">
                    "Describe what you are looking for"
                </label>
                <input
                    id="query"
                    type="search"
                    enterkeyhint="search"
                    autocomplete="off"
                    maxlength="500"
                    placeholder="Describe what you are looking for"
                    data-testid="search-input"
                    bind:value=text
                    on:input=cleared
                />
                <button type="submit" class="primary" data-testid="search-button" disabled=waits>
                    "Find"
                </button>
            </form>
            <ul class="chips" aria-label="Examples">{examples}</ul>
        </search>
    }
}
