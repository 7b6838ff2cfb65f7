//! Pictures of the user: picked or dropped, read here, decoded by the worker. And models, which the worker reads.

use js_sys::{Array, ArrayBuffer, Reflect};
use leptos::{ev, html, prelude::*};
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::{JsFuture, spawn_local};
use web_sys::{DragEvent, File, FileList};

use super::{
    link, state,
    state::{Notice, State},
};
use crate::protocol::Request;

/// Larger files are not read into memory.
const MAX_BYTES: f64 = 256e6;
/// What the worker decodes.
const ACCEPT: &str = "image/jpeg,image/png,image/webp,image/tiff,.jpg,.jpeg,.png,.webp,.tif,.tiff";

/// A field of files, hidden by its label.
#[component]
fn FileInput(
    testid: &'static str,
    #[prop(optional)] accept: Option<&'static str>,
    #[prop(optional, into)] disabled: Signal<bool>,
    /// Gets at least one file.
    picked: impl Fn(FileList) + 'static,
) -> impl IntoView {
    let input = NodeRef::<html::Input>::new();
    let changed = move |_| {
        let Some(input) = input.get() else { return };
        if let Some(files) = input.files().filter(|files| files.length() > 0) {
            picked(files);
        }
        // The same file may be picked again.
        input.set_value("");
    };
    view! {
        <input
            node_ref=input
            class="visually-hidden"
            type="file"
            multiple
            accept=accept
            data-testid=testid
            disabled=disabled
            on:change=changed
        />
    }
}

/// The tile that asks for files.
#[component]
pub fn AddTile() -> impl IntoView {
    let state = state();
    let disabled = Signal::derive(move || !state.ready());
    view! {
        <li class="tile add">
            <label>
                <FileInput testid="upload" accept=ACCEPT disabled=disabled picked=move |files| add(state, &files) />
                <span class="plus" aria-hidden="true">"+"</span>
                <span class="ask">"Add your own images"</span>
                <span class="note">"Pick or drop JPEG, PNG, WebP or TIFF. They stay on this machine."</span>
            </label>
        </li>
    }
}

/// Asks for another model.
#[component]
pub fn ModelButton() -> impl IntoView {
    let state = state();
    let picked = move |files: FileList| {
        let id = state.fresh_id();
        state.opening.set(Some(id));
        link::send_with(&Request::Open { id }, &Array::from(&files));
    };
    let title = "Pick all files of a bundle's folder, which `rscapret export` makes. They stay on this machine.";
    view! {
        <label class="small" title=title>
            <FileInput testid="open-model" picked=picked />
            "Use another model"
        </label>
    }
}

/// Lets files be dropped anywhere on the page.
pub fn accept_drops(state: State) {
    let over = window_event_listener(ev::dragover, move |event: DragEvent| {
        if holds_files(&event) {
            // Otherwise the browser would leave the page and open the file.
            event.prevent_default();
            state.dragging.set(true);
        }
    });
    let leave = window_event_listener(ev::dragleave, move |event: DragEvent| {
        if event.related_target().is_none() {
            state.dragging.set(false);
        }
    });
    let drop = window_event_listener(ev::drop, move |event: DragEvent| {
        state.dragging.set(false);
        if holds_files(&event) {
            event.prevent_default();
            if let Some(files) = event.data_transfer().and_then(|data| data.files()) {
                add(state, &files);
            }
        }
    });
    on_cleanup(move || {
        over.remove();
        leave.remove();
        drop.remove();
    });
}

fn holds_files(event: &DragEvent) -> bool {
    event.data_transfer().is_some_and(|data| data.types().includes(&JsValue::from_str("Files"), 0))
}

/// Shown while files are held over the page.
#[component]
pub fn DropHint() -> impl IntoView {
    let state = state();
    view! {
        <Show when=move || state.dragging.get()>
            <div class="drop" aria-hidden="true">
                <p>"Drop to have them described"</p>
            </div>
        </Show>
    }
}

fn add(state: State, files: &FileList) {
    let files: Vec<File> = (0..files.length()).filter_map(|i| files.get(i)).collect();
    if !state.ready() {
        return notice(&state, "Your images", "the model is not loaded yet: add them in a moment".into());
    }
    state.show_next.set_value(files.len() == 1);
    // One after the other: no more than one file is held here.
    spawn_local(async move {
        for file in files {
            if let Err(cause) = read(&state, &file).await {
                notice(&state, &file.name(), cause);
            }
        }
    });
}

async fn read(state: &State, file: &File) -> Result<(), String> {
    if file.size() > MAX_BYTES {
        return Err(format!("expected at most {:.0} MB but found {:.0} MB", MAX_BYTES / 1e6, file.size() / 1e6));
    }
    let bytes = JsFuture::from(file.array_buffer()).await.map_err(|error| {
        let cause = Reflect::get(&error, &"message".into()).ok().and_then(|m| m.as_string());
        format!("expected a readable file but found: {}", cause.unwrap_or_else(|| "no reason given".into()))
    })?;
    let bytes: ArrayBuffer = bytes.unchecked_into();
    let (id, name) = (state.fresh_id(), file.name());
    state.adding.update(|all| all.push((id, name.clone())));
    link::send_with(&Request::Add { id, name }, &bytes);
    Ok(())
}

fn notice(state: &State, about: &str, cause: String) {
    let id = state.fresh_id();
    state.notices.update(|all| all.push(Notice { id, about: about.to_string(), cause }));
}

/// What did not work, until it is dismissed.
#[component]
pub fn Notices() -> impl IntoView {
    let state = state();
    view! {
        <div class="notices" role="alert" data-testid="notices">
            <For each=move || state.notices.get() key=|notice| notice.id let(notice)>
                <p class="notice" data-testid="notice">
                    <span>
                        <strong>{notice.about.clone()}</strong>
                        ": "
                        {notice.cause.clone()}
                    </span>
                    <button type="button" class="small" on:click=move |_| state.dismiss(notice.id)>
                        "Dismiss"
                    </button>
                </p>
            </For>
        </div>
    }
}
