//! The album: all pictures, or the ranked ones with their scores.

use std::collections::BTreeSet;

use leptos::prelude::*;

use super::{
    format, state,
    state::{Picture, Ranking},
    upload::AddTile,
};
use crate::protocol::Query;

#[component]
pub fn Album() -> impl IntoView {
    let state = state();
    // Best first; without a ranking the user's own first, the latest of them foremost.
    let shown = Memo::new(move |_| {
        let pictures = state.pictures.get();
        match state.ranking.get() {
            Some(Ranking { hits, .. }) => {
                let found: BTreeSet<_> = hits.iter().map(|hit| hit.image).collect();
                let ranked = hits.iter().filter_map(|hit| pictures.iter().find(|p| p.id == hit.image));
                let rest = pictures.iter().filter(|p| !found.contains(&p.id));
                ranked.chain(rest).cloned().collect()
            }
            None => {
                let (own, album): (Vec<_>, Vec<_>) = pictures.into_iter().partition(|p| p.own);
                own.into_iter().rev().chain(album).collect::<Vec<_>>()
            }
        }
    });
    let ranked = move || state.ranking.with(Option::is_some);
    view! {
        <section id="album" aria-label="Album" tabindex="-1">
            <Heading />
            <ul class="grid" data-testid="album" class:ranked=ranked>
                <Show when=move || !ranked()>
                    <AddTile />
                </Show>
                <For each=move || shown.get() key=|picture| picture.id let(picture)>
                    <Tile picture />
                </For>
            </ul>
        </section>
    }
}

#[component]
fn Heading() -> impl IntoView {
    let state = state();
    let words = move || match (state.ranking.get(), state.searching.get()) {
        (_, Some((_, Query::Text(text)))) => format!("Looking for “{text}” …"),
        (_, Some((_, Query::Image(_)))) => "Looking for similar images …".to_string(),
        (Some(Ranking { query, .. }), None) => {
            let name = |id| state.picture(id).map(|p| p.name).unwrap_or_default();
            format!("Ranked by {}", format::query(&query, name))
        }
        (None, None) => match state.pictures.with(Vec::len) {
            0 => "Album".to_string(),
            n => format!("Album · {}", format::count(n, "image", "images")),
        },
    };
    let note = move || {
        let Some(Ranking { hits, ms, .. }) = state.ranking.get() else {
            return "Click an image to have it described.".to_string();
        };
        let all = state.pictures.with(Vec::len);
        let compared = match hits.len() == all {
            true => format!("{} compared", format::count(all, "image", "images")),
            false => format!("{} of {all} images compared so far", hits.len()),
        };
        format!("{compared} in {}. The number is the cosine similarity; 1 is the most.", format::milliseconds(ms))
    };
    let ranked = move || state.ranking.with(Option::is_some) || state.searching.with(Option::is_some);
    view! {
        <div class="heading">
            <div role="status">
                <h2 data-testid="album-heading">{words}</h2>
                <p class="note">{note}</p>
            </div>
            <Show when=ranked>
                <button type="button" data-testid="show-all" on:click=move |_| state.show_all()>
                    "Show all"
                </button>
            </Show>
        </div>
    }
}

#[component]
fn Tile(picture: Picture) -> impl IntoView {
    let state = state();
    let Picture { id, name, url, own, caption } = picture;
    let described = move || caption.with(|c| c.text().to_string());
    let subject = name.clone();
    let alt = move || match described() {
        text if text.is_empty() => format!("Aerial image {subject}, not described yet"),
        text => text,
    };
    let similar = format!("Find images similar to {name}");
    let score = Memo::new(move |_| {
        state.ranking.with(|r| r.as_ref()?.hits.iter().find(|hit| hit.image == id).map(|hit| hit.score))
    });
    let waits = move || !state.ready();
    view! {
        <li class="tile" data-testid="tile" data-image=id class:own=own>
            <button type="button" class="picture" data-testid="open" on:click=move |_| state.show(id)>
                <img src=url alt=alt width="256" height="256" decoding="async" />
            </button>
            {move || score.get().map(|score| view! { <Score score /> })}
            {own.then(|| view! { <p class="name">{name}</p> })}
            <Show when=move || caption.with(|c| !c.text().is_empty() || c.pending().is_some())>
                <p class="caption" data-testid="tile-caption">
                    {move || match described() {
                        text if text.is_empty() => "…".to_string(),
                        text => text,
                    }}
                </p>
            </Show>
            <button
                type="button"
                class="similar"
                data-testid="similar"
                aria-label=similar
                disabled=waits
                on:click=move |_| state.search(Query::Image(id))
            >
                "Similar"
            </button>
        </li>
    }
}

#[component]
fn Score(score: f32) -> impl IntoView {
    view! {
        <p class="score">
            <meter min="0" max="1" value=score.max(0.0) aria-label="Score"></meter>
            <output data-testid="score">{format!("{score:.3}")}</output>
        </p>
    }
}
