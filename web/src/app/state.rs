//! What the page knows, and how the user changes it.

use leptos::prelude::*;

use super::link;
use crate::protocol::{Facts, Hit, ImageId, Kept, Query, Request, RequestId, Stage};

/// Where loading stands.
#[derive(Debug, Clone, PartialEq)]
pub enum Phase {
    /// Nothing heard from the worker yet.
    Starting,
    /// The bundle is on its way.
    Loading {
        /// What happens now.
        stage: Stage,
        /// Bytes that are here.
        bytes: u64,
        /// Bytes in all.
        total: u64,
    },
    /// The model answers.
    Ready(Facts),
    /// It never will.
    Failed(String),
}

/// A caption's life.
#[derive(Debug, Clone, PartialEq)]
pub enum Caption {
    /// Not asked for.
    None,
    /// Asked for.
    Waiting(RequestId),
    /// Streaming in.
    Writing(RequestId, String),
    /// Written, at so many tokens a second.
    Done(String, f64),
    /// Stopped before its end.
    Stopped(String),
    /// The worker refused.
    Failed(String),
}

impl Caption {
    /// The request that is still to be answered.
    pub fn pending(&self) -> Option<RequestId> {
        match self {
            Caption::Waiting(id) | Caption::Writing(id, _) => Some(*id),
            _ => None,
        }
    }

    /// What there is of the text.
    pub fn text(&self) -> &str {
        match self {
            Caption::Writing(_, text) | Caption::Done(text, _) | Caption::Stopped(text) => text,
            _ => "",
        }
    }
}

/// A picture that is shown.
#[derive(Debug, Clone, PartialEq)]
pub struct Picture {
    /// Its id.
    pub id: ImageId,
    /// File name.
    pub name: String,
    /// Address of its bytes inside this tab.
    pub url: String,
    /// The user's, not the album's.
    pub own: bool,
    /// Its caption.
    pub caption: RwSignal<Caption>,
}

/// The answer to the latest search.
#[derive(Debug, Clone, PartialEq)]
pub struct Ranking {
    /// By what.
    pub query: Query,
    /// Best first.
    pub hits: Vec<Hit>,
    /// What it took.
    pub ms: f64,
}

/// How far indexing is.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Indexing {
    /// Pictures that can be found.
    pub done: usize,
    /// Pictures that could not be read.
    pub skipped: usize,
    /// Milliseconds that all of them took.
    pub ms: f64,
}

impl Indexing {
    /// Milliseconds a picture.
    pub fn mean_ms(&self) -> Option<f64> {
        (self.done > 0).then(|| self.ms / self.done as f64)
    }
}

/// Something went wrong with one thing; the rest goes on.
#[derive(Debug, Clone, PartialEq)]
pub struct Notice {
    /// Makes it unique.
    pub id: RequestId,
    /// What it is about.
    pub about: String,
    /// What happened.
    pub cause: String,
}

/// All of it. Copies are handles to the same.
#[derive(Clone, Copy)]
pub struct State {
    pub phase: RwSignal<Phase>,
    /// Where the model that came with the page is kept; `None` while unknown.
    pub kept: RwSignal<Option<Kept>>,
    pub pictures: RwSignal<Vec<Picture>>,
    pub indexing: RwSignal<Indexing>,
    pub ranking: RwSignal<Option<Ranking>>,
    /// What stands in the search field.
    pub sentence: RwSignal<String>,
    /// The search that is not answered yet.
    pub searching: RwSignal<Option<(RequestId, Query)>>,
    /// The picture in the large view.
    pub open: RwSignal<Option<ImageId>>,
    /// Files that the worker has not answered yet.
    pub adding: RwSignal<Vec<(RequestId, String)>>,
    /// Another model that the worker has not answered for yet.
    pub opening: RwSignal<Option<RequestId>>,
    /// The wish to remove the stored model that the worker has not answered yet.
    pub discarding: RwSignal<Option<RequestId>>,
    pub notices: RwSignal<Vec<Notice>>,
    /// Tokens a second of the latest caption.
    pub speed: RwSignal<Option<f64>>,
    /// Files are held over the page.
    pub dragging: RwSignal<bool>,
    /// The next picture of the user opens at once: it is the only one that was given.
    pub show_next: StoredValue<bool>,
    next_id: StoredValue<RequestId>,
}

