//! How the worker's messages change what the page knows.

use leptos::prelude::*;

use super::{
    link,
    state::{Caption, Notice, Phase, Picture, Ranking, State},
};
use crate::protocol::{ImageId, Query, Request, RequestId, Response};

impl State {
    /// Takes a message of the worker; `url` is the address of the bytes that came beside it.
    pub fn receive(&self, response: Response, url: Option<String>) {
        match response {
            Response::Awake => match link::device() {
                Ok(device) => link::send(&Request::Load { base: link::bundle_base(), device }),
                Err(cause) => self.phase.set(Phase::Failed(cause)),
            },
            Response::Loading { stage, bytes, total } => self.phase.set(Phase::Loading { stage, bytes, total }),
            Response::Kept(kept) => {
                self.discarding.set(None);
                self.kept.set(Some(kept));
            }
            Response::Ready(facts) => self.phase.set(Phase::Ready(facts)),
            Response::Recovered { cause } => {
                self.indexing.set(Default::default());
                let cause = format!("{cause}; it was loaded again and goes on");
                self.notices.update(|all| all.push(Notice { id: self.fresh_id(), about: "The model".into(), cause }));
            }
            Response::Again { id } => self.update_caption(id, |caption| *caption = Caption::Waiting(id)),
            Response::Replaced { .. } => self.begin_anew(),
            Response::Failed { cause } => self.phase.set(Phase::Failed(cause)),
            Response::Picture { image, name, request, .. } => self.receive_picture(image, name, url, request),
            Response::Indexed { ms, done, .. } => {
                self.indexing.update(|i| (i.done, i.ms) = (done, i.ms + ms));
                self.renew_ranking();
            }
            Response::Skipped { image, cause } => {
                let about = self.picture(image).map(|p| p.name).unwrap_or_default();
                self.indexing.update(|i| i.skipped += 1);
                self.notices.update(|all| all.push(Notice { id: self.fresh_id(), about, cause }));
                self.renew_ranking();
            }
            Response::Piece { id, text } => self.update_caption(id, |caption| {
                let so_far = caption.text().to_string();
                *caption = Caption::Writing(id, so_far + &text);
            }),
            Response::Captioned { id, text, tokens, ms, stopped } => {
                let speed = tokens as f64 * 1000.0 / ms.max(1.0);
                if !stopped {
                    self.speed.set(Some(speed));
                }
                self.update_caption(id, |caption| {
                    *caption = match (stopped, text.is_empty()) {
                        (false, _) => Caption::Done(text, speed),
                        (true, true) => Caption::None,
                        (true, false) => Caption::Stopped(text),
                    };
                });
            }
            Response::Ranked { id, hits, ms } => {
                if let Some((_, query)) = self.searching.get_untracked().filter(|(asked, _)| *asked == id) {
                    self.searching.set(None);
                    let again = self.ranking.with_untracked(|r| r.as_ref().is_some_and(|r| r.query == query));
                    // Asked for at a picture that may stand far below: the answer begins at the top.
                    if matches!(query, Query::Image(_)) && !again {
                        scroll_to_album();
                    }
                    self.ranking.set(Some(Ranking { query, hits, ms }));
                }
            }
            Response::Refused { id, cause } => self.refused(id, cause),
        }
    }

    /// What another model has said is no longer so.
    fn begin_anew(&self) {
        self.opening.set(None);
        self.open.set(None);
        self.searching.set(None);
        self.ranking.set(None);
        self.speed.set(None);
        self.indexing.set(Default::default());
        for picture in self.pictures.get_untracked() {
            picture.caption.set(Caption::None);
        }
    }

    fn receive_picture(&self, id: ImageId, name: String, url: Option<String>, request: Option<RequestId>) {
        let Some(url) = url else { return };
        let picture = Picture { id, name, url, own: request.is_some(), caption: RwSignal::new(Caption::None) };
        self.pictures.update(|all| all.push(picture.clone()));
        if let Some(request) = request {
            self.adding.update(|all| all.retain(|(id, _)| *id != request));
            if self.show_next.get_value() {
                self.show_next.set_value(false);
                self.show(id);
            } else {
                self.caption(&picture, false);
            }
        }
    }

    /// A search that was answered before all pictures were indexed is asked again when they are. One that waits for its answer
    /// is answered of all of them.
    fn renew_ranking(&self) {
        if self.is_indexing() || self.searching.get_untracked().is_some() {
            return;
        }
        if let Some(Ranking { query, .. }) = self.ranking.get_untracked() {
            self.rank(query);
        }
    }

    fn update_caption(&self, request: RequestId, change: impl FnOnce(&mut Caption)) {
        let asked = |p: &Picture| p.caption.with_untracked(|c| c.pending() == Some(request));
        if let Some(caption) = self.pictures.with_untracked(|all| all.iter().find(|p| asked(p)).map(|p| p.caption)) {
            caption.update(change);
        }
    }

    fn refused(&self, id: RequestId, cause: String) {
        if self.opening.get_untracked() == Some(id) {
            self.opening.set(None);
            self.notices.update(|all| all.push(Notice { id, about: "Your model".into(), cause }));
        } else if self.discarding.get_untracked() == Some(id) {
            self.discarding.set(None);
            self.notices.update(|all| all.push(Notice { id, about: "The stored model".into(), cause }));
        } else if self.searching.get_untracked().is_some_and(|(asked, _)| asked == id) {
            self.searching.set(None);
            self.notices.update(|all| all.push(Notice { id, about: "Search".into(), cause }));
        } else if let Some((_, about)) = self.adding.get_untracked().into_iter().find(|(asked, _)| *asked == id) {
            self.adding.update(|all| all.retain(|(asked, _)| *asked != id));
            self.notices.update(|all| all.push(Notice { id, about, cause }));
        } else {
            self.update_caption(id, |caption| *caption = Caption::Failed(cause));
        }
    }
}

fn scroll_to_album() {
    if let Some(album) = document().get_element_by_id("album") {
        album.scroll_into_view();
    }
}
