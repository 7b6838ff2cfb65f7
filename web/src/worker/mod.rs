//! The worker: owns the engine and touches no document.
//!
//! One loop does everything, one thing at a time: what somebody waits for, then new pictures, then what has time. It
//! returns to the browser's event loop between tokens and between pictures, so that a wish to stop is heard.

mod album;
pub mod blob;
mod desk;
mod engine;
mod fetch;
mod garbage;
pub mod gpu;
mod inbox;
mod outbox;
mod progress;
mod shelf;
mod tick;

use std::rc::Rc;

use rscapret::{Error, Result};
use wasm_bindgen::{JsCast, JsValue, closure::Closure};
use wasm_bindgen_futures::spawn_local;
use web_sys::{DedicatedWorkerGlobalScope, MessageEvent};

use crate::protocol::{self, Request, Response};
use desk::Desk;
use inbox::Inbox;
use outbox::send;

/// Listens, and works until the page goes.
pub fn start() {
    console_error_panic_hook::set_once();
    let inbox = Rc::new(Inbox::default());
    listen(Rc::clone(&inbox));
    spawn_local(run(inbox));
    send(&Response::Awake);
}

fn listen(inbox: Rc<Inbox>) {
    let receive = move |event: MessageEvent| {
        match protocol::unpack::<Request>(event.data()) {
            Ok((request, beside)) => inbox.put(request, beside),
            // Only this project's page talks to this worker: a message that cannot be read is a mistake of ours.
            Err(cause) => wasm_bindgen::throw_str(&cause),
        }
    };
    let receive = Closure::<dyn FnMut(MessageEvent)>::new(receive);
    scope().set_onmessage(Some(receive.as_ref().unchecked_ref()));
    // The worker listens as long as it lives.
    receive.forget();
}

async fn run(inbox: Rc<Inbox>) {
    let cause = work(&inbox).await.to_string();
    send(&Response::Failed { cause: cause.clone() });
    // Whoever waits hears of it, and whoever asks later.
    loop {
        let (request, _) = inbox.next().await;
        refuse(&request, &cause);
        inbox.forget(&request);
    }
}

/// Works as long as there is a model; then says why there is none any more.
async fn work(inbox: &Inbox) -> Error {
    let (base, device) = loop {
        match inbox.next().await {
            (Request::Load { base, device }, _) => break (base, device),
            (request, _) => refuse(&request, "expected the bundle to be loaded first"),
        }
    };
    let mut desk = match Desk::open(&base, device).await {
        Ok(desk) => desk,
        Err(error) => return error,
    };
    loop {
        if let Some((request, beside)) = inbox.take() {
            let done = answer(&mut desk, inbox, &request, beside).await;
            if let Err(error) = &done {
                refuse(&request, &error.to_string());
            }
            inbox.forget(&request);
            if let Err(error) = done
                && !desk.has_model()
            {
                return error;
            }
        } else if desk.has_background_work() {
            if let Err(error) = desk.background_step().await {
                return error;
            }
        } else {
            inbox.wait().await;
        }
        tick::pause().await;
    }
}

async fn answer(desk: &mut Desk, inbox: &Inbox, request: &Request, beside: JsValue) -> Result<()> {
    let done = serve(desk, inbox, request, beside.clone()).await;
    let repeatable = matches!(request, Request::Caption { .. } | Request::Search { .. });
    if done.is_ok() || !repeatable || !desk.recover().await? {
        return done;
    }
    if let Request::Caption { id, .. } = request {
        send(&Response::Again { id: *id });
    }
    serve(desk, inbox, request, beside).await
}

async fn serve(desk: &mut Desk, inbox: &Inbox, request: &Request, beside: JsValue) -> Result<()> {
    match request {
        Request::Load { .. } => Err(Error::Config("expected one bundle a worker but found two".into())),
        Request::Caption { id, image, .. } => desk.caption(*id, *image, inbox).await,
        Request::Search { id, query } => desk.search(*id, query).await,
        Request::Add { id, name } => desk.add(*id, name, beside).await,
        Request::Open { id } => desk.replace(*id, beside).await,
        Request::Discard { .. } => desk.discard().await,
        // Those for waiting and running requests are met in the inbox.
        Request::Cancel { .. } => Ok(()),
    }
}

fn refuse(request: &Request, cause: &str) {
    match inbox::id(request) {
        Some(id) => send(&Response::Refused { id, cause: cause.to_string() }),
        None => send(&Response::Failed { cause: cause.to_string() }),
    }
}

fn scope() -> DedicatedWorkerGlobalScope {
    JsValue::from(js_sys::global()).unchecked_into()
}