impl State {
    pub fn new() -> Self {
        State {
            phase: RwSignal::new(Phase::Starting),
            kept: RwSignal::new(None),
            pictures: RwSignal::default(),
            indexing: RwSignal::default(),
            ranking: RwSignal::new(None),
            sentence: RwSignal::default(),
            searching: RwSignal::new(None),
            open: RwSignal::new(None),
            adding: RwSignal::default(),
            opening: RwSignal::new(None),
            discarding: RwSignal::new(None),
            notices: RwSignal::default(),
            speed: RwSignal::new(None),
            dragging: RwSignal::new(false),
            show_next: StoredValue::new(false),
            next_id: StoredValue::new(0),
        }
    }

    pub fn fresh_id(&self) -> RequestId {
        self.next_id.update_value(|id| *id += 1);
        self.next_id.get_value()
    }

    pub fn ready(&self) -> bool {
        self.phase.with(|phase| matches!(phase, Phase::Ready(_)))
    }

    pub fn picture(&self, id: ImageId) -> Option<Picture> {
        self.pictures.with(|all| all.iter().find(|p| p.id == id).cloned())
    }

    /// Whether pictures are left that cannot be found yet.
    pub fn is_indexing(&self) -> bool {
        let Indexing { done, skipped, .. } = self.indexing.get();
        self.ready() && done + skipped < self.pictures.with(Vec::len)
    }

    // --- what the user does -----------------------------------------------------------------------------------

    /// Ranks the album. The field says by what.
    pub fn search(&self, query: Query) {
        match &query {
            Query::Text(text) => self.sentence.set(text.clone()),
            Query::Image(_) => self.sentence.set(String::new()),
        }
        self.rank(query);
    }

    /// Asks for a ranking, again or for the first time.
    pub fn rank(&self, query: Query) {
        self.forget_search();
        let id = self.fresh_id();
        self.searching.set(Some((id, query.clone())));
        link::send(&Request::Search { id, query });
    }

    /// Back to the whole album.
    pub fn show_all(&self) {
        self.forget_search();
        self.sentence.set(String::new());
        self.ranking.set(None);
    }

    fn forget_search(&self) {
        if let Some((id, _)) = self.searching.get_untracked() {
            link::send(&Request::Cancel { id });
            self.searching.set(None);
        }
    }

    /// Opens the large view and has the picture captioned unless it is already.
    pub fn show(&self, image: ImageId) {
        self.open.set(Some(image));
        let Some(picture) = self.picture(image) else { return };
        match picture.caption.get_untracked() {
            // Its turn may be far: asked again with urgency.
            Caption::Waiting(id) => link::send(&Request::Cancel { id }),
            Caption::Writing(..) | Caption::Done(..) => return,
            Caption::None | Caption::Stopped(_) | Caption::Failed(_) => {}
        }
        self.caption(&picture, true);
    }

    pub fn caption(&self, picture: &Picture, urgent: bool) {
        let id = self.fresh_id();
        picture.caption.set(Caption::Waiting(id));
        link::send(&Request::Caption { id, image: picture.id, urgent });
    }

    /// Closes the large view. A caption that nobody sees any more is stopped, except a picture's of the user.
    pub fn close(&self) {
        let open = self.open.get_untracked().and_then(|id| self.picture(id));
        self.open.set(None);
        if let Some(picture) = open.filter(|p| !p.own) {
            self.stop(&picture);
        }
    }

    /// Stops all captions.
    pub fn stop_all(&self) {
        for picture in self.pictures.get_untracked() {
            self.stop(&picture);
        }
    }

    fn stop(&self, picture: &Picture) {
        if let Some(id) = picture.caption.get_untracked().pending() {
            link::send(&Request::Cancel { id });
        }
    }

    /// Removes the model from the browser's storage.
    pub fn discard(&self) {
        let id = self.fresh_id();
        self.discarding.set(Some(id));
        link::send(&Request::Discard { id });
    }

    pub fn dismiss(&self, id: RequestId) {
        self.notices.update(|all| all.retain(|notice| notice.id != id));
    }
}
