//! What the page has asked for and not yet got.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeSet, VecDeque},
    task::{Poll, Waker},
};

use wasm_bindgen::JsValue;

use crate::protocol::{Request, RequestId};

type Letter = (Request, JsValue);

/// A queue by urgency, that knows what was cancelled.
#[derive(Default)]
pub struct Inbox {
    letters: RefCell<VecDeque<Letter>>,
    cancelled: RefCell<BTreeSet<RequestId>>,
    running: Cell<Option<RequestId>>,
    waker: RefCell<Option<Waker>>,
}

impl Inbox {
    /// Takes in a message. Of the same urgency, first come is first served.
    pub fn put(&self, request: Request, beside: JsValue) {
        let mut letters = self.letters.borrow_mut();
        if let Request::Cancel { id: target } = request {
            // A cancel for what has been answered already must not stay behind.
            let waits = letters.iter().any(|(r, _)| id(r) == Some(target));
            if waits || self.running.get() == Some(target) {
                self.cancelled.borrow_mut().insert(target);
            }
            return;
        }
        let at = letters.iter().position(|(r, _)| rank(r) > rank(&request)).unwrap_or(letters.len());
        letters.insert(at, (request, beside));
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// The most urgent message, if there is one. Until [`Inbox::forget`] it counts as running.
    pub fn take(&self) -> Option<Letter> {
        let letter = self.letters.borrow_mut().pop_front();
        self.running.set(letter.as_ref().and_then(|(r, _)| id(r)));
        letter
    }

    /// The most urgent message.
    pub async fn next(&self) -> Letter {
        loop {
            if let Some(letter) = self.take() {
                return letter;
            }
            self.wait().await;
        }
    }

    /// Until there is a message.
    pub fn wait(&self) -> impl Future<Output = ()> + '_ {
        std::future::poll_fn(|context| {
            if !self.letters.borrow().is_empty() {
                return Poll::Ready(());
            }
            *self.waker.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
    }

    /// Whether the page no longer wants the answer to `id`.
    pub fn is_cancelled(&self, id: RequestId) -> bool {
        self.cancelled.borrow().contains(&id)
    }

    /// The request was answered.
    pub fn forget(&self, request: &Request) {
        self.running.set(None);
        if let Some(id) = id(request) {
            self.cancelled.borrow_mut().remove(&id);
        }
    }
}

/// Id of a request that is answered.
pub fn id(request: &Request) -> Option<RequestId> {
    match request {
        Request::Caption { id, .. }
        | Request::Search { id, .. }
        | Request::Add { id, .. }
        | Request::Open { id }
        | Request::Discard { id } => Some(*id),
        Request::Load { .. } | Request::Cancel { .. } => None,
    }
}

/// What goes first: what somebody looks at, then new pictures, then what can wait.
fn rank(request: &Request) -> u8 {
    match request {
        Request::Load { .. } | Request::Cancel { .. } => 0,
        Request::Caption { urgent: true, .. } | Request::Search { .. } => 1,
        Request::Add { .. } | Request::Open { .. } | Request::Discard { .. } => 2,
        Request::Caption { urgent: false, .. } => 3,
    }
}
