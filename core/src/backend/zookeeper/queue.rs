//! Waiting in line: who is before us, what is watched, and how a place is kept between two attempts of its waiter.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use futures_util::future::join_all;

use super::{
    Ensemble,
    line::{self, Obstacle, Standing},
    name::Contender,
    place::Place,
    session::{Failure, Session},
    wire::{Request, code},
};
use crate::{
    clock::Instant,
    engine::{runtime, timer},
};

/// How long a parked contender waits for its waiter, who looks several times a second.
const KEPT: Duration = Duration::from_secs(2);

impl Ensemble {
    /// How it stands in the line where it is worst; if it `waits`, what it waits for is watched. `children` is what was
    /// seen in the first line after it got in.
    pub(super) async fn look(
        &self,
        place: &Place,
        waits: bool,
        mut children: Option<Vec<String>>,
    ) -> Result<Standing, Failure> {
        for (directory, path) in place.directories.iter().zip(&place.paths) {
            match self.look_in(place, directory, path, waits, children.take()).await? {
                Standing::First => {}
                standing => return Ok(standing),
            }
        }
        place.looked(Instant::now());
        Ok(Standing::First)
    }

    async fn look_in(
        &self,
        place: &Place,
        directory: &str,
        path: &str,
        waits: bool,
        children: Option<Vec<String>>,
    ) -> Result<Standing, Failure> {
        let session = &place.session;
        let own = path.strip_prefix(directory).and_then(|path| path.strip_prefix('/')).unwrap_or(path);
        let (mut children, mut watch_line) = (children, false);
        loop {
            let listed = match children.take() {
                Some(children) => children,
                None => {
                    let asked = if watch_line {
                        let watched = Request::children(directory, true);
                        session.ask_and_watch(watched, directory, &place.bell).await
                    } else {
                        session.ask(Request::children(directory, false)).await
                    };
                    watch_line = false;
                    match asked {
                        Ok(reply) => reply.read(|answer| answer.children())?,
                        Err(failure) => {
                            place.watches_nothing();
                            return if failure.is(code::NO_NODE) { Ok(Standing::Gone) } else { Err(failure) };
                        }
                    }
                }
            };
            let mut contenders: Vec<_> = listed.iter().filter_map(|child| Contender::read(child)).collect();
            if line::is_ambiguous(&contenders) {
                order_by_creation(session, directory, &mut contenders).await?;
            }
            let standing = line::standing(&contenders, own, place.mode);
            let Standing::Behind { obstacle: Some(obstacle), .. } = &standing else { return Ok(standing) };
            if !waits {
                return Ok(standing);
            }
            place.looked(Instant::now());
            let again = match obstacle {
                // Listed once more, with a watch.
                Obstacle::Line => {
                    watch_line = place.begins_to_watch(directory);
                    watch_line
                }
                Obstacle::Contender { name, is_waiting } => {
                    let path = format!("{directory}/{name}");
                    if !place.begins_to_watch(&path) {
                        return Ok(standing);
                    }
                    match session.ask_and_watch(Request::data(&path, true), &path, &place.bell).await {
                        // It may have got its turn, and written that, before we watched it.
                        Ok(_) => *is_waiting,
                        Err(failure) => {
                            place.watches_nothing();
                            if !failure.is(code::NO_NODE) {
                                return Err(failure);
                            }
                            true
                        }
                    }
                }
            };
            if !again {
                return Ok(standing);
            }
        }
    }

    /// Keeps the place for the next attempt.
    pub(super) fn park(self: &Arc<Self>, place: &Arc<Place>) {
        let is_new = place.keep_until(Instant::now().after(KEPT));
        self.delete_in_background(self.parked.put(place));
        if is_new {
            runtime::spawn(tend(Arc::downgrade(self), Arc::clone(place)));
        }
    }
}

/// Asks in which order the contenders were made. Who is gone meanwhile is left out.
pub(super) async fn order_by_creation(
    session: &Session,
    directory: &str,
    contenders: &mut Vec<Contender<'_>>,
) -> Result<(), Failure> {
    let stats =
        contenders.iter().map(|contender| session.ask(Request::stat(&format!("{directory}/{}", contender.name))));
    let stats = join_all(stats.collect::<Vec<_>>()).await;
    let mut ordered = Vec::with_capacity(contenders.len());
    for (mut contender, stat) in contenders.drain(..).zip(stats) {
        match stat {
            Ok(reply) => {
                contender.created = Some(reply.read(|answer| answer.stat())?.created_zxid);
                ordered.push(contender);
            }
            Err(failure) if failure.is(code::NO_NODE) => {}
            Err(failure) => return Err(failure),
        }
    }
    *contenders = ordered;
    Ok(())
}

/// Deletes a parked place when its waiter has not come back in time; there until the place is held or deleted.
async fn tend(ensemble: Weak<Ensemble>, place: Arc<Place>) {
    while !place.is_settled() {
        let kept_until = place.kept_until().max(Instant::now().after(KEPT / 4));
        timer::sleep_until(kept_until).await;
        let Some(ensemble) = ensemble.upgrade() else { return };
        if ensemble.parked.take_this(&place, || Instant::now() >= place.kept_until()) {
            ensemble.delete_surely(&place).await;
            return;
        }
    }
}
